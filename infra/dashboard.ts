/** One page that answers: is it up, is it fast, are the sessions alive, do the jobs run. */
import { NAMESPACE } from "./alarms";
import { functionName } from "./function";

interface Shown {
  readonly fn: sst.aws.Function;
  readonly api: sst.aws.ApiGatewayV2;
}

export function createDashboard({ fn, api }: Shown) {
  const name = functionName($app.stage);
  const logGroup = fn.nodes.logGroup.apply((group) => group!.name);
  const body = $resolve([api.nodes.api.id, logGroup, aws.getRegionOutput().region]).apply(
    ([apiId, logGroup, region]) => {
      const gateway = ["ApiId", apiId, "Stage", "$default"];
      const ours = ["Function", name];
      const lambda = ["FunctionName", name];
      const graph = (title: string, metrics: unknown[][], more: object = {}) => ({
        type: "metric",
        width: 8,
        height: 6,
        properties: { title, region, period: 60, stat: "Sum", view: "timeSeries", metrics, ...more },
      });
      return JSON.stringify({
        widgets: [
          graph("Requests", [
            ["AWS/ApiGateway", "Count", ...gateway],
            ["AWS/ApiGateway", "4xx", ...gateway],
            ["AWS/ApiGateway", "5xx", ...gateway],
          ]),
          graph("Latency, ms", [
            ["AWS/ApiGateway", "Latency", ...gateway, { stat: "p50", label: "p50" }],
            ["AWS/ApiGateway", "Latency", ...gateway, { stat: "p95", label: "p95" }],
            [NAMESPACE, "HeartbeatLatency", ...ours, { stat: "p95", label: "heartbeat p95" }],
          ]),
          graph("Sessions", [
            [NAMESPACE, "ActiveSessions", ...ours, { stat: "Maximum" }],
            [NAMESPACE, "StalledSessions", ...ours, { stat: "Maximum" }],
          ]),
          graph("Health", [
            [NAMESPACE, "DatabaseUp", ...ours, { stat: "Minimum" }],
            [NAMESPACE, "BackgroundJobsUp", ...ours, { stat: "Minimum" }],
          ]),
          graph("Function", [
            ["AWS/Lambda", "Errors", ...lambda],
            ["AWS/Lambda", "Throttles", ...lambda],
            ["AWS/Lambda", "ConcurrentExecutions", ...lambda, { stat: "Maximum" }],
            [NAMESPACE, "ColdStart", ...ours],
          ]),
          graph("Errors logged", [[NAMESPACE, `ErrorLines-${$app.stage}`]]),
          {
            type: "log",
            width: 24,
            height: 6,
            properties: {
              title: "Warnings and errors",
              region,
              view: "table",
              query:
                `SOURCE '${logGroup}' | fields timestamp, level, message, context.endpoint, context.request_id ` +
                "| filter level in ['ERROR', 'WARN'] | sort @timestamp desc | limit 50",
            },
          },
        ],
      });
    },
  );
  return new aws.cloudwatch.Dashboard("Dashboard", { dashboardName: name, dashboardBody: body });
}
