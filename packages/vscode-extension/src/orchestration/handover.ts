/**
 * From one session to the next: what a session says of the process behind it, when it may be taken over, and how a run
 * goes on with a successor. A process that lives, or may live, is never robbed unless a person says so.
 */
import { hostname } from "node:os";
import { type Api, ApiError, type Session, type Task } from "../api/client.js";
import type { Log } from "../log.js";
import { announce } from "../machine.js";
import { self } from "../processes.js";
import { type Metadata, isEnded } from "../tracking/record.js";
import type { Passage } from "../tracking/reporter.js";
import { since } from "../words.js";
import type { OrchestrationRecord } from "./orchestration.js";
import { definitionOf, hostBehind, planMetadata, presenceBehind, processMetadata, processOf } from "./outline.js";
import { Refusal } from "./refusal.js";
import { doneBy, history, keyOf } from "./restore.js";

export interface HandoverSurroundings {
  readonly api: () => Api;
  readonly machineId: () => string;
  readonly extensionVersion: string;
  readonly editorVersion: string;
  readonly log: Log;
}

/** Each one means that somebody else changed something while this looked. */
const ROUNDS = 3;

export class Handover {
  constructor(private readonly around: HandoverSurroundings) {}

  /** What the metadata of a run's session says of its plan, and of who is behind it. */
  behind(run: OrchestrationRecord, sessionId: string | null): Metadata {
    const tasks = run.tasks.map(({ key, metadata, status }) => ({
      digest: key,
      definition: definitionOf(metadata),
      done: status === "completed",
    }));
    return {
      plan: planMetadata(run.title, tasks, sessionId),
      run: { id: run.runId },
      ...this.thisProcess(sessionId),
    };
  }

  /** The part of it that is true of work of any kind. */
  thisProcess(sessionId: string | null): Metadata {
    const { extensionVersion: version, editorVersion: editor } = this.around;
    return {
      process: processMetadata(self(), sessionId),
      client: { name: "vscode-extension", version, editor },
    };
  }

  /** Why a session of the same project is in the way. */
  inTheWay(existing: Session): Refusal {
    const { project_id: project } = existing;
    switch (presenceBehind(existing)) {
      case "alive":
        return new Refusal(`${nameOf(existing)} on this machine is at work on project ${project}.`, existing, true);
      case "dead":
        return new Refusal(`Project ${project} has an active session on this machine that was left behind.`, existing);
      case "unseen":
        return new Refusal(
          `Project ${project} has an active session on ${this.placeOf(existing)}, and whether anybody is at work on it cannot be seen.`,
          existing,
          true,
        );
    }
  }

  /** Throws Refusal where somebody may be at work on a session; `force` is a person's word that it may be taken. */
  async checkAbandoned(session: Session, force: boolean): Promise<void> {
    if (session.status === "completed") {
      throw new Refusal(
        session.recovered_by === null
          ? `Session ${session.session_id} is completed.`
          : `Session ${session.session_id} went on as ${session.recovered_by}.`,
      );
    }
    if (!force && session.status !== "failed") {
      await this.checkUnattended(session);
    }
  }

  private async checkUnattended(session: Session): Promise<void> {
    const presence = presenceBehind(session);
    if (presence === "dead") {
      return;
    }
    if (presence === "alive") {
      throw new Refusal(`${nameOf(session)} on this machine is still at work on it.`, session, true);
    }
    if (!(await this.isSilent(session))) {
      throw new Refusal(
        `It is ${session.status} on ${this.placeOf(session)}, with a heartbeat ${since(session.last_heartbeat)} ago, ` +
          "and its process cannot be seen from here.",
        session,
        true,
      );
    }
  }

  /**
   * Throws Refusal where somebody may be at work on the last of the sessions that this one led to. That one of them was
   * marked as failed says nothing of its process, which hears of that with its next heartbeat.
   */
  async checkSilence(sessionId: string): Promise<void> {
    const session = await this.lastOf(await this.around.api().session(sessionId));
    if (session.status !== "completed") {
      await this.checkUnattended(session);
    }
  }

  /** The last of the sessions that one led to. */
  async lastOf(session: Session): Promise<Session> {
    let last = session;
    while (last.recovered_by !== null) {
      last = await this.around.api().session(last.recovered_by);
    }
    return last;
  }

  /** A session that blocks the way of one that began while the API was away: one that nobody is behind gives way. */
  async clearTheWay(existing: Session): Promise<Passage> {
    const presence = presenceBehind(existing);
    if (presence === "alive") {
      return "held";
    }
    if (presence === "unseen" && !(await this.isSilent(existing))) {
      return "wait";
    }
    this.around.log.warn(`Session ${existing.session_id} is in the way, without a process, and is marked as stalled.`);
    await this.around.api().markStalled(existing.session_id);
    return "free";
  }

  /** The host that a session of this machine says it is on, where that is another one with the same home. */
  private placeOf(session: Session): string {
    const { machine_id: machine } = session;
    if (machine !== this.around.machineId()) {
      return machine;
    }
    const host = hostBehind(session);
    return host === undefined || host === hostname() ? "this machine" : host;
  }

  /** What shows of a process that cannot be seen from here: only its silence tells that it is gone. */
  private async isSilent(session: Session): Promise<boolean> {
    if (session.status === "stalled") {
      return true;
    }
    const health = await this.around.api().health(session.session_id);
    return health.time_since_heartbeat_ms > health.stall_threshold_ms;
  }

  /**
   * Lets a run go on with a new session on this machine, which recovers the one given or the last of its successors.
   * `keep` writes the run to disk, before the successor is told who is behind it: a crash in between is then one that
   * this machine can explain. Throws Refusal where somebody else may be at work on it, unless by `force`.
   */
  async moveOn(run: OrchestrationRecord, session: Session, force: boolean, keep: () => void): Promise<void> {
    const api = this.around.api();
    const { from, to: successor, tasks } = await this.succession(session, force);
    this.around.log.info(`Session ${from.session_id} goes on as ${successor.session_id}.`);
    const done = doneBy(from, await history(api, from));
    // The successor's tasks take the place of those that were not done.
    const carried = new Map(tasks.map((task) => [keyOf(task), task]));
    run.sessionId = successor.session_id;
    if (successor.status === "active") {
      run.reported = "active";
    } else {
      // Recovered before, by a window that crashed at this point.
      delete run.reported;
    }
    run.status = "active";
    delete run.child;
    delete run.errorMessage;
    delete run.news;
    delete run.closed;
    for (const task of run.tasks) {
      if (done.has(task.key)) {
        // By this run, or by whoever went on with it in the meantime.
        task.status = "completed";
        task.reported = "completed";
        delete task.errorMessage;
        delete task.news;
        continue;
      }
      if (task.status !== "completed") {
        task.status = "pending";
        delete task.errorMessage;
        delete task.news;
      }
      delete task.claimUnanswered;
      delete task.isRefused;
      const found = carried.get(task.key);
      if (found === undefined) {
        // The API never had it.
        delete task.taskId;
        delete task.reported;
      } else {
        task.taskId = found.task_id;
        task.reported = "pending";
      }
    }
    keep();
    await api.patchSession(successor.session_id, { metadata: this.behind(run, successor.session_id) });
  }

  /**
   * The last session of those that recovered the one given, in which nobody has begun to work, and what it recovers.
   * One in which somebody did, as `claude-projects resume` does, is itself one to be taken over.
   */
  private async succession(
    session: Session,
    force: boolean,
  ): Promise<{ readonly from: Session; readonly to: Session; readonly tasks: readonly Task[] }> {
    for (let from = session; ;) {
      const to = await this.succeed(from);
      if (to.machine_id !== this.around.machineId()) {
        throw new Refusal(`It went on as session ${to.session_id} on ${to.machine_id}.`);
      }
      const tasks = await this.around.api().tasks(to.session_id);
      const isUntouched = processOf(to) === undefined && tasks.every(({ status }) => status === "pending");
      if (isUntouched && !isEnded(to.status as OrchestrationRecord["status"])) {
        return { from, to, tasks };
      }
      await this.checkAbandoned(to, force);
      from = to;
    }
  }

  /** The session that recovers the one given: a new one, or the one that did so before. */
  private async succeed(session: Session): Promise<Session> {
    const { log, machineId } = this.around;
    const api = this.around.api();
    // A machine that slept for a few minutes counts as offline, and an offline one gets no recovered sessions.
    await announce(api, machineId(), log);
    for (let round = 1; ; round++) {
      if (!isEnded(session.status as OrchestrationRecord["status"])) {
        await api.markStalled(session.session_id);
      }
      try {
        return await api.recover(session.session_id, machineId());
      } catch (error) {
        // A heartbeat of its old process came in between, and made it active again.
        if (ApiError.from(error).status !== 400 || round === ROUNDS) {
          throw error;
        }
      }
    }
  }
}

function nameOf(session: Session): string {
  return `Process ${String(processOf(session)?.pid ?? "")}`;
}
