/// <reference path="./.sst/platform/config.d.ts" />

// What is deployed is in infra/, a file a concern; docs/DEPLOYMENT.md says how.
export default $config({
  app(input) {
    const production = input.stage === "prod";
    return {
      name: "state-tracking-api",
      home: "aws",
      // `sst remove --stage prod` is refused unless the operator says so in the same breath.
      protect: production && process.env.REMOVE_PROTECTED !== "prod",
      removal: production ? "retain" : "remove",
      providers: {
        aws: {
          region: (process.env.AWS_REGION || "us-east-1") as "us-east-1",
          defaultTags: { tags: { project: "claude-projects", stage: input.stage ?? "" } },
        },
      },
    };
  },
  async run() {
    const { readSettings } = await import("./infra/settings");
    const { createFunction } = await import("./infra/function");
    const { createApi } = await import("./infra/api");
    const { createEdge } = await import("./infra/edge");
    const { createSchedules } = await import("./infra/schedules");
    const { createAlarms } = await import("./infra/alarms");
    const { createDashboard } = await import("./infra/dashboard");

    const settings = readSettings($app.stage, process.env);
    const fn = createFunction(settings);
    const api = createApi(settings, fn);
    const edge = createEdge(settings, api);
    createSchedules(fn);
    const alarms = createAlarms(settings, { fn, api, edge });
    const dashboard = createDashboard({ fn, api });

    return {
      url: edge?.url ?? api.nodes.api.apiEndpoint,
      endpoint: api.nodes.api.apiEndpoint,
      functionArn: fn.arn,
      logGroup: fn.nodes.logGroup.apply((group) => group!.name),
      accessLogGroup: api.nodes.logGroup.name,
      region: aws.getRegionOutput().region,
      dashboard: dashboard.dashboardName,
      alarmTopic: alarms.arn,
      release: settings.release,
    };
  },
});
