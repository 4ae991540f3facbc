/** Who may take up whose work, with the real API to say so: put down, left behind, of others, or ended by somebody else. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import type { Session } from "../../src/api/client.js";
import { Refusal } from "../../src/orchestration/refusal.js";
import { CommandLine } from "../rig/commandLine.js";
import { Host } from "../rig/host.js";
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
  useHost,
} from "../rig/stage.js";

let silent: Session;

setStage();

beforeAll(async () => {
  silent = await fallingSilent("silent");
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
    useHost(new Host(backend.url, backend.key, "sleepy-machine"));
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
    const commandLine = new CommandLine(backend, host.workspace, ["resume", run.sessionId ?? ""], host.machineId);
    try {
      await begun("second");
      open("second");
      await begun("third");
      const by = (await sessionOf(orchestration)).recovered_by ?? "";
      await until("the API knows", async () =>
        (await backend.tasksOf(by)).some(({ task_name, status }) => task_name === "third" && status === "in_progress"),
      );
    } finally {
      await commandLine.kill();
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
