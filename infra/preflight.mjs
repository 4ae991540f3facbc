// @ts-check
/** What a deployment needs to be told, checked before anything begins. Plain JavaScript: the scripts read it, too. */

const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;
const KEY_NAME = /^[A-Za-z0-9._-]{1,64}$/;

/** @param {number} from @param {number} to @returns {[(value: string) => boolean, string]} */
const integer = (from, to = Number.MAX_SAFE_INTEGER) => [
  (value) => /^\d{1,15}$/.test(value) && Number(value) >= from && Number(value) <= to,
  to === Number.MAX_SAFE_INTEGER ? "a positive integer" : `an integer from ${from} to ${to}`,
];

/**
 * The server's settings that an operator may set, and what each may be: what the server would refuse when it starts must
 * not be deployed. REQUEST_TIMEOUT_MS has to be shorter than Lambda's 30 seconds, or Lambda ends the request.
 * @type {Record<string, [(value: string) => boolean, string]>}
 */
export const OPTIONAL = {
  LOG_LEVEL: [(value) => /^(debug|info|warning|warn|error)$/i.test(value), "debug, info, warning or error"],
  STALL_THRESHOLD_MS: integer(1),
  RETENTION_DAYS: integer(1, 20_000),
  MONGODB_DATABASE: [(value) => /^[^/\\. "$*<>:|?\0]{1,63}$/.test(value), "a name of a database"],
  RATE_LIMIT_PER_MINUTE: integer(1),
  REQUEST_TIMEOUT_MS: integer(1, 29_000),
  DB_TIMEOUT_MS: integer(1),
  MACHINE_OFFLINE_THRESHOLD_MS: integer(1),
  ABANDON_AFTER_HOURS: integer(0, 24 * 365),
  HEARTBEAT_LOG_SAMPLE_RATE: [(value) => /^(0|1|[01]?\.\d+)$/.test(value) && Number(value) <= 1, "a number from 0 to 1"],
  CORS_ORIGINS: [
    (value) => value.split(",").every((origin) => /^(\*|[a-z][a-z0-9+.-]*:\/\/[^/?\s]+)$/i.test(origin.trim())),
    "* or origins such as https://example.com, comma-separated",
  ],
};

/**
 * What is missing or malformed, a sentence each; no value stands in it. Empty: the deployment may begin.
 * @param {string} stage
 * @param {Record<string, string | undefined>} env
 * @returns {string[]}
 */
export function problems(stage, env) {
  const found = [];
  const uri = env.MONGODB_URI?.trim();
  if (!uri) found.push("MONGODB_URI is missing: the connection string of the database");
  else if (!/^mongodb(\+srv)?:\/\/([^/?#]*@)?[^/?#@]+([/?#]|$)/.test(uri)) found.push("MONGODB_URI is not a MongoDB connection string");

  const keys = (env.API_KEYS ?? "").split(",").map((key) => key.trim()).filter(Boolean);
  const names = keys.filter((key) => key.includes("=")).map((key) => key.slice(0, key.lastIndexOf("=")).trim());
  if (keys.length === 0) found.push("API_KEYS is missing: comma-separated UUID v4 keys, each optionally name=key");
  else if (!keys.every((key) => UUID_V4.test(key.slice(key.lastIndexOf("=") + 1).trim())))
    found.push("API_KEYS has an entry that is not a UUID v4");
  else if (!names.every((name) => KEY_NAME.test(name)))
    found.push("API_KEYS has a name that is not 1 to 64 letters, digits, dots, - or _");
  else if (new Set(names).size < names.length) found.push("API_KEYS has two entries of the same name");

  const email = env.ALARM_EMAIL?.trim();
  if (stage === "prod" && !email) found.push("ALARM_EMAIL is missing: the address that the production alarms are sent to");
  // What AWS would refuse half-way through.
  if (email && !/^[^\s@,]+@[^\s@,]+\.[^\s@,]+$/.test(email)) found.push("ALARM_EMAIL is not an e-mail address");
  if (env.AWS_REGION && !/^[a-z]{2,4}(-[a-z]+){1,3}-\d$/.test(env.AWS_REGION)) found.push("AWS_REGION is not a region such as us-east-1");
  if (env.DOMAIN && !/^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+([a-z]{2,63}|xn--[a-z0-9-]+)$/.test(env.DOMAIN))
    found.push("DOMAIN is not a name such as tracking.example.com");
  const storage = env.RATE_LIMIT_STORAGE_URI;
  if (storage && !/^(memory|rediss?|redis\+(sentinel|cluster)|mongodb(\+srv)?):/.test(storage))
    found.push("RATE_LIMIT_STORAGE_URI does not begin with memory://, redis://, rediss:// or mongodb://");
  for (const [name, [valid, must]] of Object.entries(OPTIONAL)) {
    const value = env[name];
    if (value && !valid(value)) found.push(`${name} is not ${must}`);
  }
  return found;
}
