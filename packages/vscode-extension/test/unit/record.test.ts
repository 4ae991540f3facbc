import { describe, expect, test } from "vitest";
import { type RunRecord, type TaskRecord, nextStep } from "../../src/tracking/record.js";

function run(changes: Partial<RunRecord> = {}): RunRecord {
  return {
    version: 1,
    runId: "r",
    title: "t",
    projectId: "p",
    machineId: "m",
    metadata: {},
    sessionId: "s",
    status: "active",
    reported: "active",
    tasks: [],
    ...changes,
  };
}

function task(key: string, changes: Partial<TaskRecord> = {}): TaskRecord {
  return { key, name: key, metadata: {}, status: "pending", ...changes };
}

/** Carries out steps as an API that takes everything would, and lists them. */
function steps(record: RunRecord): string[] {
  const taken: string[] = [];
  for (let step = nextStep(record, false); step !== undefined; step = nextStep(record, false)) {
    if (step.kind === "create-task") {
      step.task.taskId = step.task.key;
      step.task.reported = "pending";
      taken.push(`create ${step.task.key}`);
    } else if (step.kind === "patch-task") {
      step.task.reported = step.task.status;
      delete step.task.news;
      taken.push(`${step.task.key} ${step.task.status}`);
    } else if (step.kind === "patch-session") {
      record.reported = record.status;
      delete record.news;
      taken.push(`session ${record.status}`);
    } else {
      if (step.kind === "create-session") {
        record.sessionId = "s";
        record.reported = "active";
      }
      record.unanswered = false;
      taken.push(step.kind);
    }
  }
  return taken;
}

describe("what is reported next", () => {
  test("of a run that the API has missed altogether: its true end, without the ways that led there", () => {
    const record = run({
      status: "completed",
      tasks: [task("a", { status: "completed" }), task("b", { status: "failed", errorMessage: "x" })],
    });
    delete record.sessionId;
    delete record.reported;
    expect(steps(record)).toEqual([
      "create-session",
      "create a",
      "a completed",
      "create b",
      "b failed",
      "session completed",
    ]);
  });

  test("the task at work before those that only wait", () => {
    const record = run({ tasks: [task("a", { status: "in_progress" }), task("b"), task("c")] });
    expect(steps(record)).toEqual(["create a", "a in_progress", "create b", "create c"]);
  });

  test("a heartbeat before any backlog, with the current task that the API knows of", () => {
    const tasks = [task("a", { status: "in_progress", taskId: "A", reported: "in_progress" }), task("b")];
    expect(nextStep(run({ tasks }), true)).toEqual({ kind: "heartbeat", currentTaskId: "A" });
  });

  test("no current task while the API has not heard that it is in progress", () => {
    const tasks = [task("a", { status: "in_progress", taskId: "A", reported: "pending" })];
    expect(nextStep(run({ tasks }), true)).toEqual({ kind: "heartbeat", currentTaskId: null });
  });

  test("no heartbeat of a run that has ended", () => {
    expect(nextStep(run({ status: "failed" }), true)).toEqual({ kind: "patch-session" });
  });

  test("a look at what is there after a creation went unanswered", () => {
    expect(steps(run({ unanswered: true, tasks: [task("a")] }))).toEqual(["find-tasks", "create a"]);
  });

  test("an interrupted task before the pause, and the end of a pause before anything else", () => {
    const interrupted = task("a", { status: "blocked", taskId: "A", reported: "in_progress" });
    expect(steps(run({ status: "paused", tasks: [interrupted] }))).toEqual(["a blocked", "session paused"]);
    const resumed = task("a", { status: "in_progress", taskId: "A", reported: "blocked" });
    expect(steps(run({ reported: "paused", tasks: [resumed] }))).toEqual(["session active", "a in_progress"]);
  });

  test("a task that the API will not have is left out, and what comes after it is not", () => {
    const record = run({
      status: "completed",
      tasks: [task("a", { isRefused: true, status: "completed" }), task("b")],
    });
    expect(steps(record)).toEqual(["create b", "session completed"]);
  });

  test("news of the session on their own, or together with its end", () => {
    expect(steps(run({ news: { x: 1 } }))).toEqual(["session active"]);
    expect(steps(run({ news: { x: 1 }, status: "completed" }))).toEqual(["session completed"]);
  });

  test("nothing once the run is closed", () => {
    expect(steps(run({ closed: "replaced", status: "failed", tasks: [task("a")] }))).toEqual([]);
  });
});
