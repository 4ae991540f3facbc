/**
 * What the requirements say of the deployment, held against the graph that SST's own components declare.
 * Every property comes with a fault: the same check, on the stack with that fault in it, has to fail.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";

const SECRET_URI = "mongodb://someone:a-password@db.example/";
const SECRET_STORAGE = "rediss://:another-password@cache.example:6379";
const FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:state-tracking-api-prod";
const SECRET_KEY = "11111111-2222-4333-8444-555555555555";
const ENVIRONMENT = {
  PATH: process.env.PATH,
  HOME: process.env.HOME,
  MONGODB_URI: SECRET_URI,
  API_KEYS: SECRET_KEY,
  RATE_LIMIT_STORAGE_URI: SECRET_STORAGE,
  ALARM_EMAIL: "operator@example.com",
  LAMBDA_BUNDLE: mkdtempSync(join(tmpdir(), "bundle-")),
};
writeFileSync(join(ENVIRONMENT.LAMBDA_BUNDLE, "placeholder.py"), "");
after(() => rmSync(ENVIRONMENT.LAMBDA_BUNDLE, { recursive: true, force: true }));

async function evaluate(stage, { env = {}, faults = [] } = {}) {
  const file = join(ENVIRONMENT.LAMBDA_BUNDLE, "..", `faults-${process.pid}-${Math.random()}.json`);
  writeFileSync(file, JSON.stringify(faults));
  try {
    const { stdout } = await promisify(execFile)(
      process.execPath,
      [join(import.meta.dirname, "evaluate.mjs"), stage, "--faults", file],
      { env: { ...ENVIRONMENT, ...env }, maxBuffer: 1 << 26 },
    );
    return new Graph(JSON.parse(stdout));
  } finally {
    rmSync(file, { force: true });
  }
}

class Graph {
  constructor({ app, outputs, resources }) {
    Object.assign(this, { app, outputs, resources });
  }
  all(type) {
    return this.resources.filter((resource) => resource.type.endsWith(`:${type}`));
  }
  one(type, name) {
    const found = this.all(type).filter((resource) => name === undefined || resource.name === name);
    assert.equal(found.length, 1, `${type} ${name ?? ""}: ${found.length} found`);
    return found[0].inputs;
  }
  get function() {
    return this.one("Function", "ServerFunction");
  }
  get distribution() {
    return this.one("Distribution");
  }
  alarm(name) {
    const alarm = this.one("MetricAlarm", name);
    const topic = this.one("Topic", "Alarms");
    assert.ok(topic && alarm.alarmActions.some((arn) => arn.startsWith("arn:aws:sns:")), `${name} tells nobody`);
    return alarm;
  }
}

const actions = (policy) => JSON.parse(policy).Statement.flatMap((statement) => statement.Action);
const schedule = (graph, name) => {
  const { scheduleExpression, target, state } = graph.one("Schedule", `${name}Schedule`);
  assert.equal(state, "ENABLED");
  return [scheduleExpression, JSON.parse(target.input).job];
};

/** The filter that counts log lines, of the function's own log group, for an alarm. */
const counted = (graph, name, alarmName) => {
  const filter = graph.one("LogMetricFilter", name);
  assert.equal(filter.logGroupName, graph.one("LogGroup", "ServerLogGroup").name);
  const alarm = graph.alarm(alarmName);
  assert.deepEqual([alarm.namespace, alarm.metricName],
    [filter.metricTransformation.namespace, filter.metricTransformation.name]);
  return filter;
};

/** What a trigger of a rollback measures, over how many seconds, and what it compares with; its mail says what to do. */
const trigger = (graph, name) => {
  const alarm = graph.alarm(name);
  assert.match(alarm.alarmDescription, /^ROLL BACK: /);
  return [alarm.metricName, alarm.statistic ?? alarm.extendedStatistic, alarm.period * alarm.evaluationPeriods,
    alarm.comparisonOperator, alarm.threshold];
};

/** What an alarm of the function itself watches. */
const ofTheFunction = (graph, name) => {
  const { namespace, metricName, dimensions } = graph.alarm(name);
  return [namespace, metricName, dimensions.FunctionName];
};

/** [what the requirement says, the check, the fault that it has to notice] */
const PROPERTIES = [
  ["the function has 512 MB", (g) => assert.equal(g.function.memorySize, 512),
    ["infra/function.ts", '"512 MB"', '"256 MB"']],
  ["the function has 30 seconds", (g) => assert.equal(g.function.timeout, 30),
    ["infra/function.ts", '"30 seconds"', '"20 seconds"']],
  ["the function runs on Python 3.13", (g) => assert.equal(g.function.runtime, "python3.13"),
    ["infra/function.ts", '"python3.13"', '"python3.12"']],
  ["the function runs on arm64", (g) => assert.deepEqual(g.function.architectures, ["arm64"]),
    ["infra/function.ts", '"arm64"', '"x86_64"']],
  ["the handler is the one in aws.py", (g) => assert.equal(g.function.handler, "state_tracking_api/aws.handler"),
    ["infra/function.ts", "state_tracking_api/aws.handler", "state_tracking_api/aws.main"]],
  ["ENVIRONMENT is production", (g) => assert.equal(g.function.environment.variables.ENVIRONMENT, "production"),
    ["infra/settings.ts", '"production"', '"development"']],
  ["LOG_LEVEL is info", (g) => assert.equal(g.function.environment.variables.LOG_LEVEL, "info"),
    ["infra/settings.ts", '"info"', '"debug"']],
  ["STALL_THRESHOLD_MS is 180000", (g) => assert.equal(g.function.environment.variables.STALL_THRESHOLD_MS, "180000"),
    ["infra/settings.ts", '"180000"', '"18000"']],
  ["RETENTION_DAYS is 30", (g) => assert.equal(g.function.environment.variables.RETENTION_DAYS, "30"),
    ["infra/settings.ts", 'RETENTION_DAYS: "30"', 'RETENTION_DAYS: "3"']],
  ["the server's own scheduler is off", (g) => assert.equal(g.function.environment.variables.SCHEDULER, "off"),
    ["infra/settings.ts", 'SCHEDULER: "off"', 'SCHEDULER: "on"']],
  ["the function logs the address that the edge has seen",
    (g) => assert.equal(g.function.environment.variables.VIEWER_ADDRESS_HEADER, "cloudfront-viewer-address"),
    ["infra/settings.ts", '"cloudfront-viewer-address"', '"x-forwarded-for"']],
  ["no secret stands in the function's configuration",
    (g) => {
      const configuration = JSON.stringify(g.function);
      for (const secret of [SECRET_URI, SECRET_KEY, SECRET_STORAGE]) assert.ok(!configuration.includes(secret));
      assert.equal(g.function.environment.variables.SST_KEY_FILE, "resource.enc");
    },
    ["infra/function.ts", "environment: { ...settings.environment }", "environment: { ...settings.environment, ...settings.secrets }"]],
  ["the function has one policy, its own", (g) => {
      const role = g.one("Role", "ServerRole");
      assert.deepEqual([role.managedPolicyArns, role.inlinePolicies.length], [[], 1]);
    },
    ["infra/function.ts", "args.managedPolicyArns = []", "void args.managedPolicyArns"]],
  ["the function may write log lines and nothing else",
    (g) => assert.deepEqual(actions(g.one("Role", "ServerRole").inlinePolicies[0].policy),
      ["logs:CreateLogStream", "logs:PutLogEvents"]),
    ["infra/function.ts", '"logs:PutLogEvents"]', '"logs:PutLogEvents", "logs:DeleteLogGroup"]']],
  ["the function may write to its own log group only",
    (g) => assert.deepEqual(JSON.parse(g.one("Role", "ServerRole").inlinePolicies[0].policy).Statement.map((s) => s.Resource),
      ["arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/state-tracking-api-prod:*"]),
    ["infra/function.ts", "log-group:/aws/lambda/${name}:*", "log-group:*"]],
  ["only Lambda may assume the function's role",
    (g) => {
      const policy = g.one("Role", "ServerRole").assumeRolePolicy;
      assert.deepEqual((typeof policy === "string" ? JSON.parse(policy) : policy).Statement.map((s) => s.Principal), [
        { Service: "lambda.amazonaws.com" },
      ]);
    },
    ["infra/function.ts", "args.assumeRolePolicy =", "void"]],
  ["each schedule invokes this function and may invoke nothing else",
    (g) => {
      assert.deepEqual(g.all("Schedule").map(({ inputs }) => inputs.target.arn), Array(6).fill(FUNCTION_ARN));
      const roles = g.all("Role").filter((role) => role.name !== "ServerRole");
      assert.equal(roles.length, 6);
      for (const { inputs } of roles) {
        const [{ Action, Resource }] = JSON.parse(inputs.inlinePolicies[0].policy).Statement;
        assert.deepEqual([Action, Resource], [["lambda:InvokeFunction"], [FUNCTION_ARN]]);
      }
    },
    ["infra/schedules.ts", "function: fn.arn", "function: $interpolate`${fn.arn}2`"]],
  ["the log group has the name that the requirements give it",
    (g) => assert.equal(g.one("LogGroup", "ServerLogGroup").name, "/aws/lambda/state-tracking-api-prod"),
    ["infra/function.ts", "`state-tracking-api-${stage}`", "`tracking-${stage}`"]],
  ["the function's logs are kept for 30 days", (g) => assert.equal(g.one("LogGroup", "ServerLogGroup").retentionInDays, 30),
    ["infra/function.ts", '"1 month"', '"1 week"']],
  ["access logs are kept for 30 days", (g) => assert.equal(g.one("LogGroup", "ApiAccessLog").retentionInDays, 30),
    ["infra/api.ts", 'retention: "1 month"', 'retention: "3 days"']],
  ["access logs are written to their group",
    (g) => assert.ok(g.one("Stage").accessLogSettings.destinationArn.endsWith(`:${g.one("LogGroup", "ApiAccessLog").name}`)),
    ["infra/api.ts", "settings!.destinationArn", "`${settings!.destinationArn}-2`"]],
  ["a line of the access log is JSON and tells what was asked, what came of it, how long it took and where to look on",
    (g) => {
      const line = JSON.parse(g.one("Stage").accessLogSettings.format.replace(/":\$context[.\w]+/g, '":1'));
      for (const field of ["requestId", "path", "status", "responseLatency", "lambdaRequestId"]) assert.ok(field in line);
    },
    ["infra/api.ts", '"lambdaRequestId":', '"lambda":']],
  ["the gateway is an HTTP API", (g) => assert.equal(g.one("Api").protocolType, "HTTP"),
    ["infra/api.ts", "args.description =", 'args.protocolType = "WEBSOCKET"; args.description =']],
  ["CORS is the server's: the gateway adds nothing", (g) => assert.deepEqual(g.one("Api").corsConfiguration, {}),
    ["infra/api.ts", "cors: false", "cors: true"]],
  ["the gateway passes every request on to the function, preflights included",
    (g) => {
      assert.equal(g.one("Route").routeKey, "$default");
      const integration = g.one("Integration");
      assert.equal(integration.integrationUri, FUNCTION_ARN);
      assert.equal(integration.payloadFormatVersion, "2.0");
    },
    ["infra/api.ts", 'route("$default"', 'route("POST /api/sessions"']],
  ["requests are throttled before they reach the account's limits",
    (g) => assert.deepEqual(
      [g.one("Stage").defaultRouteSettings.throttlingBurstLimit, g.one("Stage").defaultRouteSettings.throttlingRateLimit],
      [200, 100]),
    ["infra/api.ts", "throttlingBurstLimit: 200", "throttlingBurstLimit: 5000"]],
  ["with a domain, the gateway's own address is closed", (g) => assert.equal(g.one("Api").disableExecuteApiEndpoint, true),
    ["infra/api.ts", "settings.domain !== undefined", "false"]],
  ["the domain is claude-projects.truapi.com",
    (g) => {
      assert.deepEqual(g.distribution.aliases, ["claude-projects.truapi.com"]);
      assert.equal(g.outputs.url, "https://claude-projects.truapi.com");
    },
    ["infra/settings.ts", "claude-projects.truapi.com", "projects.truapi.com"]],
  ["the gateway answers to the domain", (g) => assert.equal(g.one("DomainName").domainName, "claude-projects.truapi.com"),
    ["infra/edge.ts", '"ApiDomain", {\n    domainName: domain', '"ApiDomain", {\n    domainName: "elsewhere.example"']],
  ["the gateway's domain leads to the API",
    (g) => {
      const { apiId, domainName, stage } = g.one("ApiMapping");
      assert.deepEqual([apiId, domainName, stage], [g.one("Stage").apiId, "ApiDomain-id", "$default"]);
    },
    ["infra/edge.ts", "apiId: api.nodes.api.id", 'apiId: "another"']],
  ["the edge passes requests on to the gateway's domain",
    (g) => assert.match(g.distribution.origins[0].domainName, /^d-\w+\.execute-api\.us-east-1\.amazonaws\.com$/),
    ["infra/edge.ts", "(c) => c.targetDomainName", "() => domain"]],
  ["the certificate is ordered for the domain and validated by DNS",
    (g) => {
      const certificate = g.one("Certificate", "RegionalSslCertificate");
      assert.deepEqual([certificate.domainName, certificate.validationMethod], ["claude-projects.truapi.com", "DNS"]);
      assert.equal(g.one("Record", "RegionalSslCNAMERecordCheckclaudeprojectstruapicom").type, "CNAME");
    },
    ["infra/edge.ts", "{ domainName: domain, dns:", '{ domainName: "elsewhere.example", dns:']],
  ["the edge shows the certificate, once it is validated",
    (g) => assert.equal(g.distribution.viewerCertificate.acmCertificateArn, g.one("CertificateValidation").certificateArn),
    ["infra/edge.ts", "? certificate.arn :", '? "arn:aws:acm:us-east-1:123456789012:certificate/another" :']],
  ["the gateway shows the certificate, once it is validated",
    (g) => assert.equal(g.one("DomainName").domainNameConfiguration.certificateArn, g.one("CertificateValidation").certificateArn),
    ["infra/edge.ts", "certificateArn: certificate.arn", 'certificateArn: "arn:aws:acm:us-east-1:123456789012:certificate/another"']],
  ["DNS has address records for the domain",
    (g) => assert.deepEqual(
      g.all("Record").filter(({ inputs }) => inputs.name === "claude-projects.truapi.com").map(({ inputs }) => inputs.type).sort(),
      ["A", "AAAA"]),
    ["infra/edge.ts", "{ name: domain, dns,", "{ name: domain, dns: false,"]],
  ["callers speak TLS 1.2 at the least, with strong ciphers",
    (g) => assert.equal(g.distribution.viewerCertificate.minimumProtocolVersion, "TLSv1.2_2021"),
    ["infra/edge.ts", "args.isIpv6Enabled = true;", "args.isIpv6Enabled = true; " +
      'args.viewerCertificate = $output(args.viewerCertificate).apply((shown) => ({ ...shown, minimumProtocolVersion: "TLSv1" }));']],
  ["the edge speaks TLS 1.2 with the gateway",
    (g) => assert.deepEqual(g.distribution.origins[0].customOriginConfig.originSslProtocols, ["TLSv1.2"]),
    ["infra/edge.ts", '["TLSv1.2"]', '["TLSv1", "TLSv1.2"]']],
  ["nothing goes from the edge to the gateway in the clear",
    (g) => assert.equal(g.distribution.origins[0].customOriginConfig.originProtocolPolicy, "https-only"),
    ["infra/edge.ts", '"https-only"', '"match-viewer"']],
  ["the gateway accepts TLS 1.2 at the least",
    (g) => assert.equal(g.one("DomainName").domainNameConfiguration.securityPolicy, "TLS_1_2"),
    ["infra/edge.ts", '"TLS_1_2"', '"TLS_1_0"']],
  ["HTTP is redirected to HTTPS",
    (g) => assert.equal(g.distribution.defaultCacheBehavior.viewerProtocolPolicy, "redirect-to-https"),
    ["infra/edge.ts", "redirect-to-https", "allow-all"]],
  ["the edge passes the Host and the caller's address on",
    (g) => assert.equal(g.distribution.defaultCacheBehavior.originRequestPolicyId, "33f36d7e-f396-46d9-90e0-52428a34d9dc"),
    ["infra/edge.ts", "33f36d7e-f396-46d9-90e0-52428a34d9dc", "b689b0a8-53d0-40ab-baf2-68738e2966ac"]],
  ["the edge passes every method on",
    (g) => {
      const passed = g.distribution.defaultCacheBehavior.allowedMethods;
      assert.deepEqual(["DELETE", "GET", "OPTIONS", "PATCH", "POST"].filter((method) => !passed.includes(method)), []);
    },
    ["infra/edge.ts", '["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]', '["GET", "HEAD", "OPTIONS"]']],
  ["the edge caches nothing",
    (g) => assert.equal(g.distribution.defaultCacheBehavior.cachePolicyId, "4135ea2d-6df8-44a3-9df3-4b5a84be39ad"),
    ["infra/edge.ts", "4135ea2d-6df8-44a3-9df3-4b5a84be39ad", "658327ea-f89d-4fab-a63d-7e88639e58f6"]],
  ["the edge waits longer than the function runs",
    (g) => assert.ok(g.distribution.origins[0].customOriginConfig.originReadTimeout > g.function.timeout),
    ["infra/edge.ts", "originReadTimeout: 35", "originReadTimeout: 10"]],
  ["stalls are looked for every minute", (g) => assert.deepEqual(schedule(g, "DetectFailures"), ["rate(1 minute)", "detect-failures"]),
    ["infra/schedules.ts", 'job: "detect-failures", schedule: "rate(1 minute)"', 'job: "detect-failures", schedule: "rate(5 minutes)"']],
  ["cleanup runs daily at 2:00 UTC", (g) => assert.deepEqual(schedule(g, "Cleanup"), ["cron(0 2 * * ? *)", "cleanup"]),
    ["infra/schedules.ts", "cron(0 2 * * ? *)", "cron(0 3 * * ? *)"]],
  ["silent machines are looked for every minute",
    (g) => assert.deepEqual(schedule(g, "MarkMachinesOffline"), ["rate(1 minute)", "mark-machines-offline"]),
    ["infra/schedules.ts", '"mark-machines-offline"', '"machines"']],
  ["the hour of the cleanup is UTC's", (g) => assert.equal(g.one("Schedule", "CleanupSchedule").scheduleExpressionTimezone, "UTC"),
    ["infra/schedules.ts", 'timezone: "UTC"', 'timezone: "Europe/Berlin"']],
  ["abandoned sessions are looked for every ten minutes",
    (g) => assert.deepEqual(schedule(g, "FailAbandoned"), ["rate(10 minutes)", "fail-abandoned"]),
    ["infra/schedules.ts", "rate(10 minutes)", "rate(10 days)"]],
  ["consistency is checked every hour",
    (g) => assert.deepEqual(schedule(g, "CheckConsistency"), ["rate(1 hour)", "check-consistency"]),
    ["infra/schedules.ts", "rate(1 hour)", "rate(1 day)"]],
  ["health is reported every minute", (g) => assert.deepEqual(schedule(g, "ReportHealth"), ["rate(1 minute)", "report-health"]),
    ["infra/schedules.ts", '"report-health"', '"report"']],
  ["ERROR lines are counted",
    (g) => {
      const filter = counted(g, "ErrorLines", "LoggedErrors");
      assert.equal(filter.pattern, '{ $.level = "ERROR" }');
    },
    ["infra/alarms.ts", '{ $.level = "ERROR" }', "ERROR"]],
  ["many requests with a wrong key are an alarm",
    (g) => {
      const filter = counted(g, "RefusedKeys", "RefusedKeys");
      assert.equal(filter.pattern, '{ $.message = "Authentication failed" }');
    },
    ["infra/alarms.ts", "`RefusedKeys-${settings.stage}`", '"Refused"']],
  ["an error rate above 5 % over 5 minutes is an alarm",
    (g) => {
      const alarm = g.alarm("ErrorRate");
      assert.equal(alarm.threshold, 5);
      assert.deepEqual(alarm.metricQueries.flatMap(({ metric }) => (metric ? [[metric.metricName, metric.period]] : [])),
        [["5xx", 300], ["Count", 300]]);
    },
    ["infra/alarms.ts", "errorRate(300)", "errorRate(3600)"]],
  ["an error rate above 5 % over 15 minutes calls for a rollback",
    (g) => {
      const alarm = g.alarm("LastingErrorRate");
      assert.match(alarm.alarmDescription, /^ROLL BACK: /);
      assert.equal(alarm.threshold, 5);
      assert.deepEqual(alarm.metricQueries.flatMap(({ metric }) => (metric ? [[metric.metricName, metric.period]] : [])),
        [["5xx", 900], ["Count", 900]]);
    },
    ["infra/alarms.ts", "errorRate(900)", "errorRate(600)"]],
  ["an uptime below 95 % over an hour calls for a rollback",
    (g) => assert.deepEqual(trigger(g, "Uptime"), ["HealthCheckStatus", "Average", 3600, "LessThanThreshold", 0.95]),
    ["infra/alarms.ts", "threshold: 0.95", "threshold: 0.5"]],
  ["a database away at more than half of the attempts of 5 minutes calls for a rollback, and so does silence",
    (g) => {
      assert.deepEqual(trigger(g, "DatabaseMostlyAway"), ["DatabaseUp", "Average", 300, "LessThanThreshold", 0.5]);
      assert.equal(g.alarm("DatabaseMostlyAway").treatMissingData, "breaching");
    },
    ["infra/alarms.ts", "period: 300,\n    threshold: 0.5", "period: 600,\n    threshold: 0.5"]],
  ["heartbeats above 2 seconds at the 95th percentile over 10 minutes call for a rollback",
    (g) => assert.deepEqual(trigger(g, "VerySlowHeartbeats"), ["HeartbeatLatency", "p95", 600, "GreaterThanThreshold", 2000]),
    ["infra/alarms.ts", "threshold: 2000", "threshold: 5000"]],
  ["stored data that contradicts itself calls for a rollback",
    (g) => assert.deepEqual(trigger(g, "ConsistencyViolated"),
      ["ConsistencyViolations", "Maximum", 60, "GreaterThanThreshold", 0]),
    ["infra/alarms.ts", '"ConsistencyViolations"', '"Violations"']],
  ["most sessions falling silent at once is an alarm",
    (g) => assert.deepEqual([g.alarm("SuspectedOutage").metricName, g.alarm("SuspectedOutage").threshold], ["SuspectedOutage", 0]),
    ["infra/alarms.ts", 'metricName: "SuspectedOutage"', 'metricName: "Outage"']],
  ["crashes of the function are an alarm", (g) => assert.deepEqual(ofTheFunction(g, "FunctionErrors"), ["AWS/Lambda", "Errors", g.function.name]),
    ["infra/alarms.ts", 'metricName: "Errors"', 'metricName: "Crashes"']],
  ["throttles of the function are an alarm", (g) => assert.deepEqual(ofTheFunction(g, "Throttles"), ["AWS/Lambda", "Throttles", g.function.name]),
    ["infra/alarms.ts", '"Throttles",\n    dimensions', '"Throttle",\n    dimensions']],
  ["a 95th percentile of all requests above 1 s is an alarm",
    (g) => assert.deepEqual([g.alarm("Latency").metricName, g.alarm("Latency").extendedStatistic, g.alarm("Latency").threshold],
      ["Latency", "p95", 1000]),
    ["infra/alarms.ts", "threshold: 1000,", "threshold: 10000,"]],
  ["a 95th percentile of the heartbeats above 500 ms is an alarm",
    (g) => assert.deepEqual(
      [g.alarm("HeartbeatLatency").metricName, g.alarm("HeartbeatLatency").extendedStatistic, g.alarm("HeartbeatLatency").threshold],
      ["HeartbeatLatency", "p95", 500]),
    ["infra/alarms.ts", "threshold: 500,", "threshold: 5000,"]],
  ["/health is asked from outside",
    (g) => {
      const check = g.one("HealthCheck");
      assert.deepEqual([check.type, check.fqdn, check.resourcePath], ["HTTPS", "claude-projects.truapi.com", "/health"]);
    },
    ["infra/alarms.ts", 'resourcePath: "/health"', 'resourcePath: "/"']],
  ["/health failing for 2 minutes is an alarm, and so is that nobody asks it",
    (g) => {
      const alarm = g.alarm("Health");
      assert.deepEqual([alarm.metricName, alarm.dimensions.HealthCheckId, alarm.comparisonOperator, alarm.threshold],
        ["HealthCheckStatus", "HealthCheck-id", "LessThanThreshold", 1]);
      assert.deepEqual([alarm.period * alarm.evaluationPeriods, alarm.treatMissingData], [120, "breaching"]);
    },
    ["infra/alarms.ts", "period: 60,\n    evaluationPeriods: 2,\n    threshold: 1,", "period: 60,\n    evaluationPeriods: 20,\n    threshold: 1,"]],
  ["silence about the database is an alarm", (g) => assert.equal(g.alarm("Database").treatMissingData, "breaching"),
    ["infra/alarms.ts", '...reported,\n    metricName: "DatabaseUp",\n    evaluationPeriods', '...reported,\n    treatMissingData: "ignore",\n    metricName: "DatabaseUp",\n    evaluationPeriods']],
  ["a database error in the detailed health is an alarm",
    (g) => {
      const alarm = g.alarm("Database");
      assert.deepEqual([alarm.metricName, alarm.comparisonOperator, alarm.threshold], ["DatabaseUp", "LessThanThreshold", 1]);
    },
    ["infra/alarms.ts", '"DatabaseUp",\n    evaluationPeriods: 2', '"Database",\n    evaluationPeriods: 2']],
  ["jobs that no longer run are an alarm",
    (g) => {
      const alarm = g.alarm("StaleJobs");
      assert.deepEqual([alarm.metricName, alarm.comparisonOperator, alarm.threshold], ["BackgroundJobsUp", "LessThanThreshold", 1]);
    },
    ["infra/alarms.ts", '"BackgroundJobsUp"', '"JobsUp"']],
  ["the operator is subscribed to the alarms",
    (g) => assert.deepEqual(
      [g.one("TopicSubscription").protocol, g.one("TopicSubscription").endpoint], ["email", "operator@example.com"]),
    ["infra/alarms.ts", 'protocol: "email"', 'protocol: "sms"']],
  ["the dashboard is valid JSON and shows requests, latency, sessions, health and errors",
    (g) => {
      const { widgets } = JSON.parse(g.one("Dashboard").dashboardBody);
      const shown = JSON.stringify(widgets);
      for (const metric of ["Count", "5xx", "Latency", "HeartbeatLatency", "ActiveSessions", "StalledSessions", "DatabaseUp", "ErrorLines-prod"])
        assert.ok(shown.includes(`"${metric}"`), metric);
    },
    ["infra/dashboard.ts", '"StalledSessions"', '"Stalled"']],
  ["the outputs name the API's address", (g) => assert.match(g.outputs.endpoint, /^https:\/\/.*execute-api/),
    ["sst.config.ts", "endpoint: api.nodes.api.apiEndpoint", "endpoint: api.nodes.api.id"]],
  ["the outputs name the function",
    (g) => assert.equal(g.outputs.functionArn, FUNCTION_ARN),
    ["sst.config.ts", "functionArn: fn.arn", "functionArn: fn.name"]],
  ["the outputs name the log group", (g) => assert.equal(g.outputs.logGroup, g.one("LogGroup", "ServerLogGroup").name),
    ["sst.config.ts", "group!.name", "group!.arn"]],
  ["the outputs name the region", (g) => assert.equal(g.outputs.region, "us-east-1"),
    ["sst.config.ts", "region: aws.getRegionOutput().region", "region: $app.stage"]],
  ["the outputs name where the alarms go", (g) => assert.equal(g.outputs.alarmTopic, "arn:aws:sns:us-east-1:123456789012:Alarms"),
    ["sst.config.ts", "alarmTopic: alarms.arn", "alarmTopic: alarms.id"]],
  ["prod is protected from removal", (g) => assert.equal(g.app.protect, true),
    ["sst.config.ts", "protect: production &&", "protect: !production &&"]],
  ["prod's data is retained", (g) => assert.equal(g.app.removal, "retain"),
    ["sst.config.ts", 'removal: production ? "retain" : "remove"', 'removal: "remove"']],
];

test("the production stack", async (t) => {
  const graph = await evaluate("prod");
  for (const [name, check] of PROPERTIES) await t.test(name, () => check(graph));
});

/**
 * Faults are seeded many at a time, since a stack takes seconds to evaluate: each fault is in three of nine stacks,
 * and no two faults are in the same three. In each stack the checks of the seeded faults have to fail and all others to
 * pass, so a check that does so notices its own fault and no other one.
 * A fault that is meant to show in several checks is seeded alone, and only its own check is asked.
 */
const ALONE = ["`state-tracking-api-${stage}`", "claude-projects.truapi.com"];
const alone = PROPERTIES.filter(([, , fault]) => ALONE.includes(fault[1]));
const together = PROPERTIES.filter((property) => !alone.includes(property));
const STACKS = 9;
const triples = [...Array(1 << STACKS).keys()].filter((bits) => bits.toString(2).replaceAll("0", "").length === 3);
assert.ok(together.length <= triples.length, "more properties than there are triples: raise STACKS");
const groups = [
  ...alone.map((property) => [property]),
  ...[...Array(STACKS).keys()].map((stack) => together.filter((_, index) => (triples[index] >> stack) & 1)),
];

for (const [number, group] of groups.entries())
  test(`seeded faults are noticed, each by its own check (${number + 1} of ${groups.length})`, async () => {
    const faults = group.map(([, , [file, from, to]]) => ({ file, from, to }));
    const faulty = await evaluate("prod", { faults });
    for (const [name, check] of group) assert.throws(() => check(faulty), assert.AssertionError, `not noticed: ${name}`);
    const others = group.length > 1 ? together.filter((property) => !group.includes(property)) : [];
    for (const [name, check] of others) assert.doesNotThrow(() => check(faulty), `noticed by mistake: ${name}`);
  });

/** The same of other stages and regions: with all their faults in it at once, each of the checks has to fail. */
function variant(title, stage, env, properties) {
  test(`${title}; a fault seeded for each is noticed`, async (t) => {
    const [sound, faulty] = await Promise.all([
      evaluate(stage, { env }),
      evaluate(stage, { env, faults: properties.map(([, , [file, from, to]]) => ({ file, from, to })) }),
    ]);
    for (const [name, check] of properties)
      await t.test(name, () => {
        check(sound);
        assert.throws(() => check(faulty), assert.AssertionError, `not noticed: ${name}`);
      });
  });
}

variant("the dev stack", "dev", { ALARM_EMAIL: "" }, [
  ["it is not protected", (g) => assert.equal(g.app.protect, false),
    ["sst.config.ts", "protect: production &&", "protect: !production &&"]],
  ["nothing of it is retained", (g) => assert.equal(g.app.removal, "remove"),
    ["sst.config.ts", ': "remove"', ': "retain"']],
  ["it has no domain and nothing in front of the API",
    (g) => {
      assert.equal(g.all("Distribution").length, 0);
      assert.equal(g.outputs.url, g.outputs.endpoint);
    },
    ["infra/settings.ts", '"claude-projects.truapi.com" : undefined', '"claude-projects.truapi.com" : "dev.truapi.com"']],
  ["it is open at the gateway's address", (g) => assert.equal(g.one("Api").disableExecuteApiEndpoint, false),
    ["infra/api.ts", "settings.domain !== undefined", "true"]],
  ["its ENVIRONMENT is dev", (g) => assert.equal(g.function.environment.variables.ENVIRONMENT, "dev"),
    ["infra/settings.ts", '"production" : stage', '"production" : "production"']],
  // Nothing overwrites that header there: whoever calls could choose the address in the log.
  ["it takes nobody's word for the caller's address",
    (g) => assert.equal(g.function.environment.variables.VIEWER_ADDRESS_HEADER, undefined),
    ["infra/settings.ts", "domain === undefined ? {} :", "false ? {} :"]],
  ["nobody need be subscribed to its alarms", (g) => assert.equal(g.all("TopicSubscription").length, 0),
    ["infra/settings.ts", "env.ALARM_EMAIL?.trim() || undefined", 'env.ALARM_EMAIL?.trim() || "somebody@example.com"']],
]);

test("prod can be removed by an operator who says so", async () => {
  assert.equal((await evaluate("prod", { env: { REMOVE_PROTECTED: "prod" } })).app.protect, false);
});

variant("the stack in another region", "prod", { AWS_REGION: "eu-central-1" }, [
  ["the edge's certificate is of us-east-1",
    (g) => assert.match(g.distribution.viewerCertificate.acmCertificateArn, /^arn:aws:acm:us-east-1:/),
    ["infra/edge.ts", 'settings.region === "us-east-1" ? certificate.arn : undefined', "certificate.arn"]],
  ["the gateway's certificate is of that region",
    (g) => assert.match(g.one("DomainName").domainNameConfiguration.certificateArn, /^arn:aws:acm:eu-central-1:/),
    ["infra/edge.ts", "certificateArn: certificate.arn", 'certificateArn: "arn:aws:acm:us-east-1:123456789012:certificate/0"']],
  ["the operator is subscribed to both topics",
    (g) => assert.deepEqual(g.all("TopicSubscription").map(({ name }) => name).sort(), ["AlarmsEmail", "HealthAlarmsEmail"]),
    ["infra/alarms.ts", "away ? alarmTopic(", "!away ? alarmTopic("]],
  ["the health alarm is where Route 53 keeps its metrics",
    (g) => assert.match(g.all("MetricAlarm").find(({ name }) => name === "Health").provider ?? "", /Virginia/),
    ["infra/alarms.ts", "away ? new aws.Provider(", "!away ? new aws.Provider("]],
  ["the second certificate finds the first one's validation record in place",
    (g) => assert.ok(g.all("Record").every(({ inputs }) => inputs.allowOverwrite === true)),
    ["infra/edge.ts", "override: true", "override: false"]],
]);

test("a missing variable stops the evaluation before anything is declared, and is named", async () => {
  const failed = await evaluate("prod", { env: { MONGODB_URI: "", API_KEYS: "", ALARM_EMAIL: "" } }).catch((error) => error);
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /ConfigurationError: MONGODB_URI is missing.*API_KEYS is missing.*ALARM_EMAIL is missing/);
});

test("a malformed secret stops the evaluation without being shown", async () => {
  const failed = await evaluate("prod", { env: { MONGODB_URI: "postgres://a-secret", API_KEYS: "a-secret" } }).catch((error) => error);
  assert.match(failed.stderr, /MONGODB_URI is not a MongoDB connection string.*API_KEYS has an entry that is not a UUID v4/);
  assert.doesNotMatch(failed.stderr, /a-secret/);
});

test("an invalid configuration fails with a message that names the place", async () => {
  const faults = [{ file: "infra/api.ts", from: 'api.route("$default"', to: 'api.route("EVERY /thing"' }];
  const failed = await evaluate("prod", { faults }).catch((error) => error);
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /Invalid method EVERY in route/);
});
