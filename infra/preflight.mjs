// @ts-check
/** What a deployment needs to be told, checked before anything begins. Plain JavaScript: the scripts read it, too. */

const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;

/** The variables without which nothing can be deployed; ALARM_EMAIL for prod only. */
export const REQUIRED = /** @type {const} */ (["MONGODB_URI", "API_KEYS", "ALARM_EMAIL"]);

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
  else if (!/^mongodb(\+srv)?:\/\/[^/]/.test(uri)) found.push("MONGODB_URI is not a MongoDB connection string");

  const keys = (env.API_KEYS ?? "").split(",").map((key) => key.trim()).filter(Boolean);
  if (keys.length === 0) found.push("API_KEYS is missing: comma-separated UUID v4 keys, each optionally name=key");
  else if (!keys.every((key) => UUID_V4.test(key.slice(key.indexOf("=") + 1).trim())))
    found.push("API_KEYS has an entry that is not a UUID v4");

  if (stage === "prod" && !env.ALARM_EMAIL?.trim())
    found.push("ALARM_EMAIL is missing: the address that the production alarms are sent to");
  for (const name of ["STALL_THRESHOLD_MS", "RETENTION_DAYS"]) {
    const value = env[name];
    if (value && !/^[1-9]\d*$/.test(value)) found.push(`${name} is not a positive integer`);
  }
  return found;
}
