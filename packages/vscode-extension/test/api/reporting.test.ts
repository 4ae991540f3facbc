/** What the real API hears of a run, and how: on a way that loses answers, and where a session is created late. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test, vi } from "vitest";
import type { Session } from "../../src/api/client.js";
import type { Orchestration } from "../../src/orchestration/orchestration.js";
import type { TaskDefinition } from "../../src/plan/plan.js";
import { identify } from "../../src/processes.js";
import { trackedSession } from "../../src/publicApi.js";
import { Host } from "../rig/host.js";
import { LossyWay } from "../rig/lossy.js";
import { until } from "../rig/until.js";
import {
  NOWHERE,
  backend,
  begun,
  ended,
  fallingSilent,
  foreign,
  gated,
  host,
  open,
  project,
  sessionOf,
  setStage,
  tasksOf,
} from "../rig/stage.js";

/** An event that nobody listens to here. */
const never = (): never => {
  throw new Error("nobody should listen");
};
let quiet: Session;

setStage();

beforeAll(async () => {
  quiet = await fallingSilent("quiet");
});

describe("what is reported", () => {
  test("a heartbeat carries the current task, and follows the setting at once", async () => {
    host.heartbeatMs = 3_600_000;
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    await until("it is reported", async () => (await tasksOf(orchestration))[0]?.status === "in_progress");
    const sessionId = orchestration.run.sessionId ?? "";
    // Only a heartbeat can bring it back.
    await backend.api().patchSession(sessionId, { current_task_id: null });
    host.heartbeatMs = 100;
    host.orchestrations.reconnect();
    const taskId = (await tasksOf(orchestration))[0]?.task_id;
    await until(
      "a heartbeat has come",
      async () => (await backend.api().session(sessionId)).current_task_id === taskId,
    );
    open("first");
    await ended(orchestration);
  });

  test("a heartbeat that did not get through is sent again before the next one is due", async () => {
    host.heartbeatMs = 3_600_000;
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    await until("everything is reported", () => orchestration.tracker.isSettled);
    const sessionId = orchestration.run.sessionId ?? "";
    await backend.api().patchSession(sessionId, { current_task_id: null });
    host.url = NOWHERE;
    orchestration.tracker.beat();
    await until("it has failed", () => host.log.some((line) => line.includes("Could not send a heartbeat")));
    host.url = backend.url;
    await until("it has come", async () => (await backend.api().session(sessionId)).current_task_id !== null);
    open("first");
    await ended(orchestration);
  });

  test("nothing is begun after a sleep during which another machine took over, although the API was away", async () => {
    const orchestration = await host.start(project, [gated("first"), { name: "second", command: "touch ran" }]);
    await begun("first");
    await until("everything is reported", () => orchestration.tracker.isSettled);
    const sessionId = orchestration.run.sessionId ?? "";
    host.url = NOWHERE;
    orchestration.tracker.beat();
    await until("it is offline", () => orchestration.tracker.connection === "offline");
    await backend.api().markStalled(sessionId);
    await backend.api().recover(sessionId, "another-machine");
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 60_000 });
    try {
      open("first");
      // The network comes back only now.
      host.url = backend.url;
      await until("it is over", () => orchestration.isOver);
    } finally {
      vi.useRealTimers();
    }
    expect(orchestration.state).toBe("replaced");
    expect(existsSync(join(host.workspace, "ran"))).toBe(false);
  });

  test("answers that get lost neither double anything nor lose it", async () => {
    const lost = ["POST /api/sessions", "POST /api/tasks", "PATCH /api/tasks/ID", "PATCH /api/sessions/ID"];
    const way = await LossyWay.to(backend.url, lost);
    const far = new Host(way.url, backend.key);
    try {
      const orchestration = await far.start(project, [
        { name: "first", command: "true" },
        { name: "second", command: "true" },
      ]);
      await until("it is over", () => orchestration.isOver);
      await far.reported(orchestration);
      expect(way.lost.toSorted()).toEqual(lost.toSorted());
      expect(await backend.sessionsOf(project)).toHaveLength(1);
      expect(await sessionOf(orchestration)).toMatchObject({ status: "completed" });
      expect((await tasksOf(orchestration)).map(({ task_name, status }) => `${task_name} ${status}`)).toEqual([
        "first completed",
        "second completed",
      ]);
    } finally {
      await far.stop();
      await way.stop();
    }
  });

  test("a window that is closed while it waits for the answer to a creation leaves nothing to be created twice", async () => {
    const way = await LossyWay.to(backend.url, ["POST /api/tasks"], true);
    const closing = new Host(NOWHERE, backend.key);
    const next = new Host(backend.url, backend.key, closing.machineId, closing.directory);
    try {
      const orchestration = await closing.start(project, [{ name: "first", command: "true" }]);
      await until("it is over", () => orchestration.isOver);
      closing.url = way.url;
      await until("the task is created, and nobody told", () => {
        orchestration.tracker.reconnect();
        return way.lost.length === 1;
      });
      await closing.orchestrations.suspend(100);
      next.orchestrations.reportFinished();
      const session = await until("the session is completed", async () =>
        (await backend.sessionsOf(project)).find(({ status }) => status === "completed"),
      );
      expect(await backend.tasksOf(session.session_id)).toHaveLength(1);
    } finally {
      await next.stop();
      await closing.stop();
      await way.stop();
    }
  });

  test("a task that the API refuses, and a reason that no text may hold, do not keep the rest from it", async () => {
    const tracker = await host.orchestrations.trackOnly(project, "Tracked", {});
    const session = trackedSession(tracker, never);
    session.task(" ").complete();
    session.task("fine").fail(`a NUL \0 and half a character ${"🚀".slice(0, 1)}`);
    expect(await session.fail("")).toBe(true);
    expect(await backend.api().session(session.id ?? "")).toMatchObject({
      status: "failed",
      metadata: { error_message: "failed", process: { ended: true } },
    });
    const tasks = await backend.tasksOf(session.id ?? "");
    expect(tasks.map(({ task_name, error_message }) => [task_name, error_message])).toEqual([
      ["fine", "a NUL  and half a character \ufffd"],
    ]);
    expect(host.log.join("\n")).toMatch(/does not take task “ ”.*task_name/);
  });

  test("a session that was replaced is not said to be known as completed", async () => {
    const tracker = await host.orchestrations.trackOnly(project, "Tracked", {});
    const session = trackedSession(tracker, never);
    await backend.api().markStalled(session.id ?? "");
    await backend.api().recover(session.id ?? "", "another-machine");
    expect(await session.complete()).toBe(false);
  });
});

describe("a session that is created late", () => {
  /** A run of the project that has begun while the API was away. */
  async function untracked(task: TaskDefinition, projectId = project): Promise<Orchestration> {
    host.key = "not-the-key";
    const orchestration = await host.start(projectId, [task]);
    await begun(task.name);
    expect(orchestration.run.sessionId).toBeUndefined();
    return orchestration;
  }

  /** The API is back. */
  function reconnect(): void {
    host.key = backend.key;
    host.orchestrations.reconnect();
  }

  test("comes after the end of the run before it, which the API had still to hear of", async () => {
    const before = await host.start(project, [gated("before")]);
    await begun("before");
    host.key = "not-the-key";
    open("before");
    await until("it is over", () => before.isOver);
    const orchestration = await untracked(gated("first"));
    reconnect();
    await until("it has a session", () => orchestration.run.sessionId);
    open("first");
    await ended(orchestration);
    expect(orchestration.state).toBe("completed");
    expect((await backend.sessionsOf(project)).map(({ status }) => status)).toEqual(["completed", "completed"]);
  });

  test("waits for one of a process that cannot be seen, and the work does not", async () => {
    const { session_id: id } = await foreign(project);
    const orchestration = await untracked(gated("first"));
    reconnect();
    await until("it has met it", () => host.log.find((line) => line.includes(`session ${id} of the same project`)));
    expect(orchestration.state).toBe("running");
    open("first");
    await until("it is over", () => orchestration.isOver);
    await backend.api().patchSession(id, { status: "completed" });
    host.orchestrations.reconnect();
    await host.reported(orchestration);
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["completed"]);
  });

  test("takes the place of one that has been silent for too long", async () => {
    const { session_id: id, project_id: projectId } = quiet;
    await until("it is silent", async () => (await backend.api().health(id)).is_stalled);
    const orchestration = await untracked(gated("first"), projectId);
    reconnect();
    open("first");
    await ended(orchestration);
    expect(await backend.api().session(id)).toMatchObject({ status: "stalled" });
  });

  test("pauses its run where a living process is at work on the project, until that is over", async () => {
    const other = spawn("sleep", ["600"]);
    try {
      const process = await until("it runs", () => identify(other.pid ?? 0));
      await backend.api().createSession({ project_id: project, machine_id: host.machineId, metadata: { process } });
      const orchestration = await untracked(gated("first"));
      reconnect();
      await until("it is paused", () => orchestration.state === "paused");
      expect(orchestration.reason).toContain("of the same project is active on this machine");
      expect(existsSync(join(host.runs, `${orchestration.run.runId}.json`))).toBe(true);
      other.kill("SIGKILL");
      await until("it has ended", () => identify(other.pid ?? 0) === undefined);
      host.orchestrations.reconnect();
      await until("it has a session", () => orchestration.run.sessionId);
      orchestration.resume();
      await begun("first");
      open("first");
      await ended(orchestration);
      expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["completed"]);
    } finally {
      other.kill("SIGKILL");
    }
  });
});
