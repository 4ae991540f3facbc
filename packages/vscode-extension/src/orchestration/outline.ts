/**
 * What sessions and tasks carry in their metadata, so that any successor can go on with them: another window, another
 * machine, or the command line, whose words these are (`claude_projects.outline`, `claude_projects.process`):
 *
 * - a session's `plan` holds the plan's name, the digests of its tasks in order, those that were done when the session
 *   began, the session for which that was written, and, where they fit, the tasks' definitions;
 * - a task's `plan` holds its own index and definition;
 * - a session's `process` names the process behind it, and `run` the run through all its sessions.
 */
import { createHash } from "node:crypto";
import { hostname } from "node:os";
import type { Session } from "../api/client.js";
import type { Command, TaskDefinition } from "../plan/plan.js";
import { type Presence, type ProcessIdentity, presence } from "../processes.js";
import type { Metadata } from "../tracking/record.js";

/** Of 64 KiB for all metadata. */
const ROOM_FOR_DEFINITIONS = 32 * 1024;
const DIGEST_LENGTH = 12;

/** The same for tasks that ask for the same work; the time that they are given does not count. */
export function digestOf({ name, prompt, command }: TaskDefinition): string {
  const work = JSON.stringify([name, prompt ?? null, command]);
  return createHash("sha256").update(work).digest("hex").slice(0, DIGEST_LENGTH);
}

export function planMetadata(
  name: string,
  tasks: readonly {
    readonly digest: string;
    readonly definition: TaskDefinition | undefined;
    readonly done: boolean;
  }[],
  sessionId: string | null,
): Metadata {
  const definitions = tasks.map(({ definition }) => definition ?? null);
  const fits = Buffer.byteLength(JSON.stringify(definitions)) <= ROOM_FOR_DEFINITIONS;
  return {
    name,
    digests: tasks.map(({ digest }) => digest),
    done: tasks
      .filter(({ done }) => done)
      .map(({ digest }) => digest)
      .sort(),
    session_id: sessionId,
    tasks: fits ? definitions : null,
  };
}

export interface Outline {
  readonly name: string;
  /** The session for which it was written; undefined: for the one that was created with it. */
  readonly sessionId: string | undefined;
  readonly digests: readonly string[];
  readonly done: ReadonlySet<string>;
  readonly definitions: ReadonlyMap<string, TaskDefinition>;
}

/** The plan in a session's metadata; undefined where there is none that can be read. */
export function outlineOf(metadata: Metadata): Outline | undefined {
  const plan = metadata["plan"];
  if (!isTable(plan) || typeof plan["name"] !== "string" || !isTexts(plan["digests"])) {
    return undefined;
  }
  const done = plan["done"];
  const tasks = Array.isArray(plan["tasks"]) ? plan["tasks"].map(asDefinition) : [];
  return {
    name: plan["name"],
    sessionId: typeof plan["session_id"] === "string" ? plan["session_id"] : undefined,
    digests: plan["digests"],
    done: new Set(isTexts(done) ? done : []),
    definitions: new Map(tasks.flatMap((task) => (task === undefined ? [] : [[digestOf(task), task] as const]))),
  };
}

export function taskMetadata(definition: TaskDefinition | undefined, index: number, of: number): Metadata {
  return { plan: { index, of, definition: definition ?? null } };
}

/** A task's place in its plan; last where its metadata does not say. */
export function indexOf(metadata: Metadata): number {
  const plan = metadata["plan"];
  return isTable(plan) && typeof plan["index"] === "number" ? plan["index"] : Number.MAX_SAFE_INTEGER;
}

export function definitionOf(metadata: Metadata): TaskDefinition | undefined {
  const plan = metadata["plan"];
  return isTable(plan) ? asDefinition(plan["definition"]) : undefined;
}

/** What people call a session's work. */
export function titleOf({ metadata, project_id }: Session): string {
  const title = metadata["title"];
  return outlineOf(metadata)?.name ?? (typeof title === "string" && title !== "" ? title : project_id);
}

/** The description of a process for the metadata of a session; null: of one that is being created. */
export function processMetadata(owner: ProcessIdentity, sessionId: string | null): Metadata {
  return { ...owner, hostname: hostname(), session_id: sessionId, ended: false };
}

/** The last word of a process that stops work on a session: it need not be seen to be known as gone. */
export const GOODBYE: Metadata = { process: { ended: true } };

/** Whether the process behind a session lives, as far as it can be seen from here. */
export function presenceBehind(session: Session): Presence {
  const owner = processOf(session);
  if (owner === undefined) {
    return "unseen";
  }
  const said = session.metadata["process"];
  return isTable(said) && said["ended"] === true ? "dead" : presence(owner);
}

/**
 * The process behind a session; undefined where none is named. A successor inherits its original's metadata, and for a
 * moment the description of a process that is not behind it: the description names the session that it is meant for,
 * except in a session that was created with it.
 */
export function processOf(session: Session): ProcessIdentity | undefined {
  const said = session.metadata["process"];
  if (!isTable(said)) {
    return undefined;
  }
  const { pid, started, place, session_id: meantFor } = said;
  const namesNone = meantFor === null || meantFor === undefined;
  if (meantFor !== session.session_id && !(namesNone && session.recovered_from === null)) {
    return undefined;
  }
  return typeof pid === "number" && typeof started === "string" && typeof place === "string"
    ? { pid, started, place }
    : undefined;
}

/** The host that the process behind a session says it is on. */
export function hostBehind(session: Session): string | undefined {
  const said = session.metadata["process"];
  const host = processOf(session) !== undefined && isTable(said) ? said["hostname"] : undefined;
  return typeof host === "string" ? host : undefined;
}

function asDefinition(value: unknown): TaskDefinition | undefined {
  if (!isTable(value) || typeof value["name"] !== "string" || !isCommand(value["command"])) {
    return undefined;
  }
  const { name, command, prompt, github_issue_id: issue, timeout_seconds: timeout } = value;
  return {
    name,
    command,
    ...(typeof prompt === "string" ? { prompt } : {}),
    ...(typeof issue === "string" ? { github_issue_id: issue } : {}),
    ...(typeof timeout === "number" ? { timeout_seconds: timeout } : {}),
  };
}

function isTable(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((part) => typeof part === "string");
}

function isCommand(value: unknown): value is Command {
  return typeof value === "string" || isTexts(value);
}
