/**
 * What wakes somebody: errors, latency, health, database, jobs that no longer run (PRD 5.1, 5.3), and what calls for a
 * rollback (PRD 4). A rollback is a deployment, with its secrets and rights, so a person or a CI job that listens to the
 * topic does it; the alarm says so in its first words.
 */
import type { Edge } from "./edge";
import { functionName } from "./function";
import type { Settings } from "./settings";

/** The namespace and the dimension that aws.py writes its metrics under. */
export const NAMESPACE = "StateTrackingApi";

/** What a rollback trigger's description begins with; docs/DEPLOYMENT.md says how to roll back. */
const ROLL_BACK = "ROLL BACK: ";

interface Watched {
  readonly fn: sst.aws.Function;
  readonly api: sst.aws.ApiGatewayV2;
  readonly edge: Edge | undefined;
}

export function createAlarms(settings: Settings, { fn, api, edge }: Watched) {
  const topic = alarmTopic("Alarms", settings);
  const ours = { Function: functionName(settings.stage) };
  const gateway = { ApiId: api.nodes.api.id, Stage: "$default" };
  const lambda = { FunctionName: fn.name };

  const count = (name: string, pattern: string) =>
    new aws.cloudwatch.LogMetricFilter(name, {
      name: `${functionName(settings.stage)}-${name}`,
      logGroupName: fn.nodes.logGroup.apply((group) => group!.name),
      pattern,
      metricTransformation: { namespace: NAMESPACE, name: `${name}-${settings.stage}`, value: "1", defaultValue: "0" },
    });
  // A 500 that the server has answered is no error to Lambda: the log line is what tells.
  count("ErrorLines", '{ $.level = "ERROR" }');
  count("RefusedKeys", '{ $.message = "Authentication failed" }');

  const alarm = (name: string, description: string, args: Partial<aws.cloudwatch.MetricAlarmArgs>) =>
    new aws.cloudwatch.MetricAlarm(name, {
      name: `${functionName(settings.stage)}-${name}`,
      alarmDescription: description,
      comparisonOperator: "GreaterThanThreshold",
      evaluationPeriods: 1,
      treatMissingData: "notBreaching",
      alarmActions: [topic.arn],
      okActions: [topic.arn],
      ...args,
    });

  const errorRate = (period: number): Partial<aws.cloudwatch.MetricAlarmArgs> => ({
    threshold: 5,
    metricQueries: [
      { id: "errors", metric: { namespace: "AWS/ApiGateway", metricName: "5xx", dimensions: gateway, period, stat: "Sum" } },
      { id: "requests", metric: { namespace: "AWS/ApiGateway", metricName: "Count", dimensions: gateway, period, stat: "Sum" } },
      { id: "rate", expression: "IF(requests > 0, 100 * errors / requests, 0)", label: "5xx, percent", returnData: true },
    ],
  });
  alarm("ErrorRate", "More than 5 % of the requests of 5 minutes were answered with a 5xx.", errorRate(300));
  alarm("LastingErrorRate", `${ROLL_BACK}more than 5 % of the requests of 15 minutes were answered with a 5xx.`, errorRate(900));
  alarm("LoggedErrors", "Five or more ERROR lines were logged within 5 minutes.", {
    namespace: NAMESPACE,
    metricName: `ErrorLines-${settings.stage}`,
    statistic: "Sum",
    period: 300,
    threshold: 5,
    comparisonOperator: "GreaterThanOrEqualToThreshold",
  });
  alarm("FunctionErrors", "An invocation crashed or ran into its timeout.", {
    namespace: "AWS/Lambda",
    metricName: "Errors",
    dimensions: lambda,
    statistic: "Sum",
    period: 60,
    threshold: 0,
  });
  alarm("Throttles", "Lambda refused an invocation: the account's concurrency is used up.", {
    namespace: "AWS/Lambda",
    metricName: "Throttles",
    dimensions: lambda,
    statistic: "Sum",
    period: 60,
    threshold: 0,
  });
  alarm("Latency", "The slowest 5 % of the requests took more than a second for 10 minutes.", {
    namespace: "AWS/ApiGateway",
    metricName: "Latency",
    dimensions: gateway,
    extendedStatistic: "p95",
    period: 300,
    evaluationPeriods: 2,
    threshold: 1000,
  });
  const heartbeats = { namespace: NAMESPACE, metricName: "HeartbeatLatency", dimensions: ours, extendedStatistic: "p95" };
  alarm("HeartbeatLatency", "The slowest 5 % of the heartbeats took more than 500 ms for 10 minutes.", {
    ...heartbeats,
    period: 300,
    evaluationPeriods: 2,
    threshold: 500,
  });
  alarm("VerySlowHeartbeats", `${ROLL_BACK}the slowest 5 % of the heartbeats of 10 minutes took more than 2 seconds.`, {
    ...heartbeats,
    period: 600,
    threshold: 2000,
  });
  // A client with an old key tries once a minute; this many is somebody who guesses, or a key that was withdrawn too early.
  alarm("RefusedKeys", "A hundred requests or more of 5 minutes came with a missing or wrong key.", {
    namespace: NAMESPACE,
    metricName: `RefusedKeys-${settings.stage}`,
    statistic: "Sum",
    period: 300,
    threshold: 100,
    comparisonOperator: "GreaterThanOrEqualToThreshold",
  });

  // Written by the job report-health each minute: its silence is an alarm as well.
  const reported = {
    namespace: NAMESPACE,
    dimensions: ours,
    statistic: "Minimum",
    period: 60,
    threshold: 1,
    comparisonOperator: "LessThanThreshold",
    treatMissingData: "breaching",
  };
  alarm("Database", "The detailed health has reported a database error for 2 minutes, or nothing at all.", {
    ...reported,
    metricName: "DatabaseUp",
    evaluationPeriods: 2,
  });
  alarm("DatabaseMostlyAway", `${ROLL_BACK}the database could not be reached by more than half of the attempts of 5 minutes, or none was made.`, {
    ...reported,
    metricName: "DatabaseUp",
    statistic: "Average",
    period: 300,
    threshold: 0.5,
  });
  alarm("StaleJobs", "The background jobs have not run for a quarter of an hour.", {
    ...reported,
    metricName: "BackgroundJobsUp",
    evaluationPeriods: 5,
  });
  const noticed = { namespace: NAMESPACE, dimensions: ours, statistic: "Maximum", period: 60, threshold: 0 };
  alarm("ConsistencyViolated", `${ROLL_BACK}the hourly check has found stored data that contradicts itself.`, {
    ...noticed,
    metricName: "ConsistencyViolations",
  });
  alarm("SuspectedOutage", "Most sessions fell silent within the same minute: the fault is hardly theirs.", {
    ...noticed,
    metricName: "SuspectedOutage",
  });

  if (edge) watchFromOutside(settings, edge, topic);
  return topic;
}

/** Asks /health from several places of the world. Route 53 keeps its metrics in us-east-1 only, and so the alarm. */
function watchFromOutside(settings: Settings, edge: Edge, topic: aws.sns.Topic) {
  const check = new aws.route53.HealthCheck("HealthCheck", {
    type: "HTTPS",
    fqdn: edge.domain,
    port: 443,
    resourcePath: "/health",
    enableSni: true,
    requestInterval: 30,
    failureThreshold: 2,
  });

  const away = settings.region !== "us-east-1";
  const provider = away ? new aws.Provider("Virginia", { region: "us-east-1" }) : undefined;
  const target = away ? alarmTopic("HealthAlarms", settings, provider) : topic;
  const alarm = (name: string, alarmDescription: string, args: Partial<aws.cloudwatch.MetricAlarmArgs>) =>
    new aws.cloudwatch.MetricAlarm(
      name,
      {
        name: `${functionName(settings.stage)}-${name}`,
        alarmDescription,
        namespace: "AWS/Route53",
        metricName: "HealthCheckStatus",
        dimensions: { HealthCheckId: check.id },
        comparisonOperator: "LessThanThreshold",
        evaluationPeriods: 1,
        treatMissingData: "breaching",
        alarmActions: [target.arn],
        okActions: [target.arn],
        ...args,
      },
      { provider },
    );
  alarm("Health", "GET /health has not been answered with 200 for 2 minutes.", {
    statistic: "Minimum",
    period: 60,
    evaluationPeriods: 2,
    threshold: 1,
  });
  alarm("Uptime", `${ROLL_BACK}GET /health was answered with 200 for less than 95 % of an hour.`, {
    statistic: "Average",
    period: 3600,
    threshold: 0.95,
    // An hour that is just beginning has no data yet, and Health says already what is missing.
    treatMissingData: "ignore",
  });
}

function alarmTopic(name: string, settings: Settings, provider?: aws.Provider) {
  const topic = new aws.sns.Topic(name, { displayName: `state-tracking-api ${settings.stage}` }, { provider });
  if (settings.alarmEmail)
    new aws.sns.TopicSubscription(
      `${name}Email`,
      { topic: topic.arn, protocol: "email", endpoint: settings.alarmEmail },
      { provider },
    );
  return topic;
}
