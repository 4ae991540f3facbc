/** EventBridge runs the background jobs: nothing runs inside a function between two calls. */

/**
 * `job` is what the function's handler is given (packages/state-tracking-api, aws.py).
 * Detection runs each minute, the scheduler's finest step: the requirement is two minutes at most between two scans
 * (PRD 3.2), and EventBridge may be late by up to one.
 */
export const SCHEDULES = [
  { name: "DetectFailures", job: "detect-failures", schedule: "rate(1 minute)" },
  { name: "MarkMachinesOffline", job: "mark-machines-offline", schedule: "rate(1 minute)" },
  { name: "FailAbandoned", job: "fail-abandoned", schedule: "rate(10 minutes)" },
  { name: "Cleanup", job: "cleanup", schedule: "cron(0 2 * * ? *)" },
  { name: "CheckConsistency", job: "check-consistency", schedule: "rate(1 hour)" },
  { name: "ReportHealth", job: "report-health", schedule: "rate(1 minute)" },
] as const;

export function createSchedules(fn: sst.aws.Function) {
  return SCHEDULES.map(
    ({ name, job, schedule }) =>
      new sst.aws.CronV2(name, {
        function: fn.arn,
        schedule,
        timezone: "UTC",
        event: { job },
        retries: 0,
        transform: {
          schedule: (args) => {
            args.description = `state-tracking-api job ${job}`;
          },
        },
      }),
  );
}
