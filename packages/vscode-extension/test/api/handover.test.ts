/** Who may take up whose work, with the real API to say so: put down, left behind, of others, or ended by somebody else. */
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, readdirSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import type { Session } from "../../src/api/client.js";
import type { Orchestration } from "../../src/orchestration/orchestration.js";
import { Recovery } from "../../src/orchestration/recovery.js";
import { ForAPerson, Refusal } from "../../src/orchestration/refusal.js";
import { sit } from "../faults/editor.js";
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
let failedAndSilent: Session;

setStage();

beforeAll(async () => {
  silent = await fallingSilent("silent");
  failedAndSilent = await fallingSilent("failed-and-silent");
  await backend.api().markFailed(failedAndSilent.session_id, "not tonight");
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
    useHost(new Host(backend.url, backend.key, "sleepy-machine", host.directory));
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

describe("a run that an operator has failed", () => {
  /** One of this project, in the middle of its first task. */
  async function failed(): Promise<string> {
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    await until("everything is reported", () => orchestration.tracker.isSettled);
    await backend.api().markFailed(orchestration.run.sessionId ?? "", "not tonight");
    orchestration.tracker.beat();
    await until("it is over", () => orchestration.run.closed === "failed" && orchestration.isOver);
    return orchestration.run.runId;
  }

  test("is offered by the next window until it is given up, begun anew, or too old", async () => {
    const next = new Host(backend.url, backend.key, host.machineId, host.directory);
    const offers = ({ orchestrations }: Host): string[] => {
      orchestrations.reportFinished();
      return orchestrations.leftBehind([host.workspace]).map(({ runId }) => runId);
    };
    const kept = (): string[] => readdirSync(host.runs);

    const first = await failed();
    // In its own window, a notification has said so.
    expect([offers(host), offers(next)]).toEqual([[], [first]]);
    next.orchestrations.giveUp(first);
    expect([offers(next), kept()]).toEqual([[], []]);

    expect(offers(next)).toEqual([]);
    const second = await failed();
    expect(offers(next)).toEqual([second]);
    await ended(await host.start(project, [{ name: "other", command: "true" }], "other.toml"));
    expect(offers(next)).toEqual([second]);
    await ended(await host.start(project, [{ name: "anew", command: "true" }]));
    expect([offers(next), kept()]).toEqual([[], []]);

    const third = await failed();
    expect(offers(next)).toEqual([third]);
    const monthAgo = new Date(Date.now() - 31 * 24 * 3_600_000);
    utimesSync(join(host.runs, `${third}.json`), monthAgo, monthAgo);
    expect([offers(next), kept()]).toEqual([[], []]);
  });
});

test("a run that was failed is not given up where another window has gone on with it meanwhile", async () => {
  const { run } = await host.start(project, [gated("first")]);
  await begun("first");
  await host.orchestrations.suspend(5_000);
  await backend.api().markFailed(run.sessionId ?? "", "not tonight");
  const next = new Host(backend.url, backend.key, host.machineId, host.directory);
  await expect(host.orchestrations.continue(run.runId, false, false)).rejects.toBeInstanceOf(ForAPerson);
  await next.orchestrations.continue(run.runId);
  expect(() => {
    host.orchestrations.giveUp(run.runId);
  }).toThrow("at work on it");
  await begun("first");
  await next.orchestrations.suspend(5_000);
  expect(() => {
    host.orchestrations.giveUp(run.runId);
  }).toThrow("gone on with in the meantime");
  expect(host.orchestrations.leftBehind([host.workspace]).map(({ runId }) => runId)).toEqual([run.runId]);
});

test("a run whose session somebody has failed since does not go on by itself, and is kept for a person", async () => {
  const { run } = await host.start(project, [gated("first"), gated("second")]);
  await begun("first");
  await host.orchestrations.suspend(5_000);
  await backend.api().markFailed(run.sessionId ?? "", "not tonight");
  const next = new Host(backend.url, backend.key, host.machineId, host.directory);
  await expect(next.orchestrations.continue(run.runId, false, false)).rejects.toBeInstanceOf(ForAPerson);
  expect(await backend.api().session(run.sessionId ?? "")).toMatchObject({ status: "failed", recovered_by: null });
  expect(next.orchestrations.leftBehind([host.workspace])).toMatchObject([
    { runId: run.runId, closed: "failed", errorMessage: expect.stringContaining("not tonight") as string },
  ]);
  const orchestration = await next.orchestrations.continue(run.runId);
  for (const name of ["first", "second"]) {
    await begun(name);
    open(name);
  }
  await until("it is over", () => orchestration.isOver);
  await next.reported(orchestration);
  expect(orchestration.state).toBe("completed");
});

describe("another window of this machine", () => {
  test("does not begin a plan of a project that is at work, although the API cannot say so", async () => {
    host.key = "not-the-key";
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    const second = new Host(backend.url, host.key, host.machineId, host.directory);
    await expect(second.start(project, [gated("first")])).rejects.toThrow(`at work on project ${project}`);
    expect(readdirSync(host.runs).filter((name) => name.endsWith(".json"))).toEqual([
      `${orchestration.run.runId}.json`,
    ]);
    host.key = backend.key;
    host.orchestrations.reconnect();
    open("first");
    await ended(orchestration);
    expect(await backend.sessionsOf(project)).toHaveLength(1);
  });
});

describe("a run of another host that shares the home directory", () => {
  const elsewhere = { place: "another system", hostname: "another-host" };
  let here: Host;
  const claimOf = ({ run }: Orchestration): string => join(host.runs, `${run.runId}.claim`);

  beforeEach(() => {
    here = new Host(backend.url, backend.key, host.machineId, host.directory);
  });

  afterEach(async () => {
    await here.stop();
  });

  /** A plan in its first task, as it looks from here: its process cannot be seen. */
  async function begunThere(): Promise<{ readonly orchestration: Orchestration; readonly sessionId: string }> {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    await until("everything is reported", () => orchestration.tracker.isSettled);
    const claim = claimOf(orchestration);
    const owner = JSON.parse(readFileSync(claim, "utf8")) as object;
    writeFileSync(claim, JSON.stringify({ ...owner, ...elsewhere }));
    const { session_id: sessionId, metadata } = await sessionOf(orchestration);
    await backend.api().patchSession(sessionId, {
      metadata: { process: { ...(metadata["process"] as object), ...elsewhere } },
    });
    return { orchestration, sessionId };
  }

  /** Which runs are offered here, as left behind and as at work elsewhere, once the API has been asked. */
  async function offers(): Promise<object> {
    await here.orchestrations.lookAtOtherHosts([host.workspace]);
    return {
      leftBehind: here.orchestrations.leftBehind([host.workspace]).map(({ runId }) => runId),
      elsewhere: here.orchestrations
        .elsewhere([host.workspace])
        .map(({ run, host: name }) => `${run.runId} ${name ?? ""}`),
    };
  }

  test("is not taken while it heartbeats, and is left behind once the API finds it silent", async () => {
    const { orchestration, sessionId } = await begunThere();
    const { runId } = orchestration.run;
    const refusal = { canOverrule: true, message: expect.stringContaining("It is active on another-host") as string };
    expect(await offers()).toEqual({ leftBehind: [], elsewhere: [`${runId} another-host`] });
    await expect(here.orchestrations.continue(runId)).rejects.toMatchObject(refusal);

    await backend.api().markStalled(sessionId);
    expect(await offers()).toEqual({ leftBehind: [runId], elsewhere: [] });
    // It had only slept.
    orchestration.tracker.beat();
    await until("it is active", async () => (await backend.api().session(sessionId)).status === "active");
    await expect(here.orchestrations.continue(runId)).rejects.toMatchObject(refusal);
    expect(orchestration.state).toBe("running");

    await backend.api().markStalled(sessionId);
    const next = await here.orchestrations.continue(runId);
    await until("the other one stops", () => orchestration.state === "replaced");
    for (const name of ["first", "second"]) {
      await begun(name);
      open(name);
    }
    await until("it is over", () => next.isOver);
    await here.reported(next);
    expect(await sessionOf(next)).toMatchObject({ status: "completed", recovered_from: sessionId });
  });

  test("is not taken because an operator has failed it, until it is silent too", async () => {
    const { orchestration, sessionId } = await begunThere();
    const { runId } = orchestration.run;
    await backend.api().markFailed(sessionId, "not tonight");
    expect(await offers()).toEqual({ leftBehind: [], elsewhere: [`${runId} another-host`] });
    await expect(here.orchestrations.continue(runId)).rejects.toMatchObject({
      canOverrule: true,
      message: expect.stringContaining("It is failed on another-host") as string,
    });
    expect(orchestration.state).toBe("running");

    const file = join(host.runs, `${runId}.json`);
    const run = JSON.parse(readFileSync(file, "utf8")) as object;
    writeFileSync(file, JSON.stringify({ ...run, sessionId: failedAndSilent.session_id }));
    await until("it is silent", async () => {
      const health = await backend.api().health(failedAndSilent.session_id);
      return health.time_since_heartbeat_ms > health.stall_threshold_ms;
    });
    expect(await offers()).toEqual({ leftBehind: [runId], elsewhere: [] });
  });

  test("stays what the API has last said of it while the API is away, and is none of another folder's window", async () => {
    const { orchestration, sessionId } = await begunThere();
    const leftBehind = { leftBehind: [orchestration.run.runId], elsewhere: [] };
    await backend.api().markStalled(sessionId);
    expect(await offers()).toEqual(leftBehind);
    here.url = NOWHERE;
    expect(await offers()).toEqual(leftBehind);
    const another = new Host(backend.url, backend.key, host.machineId, host.directory);
    await another.orchestrations.lookAtOtherHosts([join(host.workspace, "another-folder")]);
    expect(another.orchestrations.leftBehind([host.workspace])).toEqual([]);
  });

  test.each([
    ["has never heard", undefined],
    ["does not know any more", randomUUID()],
  ])("of which the API %s counts as left behind after a day without a word on disk", async (_, unknown) => {
    const { orchestration } = await begunThere();
    const { runId } = orchestration.run;
    const file = join(host.runs, `${runId}.json`);
    const run = JSON.parse(readFileSync(file, "utf8")) as object;
    writeFileSync(file, JSON.stringify({ ...run, sessionId: unknown }));
    const dayAgo = new Date(Date.now() - 25 * 3_600_000);
    utimesSync(file, dayAgo, dayAgo);
    expect(await offers()).toEqual({ leftBehind: [], elsewhere: [`${runId} another-host`] });
    await expect(here.orchestrations.continue(runId)).rejects.toMatchObject({ canOverrule: true });
    utimesSync(claimOf(orchestration), dayAgo, dayAgo);
    expect(await offers()).toEqual({ leftBehind: [runId], elsewhere: [] });
  });

  test("is in the way of its project while the API is away, unless a person says that it is not", async () => {
    await begunThere();
    here.key = "not-the-key";
    const plan = { path: "other.toml", projectId: project, name: "other", tasks: [{ name: "only", command: "true" }] };
    await expect(here.orchestrations.start(plan, host.workspace)).rejects.toMatchObject({
      canOverrule: true,
      message: expect.stringContaining("on another-host") as string,
    });
    const orchestration = await here.orchestrations.start(plan, host.workspace, true);
    await until("it is over", () => orchestration.isOver);
    expect(orchestration.state).toBe("completed");
  });

  test("is reported from here where it ended unheard, and its host has fallen silent", async () => {
    const { orchestration, sessionId } = await begunThere();
    host.url = NOWHERE;
    open("first");
    await begun("second");
    open("second");
    await until("it is over", () => orchestration.isOver);
    await here.orchestrations.lookAtOtherHosts([host.workspace]);
    here.orchestrations.reportFinished();
    expect(readFileSync(claimOf(orchestration), "utf8")).toContain("another-host");
    expect(await backend.api().session(sessionId)).toMatchObject({ status: "active" });

    await backend.api().markStalled(sessionId);
    await here.orchestrations.lookAtOtherHosts([host.workspace]);
    here.orchestrations.reportFinished();
    await until("the API knows", async () => (await backend.api().session(sessionId)).status === "completed");
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["completed", "completed"]);
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

  test("is found within minutes of falling silent, also where the clock was set back by a day", async () => {
    const questions: string[] = [];
    sit({
      folder: host.workspace,
      settings: {},
      statusBar: "",
      answer: (question) => {
        questions.push(question);
        return Promise.resolve(undefined);
      },
    });
    const recovery = new Recovery(host.orchestrations, {
      api: host.api,
      hasKey: () => Promise.resolve(true),
      machineId: () => host.machineId,
      wish: () => "ask",
      workspaces: () => [host.workspace],
      projects: () => Promise.resolve(new Set([project])),
      log: { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined },
    });
    vi.useFakeTimers({ toFake: ["Date", "performance"] });
    try {
      await recovery.look();
      const { session_id: id } = await foreign(project);
      await backend.api().markStalled(id);
      vi.advanceTimersByTime(61_000);
      vi.setSystemTime(Date.now() - 86_400_000);
      await recovery.look();
    } finally {
      vi.useRealTimers();
      recovery.dispose();
    }
    expect(questions).toHaveLength(1);
    expect(questions[0]).toContain(`“${project}” has been silent on this machine`);
  });
});
