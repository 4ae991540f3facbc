/** What wakes somebody: errors, latency, health, database, jobs that no longer run (PRD 4, 5.1, 5.3). */
import type { Edge } from "./edge";
import { functionName } from "./function";
import type { Settings } from "./settings";

/** The namespace and the dimension that aws.py writes its metrics under. */
export const NAMESPACE = "StateTrackingApi";

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

  // A 500 that the server has answered is no error to Lambda: the log line is what tells.
  new aws.cloudwatch.LogMetricFilter("ErrorLines", {
    name: `${functionName(settings.stage)}-error-lines`,
    logGroupName: fn.nodes.logGroup.apply((group) => group!.name),
    pattern: '{ $.level = "ERROR" }',
    metricTransformation: { namespace: NAMESPACE, name: `ErrorLines-${settings.stage}`, value: "1", defaultValue: "0" },
  });

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

  alarm("ErrorRate", "More than 5 % of the requests of 5 minutes were answered with a 5xx.", {
    threshold: 5,
    metricQueries: [
      { id: "errors", metric: { namespace: "AWS/ApiGateway", metricName: "5xx", dimensions: gateway, period: 300, stat: "Sum" } },
      { id: "requests", metric: { namespace: "AWS/ApiGateway", metricName: "Count", dimensions: gateway, period: 300, stat: "Sum" } },
      { id: "rate", expression: "IF(requests > 0, 100 * errors / requests, 0)", label: "5xx, percent", returnData: true },
    ],
  });
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
  alarm("HeartbeatLatency", "The slowest 5 % of the heartbeats took more than 500 ms for 10 minutes.", {
    namespace: NAMESPACE,
    metricName: "HeartbeatLatency",
    dimensions: ours,
    extendedStatistic: "p95",
    period: 300,
    evaluationPeriods: 2,
    threshold: 500,
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
  alarm("StaleJobs", "The background jobs have not run for 10 minutes.", {
    ...reported,
    metricName: "BackgroundJobsUp",
    evaluationPeriods: 5,
  });

  if (edge) watchFromOutside(settings, edge, topic);
  return topic;
}

/** Asks /health from several places of the world. Route 53 keeps its metrics in us-east-1 only, and so the alarm. */
function watchFromOutside(settings: Settings, edge: Edge, topic: aws.sns.Topic) {
  const check = new aws.route53.HealthCheck("Health", {
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
  new aws.cloudwatch.MetricAlarm(
    "HealthAlarm",
    {
      name: `${functionName(settings.stage)}-Health`,
      alarmDescription: "GET /health has not been answered with 200 for 2 minutes.",
      namespace: "AWS/Route53",
      metricName: "HealthCheckStatus",
      dimensions: { HealthCheckId: check.id },
      statistic: "Minimum",
      period: 60,
      evaluationPeriods: 2,
      threshold: 1,
      comparisonOperator: "LessThanThreshold",
      treatMissingData: "breaching",
      alarmActions: [target.arn],
      okActions: [target.arn],
    },
    { provider },
  );
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
