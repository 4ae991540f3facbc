/** What a deployment is told from outside, read and checked in one place before anything is declared. */
import { OPTIONAL, problems } from "./preflight.mjs";

export interface Settings {
  readonly stage: string;
  readonly region: string;
  /** The public name; without one (every stage but prod, by default) callers use the address of the HTTP API. */
  readonly domain?: string;
  readonly alarmEmail?: string;
  /** The commit that is deployed, logged at start. */
  readonly release: string;
  /** Where infra/package.py has put the function's code. */
  readonly bundle: string;
  readonly secrets: Readonly<Record<SecretName, string>>;
  readonly environment: Readonly<Record<string, string>>;
}

/** Linked to the function and so encrypted in its package; they never stand in its configuration. */
export const SECRETS = {
  MONGODB_URI: "MongodbUri",
  API_KEYS: "ApiKeys",
  // Has a password in it where it is a Redis; empty where the server's database counts.
  RATE_LIMIT_STORAGE_URI: "RateLimitStorageUri",
} as const;
type SecretName = keyof typeof SECRETS;

export function readSettings(stage: string, env: NodeJS.ProcessEnv): Settings {
  const found = problems(stage, env);
  if (found.length > 0) throw new Error(`ConfigurationError: ${found.join("; ")}`);

  // What is not set has the server's own default.
  const passedOn = Object.keys(OPTIONAL).flatMap((name) => (env[name] ? [[name, env[name]!]] : []));
  const release = env.RELEASE || "unknown";
  const domain = env.DOMAIN || (stage === "prod" ? "claude-projects.truapi.com" : undefined);
  return {
    stage,
    region: env.AWS_REGION || "us-east-1",
    domain,
    alarmEmail: env.ALARM_EMAIL?.trim() || undefined,
    release,
    bundle: env.LAMBDA_BUNDLE || ".cache/lambda/bundle",
    secrets: {
      MONGODB_URI: env.MONGODB_URI!.trim(),
      API_KEYS: env.API_KEYS!.trim(),
      RATE_LIMIT_STORAGE_URI: env.RATE_LIMIT_STORAGE_URI?.trim() ?? "",
    },
    environment: {
      LOG_LEVEL: "info",
      STALL_THRESHOLD_MS: "180000",
      RETENTION_DAYS: "30",
      ...Object.fromEntries(passedOn),
      ENVIRONMENT: stage === "prod" ? "production" : stage,
      // A timer inside a function does not run between two calls: EventBridge keeps the time (schedules.ts).
      SCHEDULER: "off",
      RELEASE: release,
      // Where CloudFront stands in front (edge.ts), the caller's address is the one that CloudFront has seen.
      ...(domain === undefined ? {} : { VIEWER_ADDRESS_HEADER: "cloudfront-viewer-address" }),
    },
  };
}
