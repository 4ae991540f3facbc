/** The HTTP API in front of the function: one route, access logs, throttling. */
import { functionName } from "./function";
import type { Settings } from "./settings";

/** Integers unquoted, so that they can be compared in a query; `ip` is CloudFront's where there is a domain. */
const ACCESS_LOG_FORMAT =
  '{"requestTime":"$context.requestTime","requestId":"$context.requestId","httpMethod":"$context.httpMethod",' +
  '"path":"$context.path","routeKey":"$context.routeKey","protocol":"$context.protocol","status":$context.status,' +
  '"responseLength":$context.responseLength,"responseLatency":$context.responseLatency,' +
  '"integrationLatency":"$context.integration.latency","integrationError":"$context.integration.error",' +
  '"lambdaRequestId":"$context.integration.requestId","ip":"$context.identity.sourceIp",' +
  '"userAgent":"$context.identity.userAgent"}';

export function createApi(settings: Settings, fn: sst.aws.Function) {
  const api = new sst.aws.ApiGatewayV2("Api", {
    // The server answers preflights itself: the gateway's own CORS would override its headers and leave
    // X-Request-Id out of a preflight, and CORS_ORIGINS would have to be kept in two places.
    cors: false,
    accessLog: { retention: "1 month" },
    transform: {
      api: (args) => {
        args.description = `Claude Projects state tracking API, ${settings.stage}`;
        // With a domain of our own, the domain is the only way in.
        args.disableExecuteApiEndpoint = settings.domain !== undefined;
      },
      stage: (args) => {
        args.accessLogSettings = { destinationArn: accessLogArn(args), format: ACCESS_LOG_FORMAT };
        args.defaultRouteSettings = { detailedMetricsEnabled: true, throttlingBurstLimit: 200, throttlingRateLimit: 100 };
      },
      logGroup: (args) => {
        args.name = `/aws/vendedlogs/apis/${functionName(settings.stage)}`;
      },
    },
  });
  // OPTIONS included: the server's CORS answers it.
  api.route("$default", fn.arn);
  return api;
}

/** The destination that SST has already put there: only the format is ours. */
function accessLogArn(args: aws.apigatewayv2.StageArgs) {
  return $output(args.accessLogSettings).apply((settings) => settings!.destinationArn);
}
