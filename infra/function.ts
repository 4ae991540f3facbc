/** The Lambda function: HTTP and jobs in one, so that both share warm instances and one database client. */
import { SECRETS, type Settings } from "./settings";

/** The names that the log group, the runbooks and the alarms go by (PRD 5.1: /aws/lambda/state-tracking-api-prod). */
export const functionName = (stage: string) => `state-tracking-api-${stage}`;

export function createFunction(settings: Settings) {
  const name = functionName(settings.stage);
  const links = Object.entries(SECRETS).map(
    ([variable, link]) =>
      new sst.Linkable(link, {
        properties: { value: $util.secret(settings.secrets[variable as keyof typeof SECRETS]) },
      }),
  );

  return new sst.aws.Function("Server", {
    name,
    description: "Claude Projects state tracking API: HTTP and background jobs",
    bundle: settings.bundle,
    handler: "state_tracking_api/aws.handler",
    runtime: "python3.13",
    architecture: "arm64",
    memory: "512 MB",
    timeout: "30 seconds",
    environment: { ...settings.environment },
    link: links,
    logging: { retention: "1 month", format: "text" },
    // Every job comes again within the minute and can be run twice; a retry would only pile up behind an outage.
    retries: 0,
    transform: {
      role: (args) => {
        // SST's role can also be assumed by every principal of the account; only Lambda needs to.
        args.assumeRolePolicy = aws.iam.assumeRolePolicyForPrincipal({ Service: "lambda.amazonaws.com" });
        // SST attaches a managed policy that may write to every log group; this function needs its own.
        args.managedPolicyArns = [];
        args.inlinePolicies = [{ name: "logs", policy: writeOwnLogs(name) }];
      },
    },
  });
}

function writeOwnLogs(name: string) {
  const region = aws.getRegionOutput().region;
  const account = aws.getCallerIdentityOutput().accountId;
  const partition = aws.getPartitionOutput().partition;
  return $jsonStringify({
    Version: "2012-10-17",
    Statement: [
      {
        Effect: "Allow",
        Action: ["logs:CreateLogStream", "logs:PutLogEvents"],
        Resource: $interpolate`arn:${partition}:logs:${region}:${account}:log-group:/aws/lambda/${name}:*`,
      },
    ],
  });
}
