/** Orchestrations against the real API, without the editor around them: what a person cannot bring about by hand. */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import type { Session, Task } from "../../src/api/client.js";
import type { Orchestration } from "../../src/orchestration/orchestration.js";
import { Refusal } from "../../src/orchestration/refusal.js";
import type { TaskDefinition } from "../../src/plan/plan.js";
import { identify } from "../../src/processes.js";
import { trackedSession } from "../../src/publicApi.js";
import { BIN, Backend } from "../rig/backend.js";
import { Host } from "../rig/host.js";
import { LossyWay } from "../rig/lossy.js";
import { until } from "../rig/until.js";

let backend: Backend;
let host: Host;
/** Sessions that fall silent while the other tests run. */
let silent: Session;
let quiet: Session;
/** An event that nobody listens to here. */
const never = (): never => {
  throw new Error("nobody should listen");
};
/** Nobody listens there. */
const NOWHERE = "http://127.0.0.1:1";
let project = "";
let projects = 0;

beforeAll(async () => {
  // No scan marks anything here.
  backend = await Backend.start({ STALL_THRESHOLD_MS: "600000", SCHEDULER: "off" });
  silent = await foreign("silent");
  quiet = await foreign("quiet");
  for (const { session_id: id } of [silent, quiet]) {
    await backend.api().patchSession(id, { stall_threshold_ms: 10_000 });
  }
});

afterAll(async () => {
  await backend.stop();
});

beforeEach(() => {
  host = new Host(backend.url, backend.key);
  project = `project-${String(++projects)}`;
});

afterEach(async () => {
  await host.stop();
});

/** A task that says when it has begun, and goes on when the test has opened its gate. */
function gated(name: string, then = "", before = ""): TaskDefinition {
  return {
    name,
    command: `${before}echo $$ > begun-${name}; until [ -e open-${name} ]; do sleep 0.05; done; rm open-${name}; ${then}`,
  };
}

function open(name: string): void {
  writeFileSync(join(host.workspace, `open-${name}`), "");
}

/** The process of a task that has just begun. */
async function begun(name: string): Promise<number> {
  const path = join(host.workspace, `begun-${name}`);
  const pid = await until(`${name} has begun`, () => existsSync(path) && Number(readFileSync(path, "utf8")));
  rmSync(path);
  return pid;
}

function read(name: string): string {
  return readFileSync(join(host.workspace, name), "utf8").trim();
}

async function ended(orchestration: Orchestration): Promise<void> {
  await until("it is over", () => orchestration.isOver);
  await host.reported(orchestration);
}

async function sessionOf({ run }: Orchestration): Promise<Session> {
  return await backend.api().session(run.sessionId ?? "none");
}

async function tasksOf({ run }: Orchestration): Promise<Task[]> {
  return await backend.tasksOf(run.sessionId ?? "none");
}

/** A session with a task to do that no process says it is behind. */
async function foreign(projectId: string): Promise<Session> {
  const session = await backend.api().createSession({ project_id: projectId, machine_id: "this-machine" });
  await backend.api().createTask({
    session_id: session.session_id,
    project_id: projectId,
    task_name: "first",
    metadata: { plan: { index: 0, of: 1, definition: { name: "first", command: "true" } } },
  });
  return session;
}

describe("a task", () => {
  test("is claimed before it begins, and finds its session and itself in its environment", async () => {
    const command = "echo $CLAUDE_PROJECTS_SESSION_ID $CLAUDE_PROJECTS_TASK_ID > ids";
    const orchestration = await host.start(project, [{ name: "first", command }]);
    await ended(orchestration);
    const [task] = await tasksOf(orchestration);
    expect(read("ids")).toBe(`${task?.session_id ?? ""} ${task?.task_id ?? ""}`);
  });

  test("of Claude's fails where its report says so, whatever its exit code, and its answer is the reason", async () => {
    const report = { type: "result", is_error: true, result: "I could not log in", num_turns: 3, total_cost_usd: 0.25 };
    writeFileSync(join(host.workspace, "report.json"), JSON.stringify(report));
    const orchestration = await host.start(project, [{ name: "ask", command: "cat report.json" }]);
    await ended(orchestration);
    const [task] = await tasksOf(orchestration);
    expect(task).toMatchObject({ status: "failed", error_message: "claude reports an error\nI could not log in" });
    expect(task?.metadata).toMatchObject({ result: { exit_code: 0, claude: { num_turns: 3, total_cost_usd: 0.25 } } });
    expect(await sessionOf(orchestration)).toMatchObject({ status: "failed" });
  });

  test("of Claude's that went well is completed, with what it cost", async () => {
    const report = { type: "result", is_error: false, result: "Done.", session_id: "c", total_cost_usd: 0.5 };
    writeFileSync(join(host.workspace, "report.json"), JSON.stringify(report));
    const orchestration = await host.start(project, [{ name: "ask", command: "cat report.json" }]);
    await ended(orchestration);
    expect((await tasksOf(orchestration))[0]).toMatchObject({
      status: "completed",
      metadata: { result: { exit_code: 0, claude: { session_id: "c", total_cost_usd: 0.5 } } },
    });
    expect(host.screen.join("")).toContain("0.50 USD");
  });

  test("takes with it what it leaves running in its group before the next one begins", async () => {
    const orchestration = await host.start(project, [
      { name: "leaves", command: "sleep 600 & echo $! > straggler" },
      // A zombie is dead, however long whoever inherits it takes to notice.
      {
        name: "looks",
        command:
          "case $(cut -d' ' -f3 /proc/$(cat straggler)/stat) in ''|Z) echo gone;; *) echo lives;; esac > verdict",
      },
    ]);
    await ended(orchestration);
    expect(read("verdict")).toBe("gone");
    expect(identify(Number(read("straggler")))).toBeUndefined();
  });

  test("that fails by itself while a pause is waiting for it has failed", async () => {
    const orchestration = await host.start(project, [gated("first", "exit 3"), gated("second")]);
    await begun("first");
    orchestration.pause(false);
    open("first");
    await ended(orchestration);
    expect((await tasksOf(orchestration))[0]).toMatchObject({ status: "failed", error_message: "exit code 3" });
    expect(orchestration.state).toBe("failed");
  });

  test("that runs out of time has failed, although it ended with exit code 0 when it was told to end", async () => {
    const command = "trap 'exit 0' TERM; sleep 600 & wait";
    const orchestration = await host.start(project, [{ name: "slow", command, timeout_seconds: 0.5 }, gated("second")]);
    await ended(orchestration);
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["failed", "pending"]);
    expect((await tasksOf(orchestration))[0]?.error_message).toMatch(/^timed out after/);
    expect(orchestration.state).toBe("failed");
  });

  test("whose guard is killed is ended with it, before it counts as failed", async () => {
    const orchestration = await host.start(project, [gated("first")]);
    const shell = await begun("first");
    await until("it is known", () => orchestration.run.child);
    const guard = /^PPid:\t(\d+)$/m.exec(readFileSync(`/proc/${String(shell)}/status`, "utf8"))?.[1];
    process.kill(Number(guard), "SIGKILL");
    await until("it is over", () => orchestration.isOver);
    expect(identify(shell)).toBeUndefined();
    await host.reported(orchestration);
    expect((await tasksOf(orchestration))[0]).toMatchObject({
      status: "failed",
      error_message: "ended because the process that guards it was killed",
    });
  });

  test("that somebody else completed before it began is not begun", async () => {
    const orchestration = await host.start(project, [gated("first"), { name: "second", command: "touch ran" }]);
    await begun("first");
    const second = await until("the API has both", async () => (await tasksOf(orchestration))[1]);
    await backend.api().patchTask(second.task_id, { status: "completed" });
    open("first");
    await ended(orchestration);
    expect(orchestration.state).toBe("completed");
    expect(existsSync(join(host.workspace, "ran"))).toBe(false);
  });

  test("that is interrupted starts anew, although it ended with exit code 0", async () => {
    const orchestration = await host.start(project, [gated("first", "", "trap 'exit 0' INT; ")]);
    await begun("first");
    orchestration.pause(true);
    await until("it is paused", () => orchestration.state === "paused");
    await until("the API knows", async () => (await tasksOf(orchestration))[0]?.status === "blocked");
    orchestration.resume();
    await begun("first");
    open("first");
    await ended(orchestration);
    expect(orchestration.state).toBe("completed");
  });

  test("whose interruption is taken back before it has ended starts anew, and the plan goes on", async () => {
    const orchestration = await host.start(project, [
      gated("first", "", "trap 'until [ -e leave ]; do sleep 0.05; done; rm leave; exit 130' INT; "),
    ]);
    await begun("first");
    orchestration.pause(true);
    expect(orchestration.state).toBe("pausing");
    orchestration.resume();
    writeFileSync(join(host.workspace, "leave"), "");
    await begun("first");
    open("first");
    await ended(orchestration);
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["completed"]);
  });

  test("goes on when the state of its run cannot be kept", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    // In the way of what is to be written, as a full disk would be.
    const file = join(host.runs, `${orchestration.run.runId}.json`);
    rmSync(file);
    mkdirSync(join(file, "in-the-way"), { recursive: true });
    open("first");
    await begun("second");
    open("second");
    await until("it is over", () => orchestration.isOver);
    rmSync(file, { recursive: true });
    await host.reported(orchestration);
    expect(orchestration.state).toBe("completed");
    expect(host.log.join("\n")).toContain("cannot be kept");
  });
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

describe("a plan", () => {
  test("is begun once, however often a person asks before it has come to run", async () => {
    const starting = host.start(project, [gated("first")]);
    await expect(host.start(project, [gated("first")])).rejects.toThrow("is being worked on in this window already");
    const orchestration = await starting;
    await begun("first");
    open("first");
    await ended(orchestration);
    expect(await backend.sessionsOf(project)).toHaveLength(1);
  });
});

describe("a session of somebody else", () => {
  test("whose process cannot be seen is not taken while it heartbeats, unless a person says so", async () => {
    const { session_id: id } = await foreign(project);
    const refusal = await host.orchestrations.recover(id, host.workspace).catch((error: unknown) => error);
    expect(refusal).toBeInstanceOf(Refusal);
    expect(refusal).toMatchObject({ canOverrule: true, message: expect.stringContaining("cannot be seen") as string });
    expect(await backend.api().session(id)).toMatchObject({ status: "active" });

    await ended(await host.orchestrations.recover(id, host.workspace, true));
    expect(await backend.api().session(id)).toMatchObject({ status: "completed" });
  });

  test("that has fallen silent is taken, whether or not a scan has marked it yet", async () => {
    const { session_id: id } = silent;
    await until("it is silent", async () => (await backend.api().health(id)).is_stalled);
    expect(await backend.api().session(id)).toMatchObject({ status: "active" });
    await ended(await host.orchestrations.recover(id, host.workspace));
  });

  test("whose process has said goodbye is taken at once, and one that is in the way is named for what it is", async () => {
    const { session_id: id } = await foreign(project);
    await expect(host.start(project, [{ name: "mine", command: "true" }])).rejects.toMatchObject({
      canOverrule: true,
      message: expect.stringContaining("cannot be seen") as string,
    });
    const process = { pid: 1, started: "x", place: "y", session_id: id, ended: true };
    await backend.api().patchSession(id, { metadata: { process } });
    await expect(host.start(project, [{ name: "mine", command: "true" }])).rejects.toMatchObject({
      canOverrule: false,
      message: expect.stringContaining("left behind") as string,
    });
    await ended(await host.orchestrations.recover(id, host.workspace));
  });
});

describe("a run that was put down", () => {
  test("says goodbye, and is alive again when it is taken up", async () => {
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    await host.orchestrations.suspend(5_000);
    expect(await sessionOf(orchestration)).toMatchObject({ status: "paused", metadata: { process: { ended: true } } });
    const next = await host.orchestrations.continue(orchestration.run.runId);
    await begun("first");
    await until("the API knows", async () => (await sessionOf(next)).status === "active");
    expect((await sessionOf(next)).metadata).toMatchObject({ process: { pid: process.pid, ended: false } });
    open("first");
    await ended(next);
    expect((await sessionOf(next)).metadata).toMatchObject({ process: { ended: true } });
  });

  test("is taken up although its machine has counted as offline since, as it does after a night's sleep", async () => {
    const api = backend.api();
    host = new Host(backend.url, backend.key, "sleepy-machine");
    await api.registerMachine(host.machineId, host.machineId, {});
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    await host.orchestrations.suspend(5_000);
    await api.markStalled(orchestration.run.sessionId ?? "");
    const offline = await fetch(`${backend.url}/api/machines/${host.machineId}`, {
      method: "PATCH",
      headers: { "X-API-Key": backend.key, "Content-Type": "application/json" },
      body: JSON.stringify({ status: "offline" }),
    });
    expect(offline.ok).toBe(true);
    const next = await host.orchestrations.continue(orchestration.run.runId);
    await begun("first");
    open("first");
    await ended(next);
    expect((await sessionOf(next)).recovered_from).toBe((await backend.sessionsOf(project)).at(-1)?.session_id);
  });

  test("does not do again what the command line has done since, and goes on after it", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second"), gated("third")]);
    const { run } = orchestration;
    await begun("first");
    open("first");
    await begun("second");
    await host.orchestrations.suspend(5_000);
    const commandLine = spawn(join(BIN, "claude-projects"), ["resume", run.sessionId ?? ""], {
      cwd: host.workspace,
      env: {
        PATH: process.env["PATH"],
        HOME: host.workspace,
        CLAUDE_PROJECTS_URL: backend.url,
        CLAUDE_PROJECTS_API_KEY: backend.key,
        CLAUDE_PROJECTS_MACHINE_ID: host.machineId,
      },
      stdio: "ignore",
    });
    const over = new Promise((resolve) => commandLine.once("exit", resolve));
    try {
      await begun("second");
      open("second");
      await begun("third");
      const by = (await sessionOf(orchestration)).recovered_by ?? "";
      await until("the API knows", async () =>
        (await backend.tasksOf(by)).some(({ task_name, status }) => task_name === "third" && status === "in_progress"),
      );
    } finally {
      commandLine.kill("SIGKILL");
      await over;
    }
    const next = await host.orchestrations.continue(run.runId);
    await begun("third");
    open("third");
    await ended(next);
    expect(existsSync(join(host.workspace, "begun-second"))).toBe(false);
    expect((await tasksOf(next)).map(({ task_name, status }) => `${task_name} ${status}`)).toEqual(["third completed"]);
    const done = next.run.tasks.slice(0, 2).map(({ key }) => key);
    expect((await sessionOf(next)).metadata).toMatchObject({ plan: { done: done.toSorted() } });
  });

  test("tells its successor what it had done and could not report", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    const sessionId = orchestration.run.sessionId ?? "";
    await until("it is reported", async () => (await tasksOf(orchestration)).length === 2);
    host.url = NOWHERE;
    open("first");
    await begun("second");
    await host.orchestrations.suspend(0);
    host.url = backend.url;
    await backend.api().markFailed(sessionId, "given up by an operator");
    const next = await host.orchestrations.continue(orchestration.run.runId);
    await begun("second");
    open("second");
    await ended(next);
    expect(next.run.sessionId).not.toBe(sessionId);
    expect((await tasksOf(next)).map(({ task_name, status }) => `${task_name} ${status}`)).toEqual([
      "first completed",
      "second completed",
    ]);
  });
});

describe("a session that is created late", () => {
  /** A run of the project that has begun while the API was away. */
  async function untracked(task: TaskDefinition): Promise<Orchestration> {
    host.key = "not-the-key";
    const orchestration = await host.start(project, [task]);
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
    project = projectId;
    const orchestration = await untracked(gated("first"));
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

describe("a run with which nobody else goes on", () => {
  test("is paused again where it is resumed while another of its project is active", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    orchestration.pause(true);
    await until("the API knows", async () => (await sessionOf(orchestration)).status === "paused");
    const other = await foreign(project);
    orchestration.resume();
    await until(
      "it is held",
      () => orchestration.reason.includes(other.session_id) && orchestration.state === "paused",
    );
    expect(existsSync(join(host.runs, `${orchestration.run.runId}.json`))).toBe(true);
    await backend.api().patchSession(other.session_id, { status: "completed" });
    orchestration.resume();
    for (const name of ["first", "second"]) {
      await begun(name);
      open(name);
    }
    await ended(orchestration);
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["completed", "completed"]);
  });

  test("has failed where an operator says so, and is tried again without what it had done", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    await until("everything is reported", () => orchestration.tracker.isSettled);
    const sessionId = orchestration.run.sessionId ?? "";
    host.url = NOWHERE;
    open("first");
    await begun("second");
    await backend.api().markFailed(sessionId, "not tonight");
    host.url = backend.url;
    host.orchestrations.reconnect();
    await until("it is over", () => orchestration.isOver);
    expect(orchestration).toMatchObject({ state: "failed", reason: expect.stringContaining("not tonight") as string });
    host.orchestrations.reportFinished();
    const next = await host.orchestrations.recover(sessionId, host.workspace);
    await begun("second");
    open("second");
    await ended(next);
    expect((await tasksOf(next)).map(({ status }) => status)).toEqual(["completed", "completed"]);
  });

  test("keeps its record and its claim where its session was deleted, whatever other windows see", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    await until("everything is reported", () => orchestration.tracker.isSettled);
    await fetch(`${backend.url}/api/sessions/${orchestration.run.sessionId ?? ""}`, {
      method: "DELETE",
      headers: { "X-API-Key": backend.key },
    });
    orchestration.tracker.beat();
    await until("it is known", () => orchestration.run.closed === "deleted");
    new Host(backend.url, backend.key, host.machineId, host.directory).orchestrations.reportFinished();
    open("first");
    await begun("second");
    open("second");
    await until("it is over", () => orchestration.isOver);
    expect(orchestration.state).toBe("completed");
  });
});
