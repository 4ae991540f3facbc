/**
 * What a file of tests against the API shares: the API itself, and for each test a fresh host and a project of its own.
 * Tasks wait at gates that the test opens.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import type { Session, Task } from "../../src/api/client.js";
import type { Orchestration } from "../../src/orchestration/orchestration.js";
import type { TaskDefinition } from "../../src/plan/plan.js";
import { Backend } from "./backend.js";
import { Host } from "./host.js";
import { until } from "./until.js";

export let backend: Backend;
export let host: Host;
export let project = "";
let projects = 0;

/** Nobody listens there. */
export const NOWHERE = "http://127.0.0.1:1";

/** Sets the stage for the tests of the file that calls it. */
export function setStage(): void {
  beforeAll(async () => {
    // No scan marks anything here.
    backend = await Backend.start({ STALL_THRESHOLD_MS: "600000", SCHEDULER: "off" });
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
}

/** Another one than the test began with. */
export function useHost(another: Host): void {
  host = another;
}

/** A task that says when it has begun, and goes on when the test has opened its gate. */
export function gated(name: string, then = "", before = ""): TaskDefinition {
  return {
    name,
    command: `${before}echo $$ > begun-${name}; until [ -e open-${name} ]; do sleep 0.05; done; rm open-${name}; ${then}`,
  };
}

export function open(name: string): void {
  writeFileSync(join(host.workspace, `open-${name}`), "");
}

/** What a shell has written into a file, which is empty for a moment. */
function wholeNumber(path: string): number | undefined {
  const written = readFileSync(path, "utf8");
  return written === "" ? undefined : Number(written);
}

/** The process of a task that has just begun. */
export async function begun(name: string): Promise<number> {
  const path = join(host.workspace, `begun-${name}`);
  const pid = await until(`${name} has begun`, () => existsSync(path) && wholeNumber(path));
  rmSync(path);
  return pid;
}

export function read(name: string): string {
  return readFileSync(join(host.workspace, name), "utf8").trim();
}

export async function ended(orchestration: Orchestration): Promise<void> {
  await until("it is over", () => orchestration.isOver);
  await host.reported(orchestration);
}

export async function sessionOf({ run }: Orchestration): Promise<Session> {
  return await backend.api().session(run.sessionId ?? "none");
}

export async function tasksOf({ run }: Orchestration): Promise<Task[]> {
  return await backend.tasksOf(run.sessionId ?? "none");
}

/** A session with a task to do that no process says it is behind. */
export async function foreign(projectId: string): Promise<Session> {
  const session = await backend.api().createSession({ project_id: projectId, machine_id: "this-machine" });
  await backend.api().createTask({
    session_id: session.session_id,
    project_id: projectId,
    task_name: "first",
    metadata: { plan: { index: 0, of: 1, definition: { name: "first", command: "true" } } },
  });
  return session;
}

/** One that falls silent while the tests before the one that needs it are at work. */
export async function fallingSilent(projectId: string): Promise<Session> {
  const session = await foreign(projectId);
  return await backend.api().patchSession(session.session_id, { stall_threshold_ms: 10_000 });
}
