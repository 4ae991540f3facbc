/**
 * Brings the API up to date with one run, a request at a time, and makes sense of its refusals: an answer that was
 * lost, a session that somebody else goes on with, one that was deleted, a report that will never be taken. When to
 * ask, and what to do while nobody answers, is the tracker's part.
 */
import { type Api, ApiError, type Session } from "../api/client.js";
import type { Log } from "../log.js";
import { type RunRecord, type SessionStatus, type Step, type TaskRecord, isEnded } from "./record.js";

/** Why a run must stop: its session went on elsewhere. */
export interface Replacement {
  readonly message: string;
  readonly by?: string;
}

/** What becomes of a session that is in the way of this run's: it gave way, may yet do so, or is being worked on. */
export type Passage = "free" | "wait" | "held";

export interface ReporterSurroundings {
  readonly api: () => Api;
  readonly log: Log;
  /** Changes the record, and keeps the change. */
  update(change: (run: RunRecord) => void): void;
  /** The API has taken a heartbeat, or what counts as one. */
  beaten(): void;
  replaced(replacement: Replacement): void;
  deleted(): void;
  /** Another session of the same project is active on this machine. */
  held(reason: string): void;
  /** Somebody else has ended the session. */
  endedFor(status: "completed" | "failed", reason: string): void;
  /** Sets aside a session that is in the way of this run's, where nothing is behind it any more. */
  clearTheWay(existing: Session): Promise<Passage>;
}

/** The API's limit is a little higher. */
const LONGEST_MESSAGE = 32_000;

export class Reporter {
  constructor(
    private readonly run: RunRecord,
    private readonly around: ReporterSurroundings,
  ) {}

  /** Makes the request of one step, and notes in the record what came of it. Throws ApiError. */
  async perform(step: Step): Promise<void> {
    const { run, api } = this;
    switch (step.kind) {
      case "create-session": {
        const existing = await this.createSession();
        if (existing !== undefined) {
          await this.passBy(existing);
        }
        return;
      }
      case "heartbeat":
        await api.heartbeat(sessionId(run), step.currentTaskId);
        this.around.beaten();
        return;
      case "find-tasks":
        await this.findTasks();
        return;
      case "create-task":
        await this.createTask(step.task);
        return;
      case "patch-task":
        await this.patchTask(step.task);
        return;
      case "patch-session":
        await this.patchSession();
    }
  }

  /** Creates this run's session; returns the one that is in its way where there is one. Throws ApiError. */
  async createSession(): Promise<Session | undefined> {
    const { run, api } = this;
    try {
      const session = await this.creating(() =>
        api.createSession({
          project_id: run.projectId,
          machine_id: run.machineId,
          metadata: { ...run.metadata, client_token: run.runId },
        }),
      );
      this.adopt(session);
      return undefined;
    } catch (error) {
      const failure = ApiError.from(error);
      const existingId = failure.existingSessionId;
      if (failure.status !== 409 || existingId === undefined) {
        throw failure;
      }
      const existing = await api.session(existingId);
      if (existing.metadata["client_token"] !== run.runId) {
        return existing;
      }
      // Ours: it was created, and only the answer was lost.
      this.adopt(existing);
      return undefined;
    }
  }

  /**
   * Whether a refusal closes the matter: an answer that repeating the request will not change.
   * True where the next step may be taken at once.
   */
  async isSettledByRefusal(step: Step, failure: ApiError): Promise<boolean> {
    const { status } = failure;
    if (failure.kind !== "refused") {
      return false;
    }
    try {
      if (step.kind === "patch-task" && (status === 400 || status === 404)) {
        await this.takeTaskAsItIs(step.task, failure);
        return true;
      }
      const existingId = failure.existingSessionId;
      if (step.kind === "patch-session" && existingId !== undefined) {
        // A pause gave up the place of the active one, and it has been taken.
        if ((await this.around.clearTheWay(await this.api.session(existingId))) !== "free") {
          // At once: what it is at may take a while to stop, and to ask again in the meantime is of no use.
          this.around.update((run) => {
            run.status = "paused";
          });
          this.around.held(inTheWay(existingId));
        }
        return true;
      }
      if (this.run.sessionId !== undefined && (await this.takeSessionAsItIs(failure))) {
        return true;
      }
      if (step.kind === "create-task" && status === 400) {
        this.giveUp(step.task, failure);
        return true;
      }
    } catch (error) {
      this.around.log.debug(`Looking into a refusal: ${ApiError.from(error).message}`);
    }
    return false;
  }

  /** Throws where the way is not free yet: the session is created when it is, and the run's record kept until then. */
  private async passBy(existing: Session): Promise<void> {
    const passage = await this.around.clearTheWay(existing);
    if (passage === "free") {
      return;
    }
    const reason = inTheWay(existing.session_id);
    if (passage === "held") {
      this.around.held(reason);
    }
    throw new ApiError("unavailable", reason, 409);
  }

  private get api(): Api {
    return this.around.api();
  }

  private async createTask(task: TaskRecord): Promise<void> {
    const { run, api } = this;
    const created = await this.creating(() =>
      api.createTask({
        session_id: sessionId(run),
        project_id: run.projectId,
        task_name: task.name,
        ...(task.githubIssueId === undefined ? {} : { github_issue_id: task.githubIssueId }),
        metadata: { ...task.metadata, task_key: task.key },
      }),
    );
    this.around.update(() => {
      task.taskId = created.task_id;
      task.reported = "pending";
    });
  }

  private async patchTask(task: TaskRecord): Promise<void> {
    const { status, news } = task;
    try {
      await this.api.patchTask(taskId(task), {
        ...(status === task.reported ? {} : { status }),
        ...(status === "failed" ? { error_message: messageOf(task) } : {}),
        ...(news === undefined ? {} : { metadata: news }),
      });
    } catch (error) {
      task.claimUnanswered ||= status === "in_progress" && ApiError.from(error).mayHaveHappened;
      throw error;
    }
    this.around.update(() => {
      task.reported = status;
      if (task.news === news) {
        delete task.news;
      }
    });
  }

  private async patchSession(): Promise<void> {
    const { run, api } = this;
    const { status, news } = run;
    if (status === "failed") {
      await api.markFailed(sessionId(run), messageOf(run), news);
    } else {
      const { recovered_by: by } = await api.patchSession(sessionId(run), {
        ...(status === run.reported ? {} : { status }),
        ...(news === undefined ? {} : { metadata: news }),
      });
      if (by !== null) {
        // A recovered session is completed, so that to complete it is no change, and not refused.
        this.replaced({ message: `session ${by} goes on with it`, by });
        return;
      }
    }
    this.acknowledge(status, news);
  }

  private adopt(session: Session): void {
    this.around.log.info(`Session ${session.session_id} tracks “${this.run.title}”.`);
    this.around.beaten();
    this.around.update((run) => {
      run.sessionId = session.session_id;
      run.reported = session.status === "paused" ? "paused" : "active";
    });
  }

  /** Runs a creation; one that goes unanswered may have happened all the same, and is looked for before the next. */
  private async creating<T>(create: () => Promise<T>): Promise<T> {
    try {
      return await create();
    } catch (error) {
      if (ApiError.from(error).mayHaveHappened) {
        this.around.update((run) => {
          run.unanswered = true;
        });
      }
      throw error;
    }
  }

  private async findTasks(): Promise<void> {
    const found = new Map<unknown, { task_id: string; status: string }>();
    for (const task of await this.api.tasks(sessionId(this.run))) {
      found.set(task.metadata["task_key"], task);
    }
    this.around.update((run) => {
      run.unanswered = false;
      for (const task of run.tasks) {
        const known = found.get(task.key);
        if (task.taskId === undefined && known !== undefined) {
          task.taskId = known.task_id;
          task.reported = known.status as TaskRecord["status"];
        }
      }
    });
  }

  /** The API refused a task's change: an answer to the same change was lost before, or somebody else changed it. */
  private async takeTaskAsItIs(task: TaskRecord, failure: ApiError): Promise<void> {
    const status = failure.status === 404 ? undefined : (await this.api.task(taskId(task))).status;
    if (status === "in_progress" && task.status === "in_progress" && task.claimUnanswered !== true) {
      // A task is claimed once (PRD 3.1), and it was not by this run.
      this.replaced({ message: `another process is at work on task “${task.name}”` });
      return;
    }
    if (status === "completed" && task.status === "in_progress") {
      this.around.log.warn(`Task “${task.name}” was completed by another process.`);
      this.around.update(() => {
        task.status = "completed";
        task.reported = "completed";
        delete task.news;
      });
      return;
    }
    if (status !== task.status) {
      this.around.log.error(
        `The API keeps task “${task.name}” as ${status ?? "deleted"} although it is ${task.status}: ${failure.message}`,
      );
    }
    this.around.update(() => {
      task.reported = task.status;
      delete task.news;
    });
  }

  private async takeSessionAsItIs(failure: ApiError): Promise<boolean> {
    const session = await this.api.session(sessionId(this.run)).catch((error: unknown) => {
      if (ApiError.from(error).status === 404) {
        return undefined;
      }
      throw error;
    });
    if (session === undefined) {
      this.around.update((run) => {
        run.closed = "deleted";
      });
      this.around.log.error(`Session ${sessionId(this.run)} was deleted from the API: the work goes on untracked.`);
      this.around.deleted();
      return true;
    }
    if (session.status === this.run.status && isEnded(session.status) && session.recovered_by === null) {
      // What this run wanted to say; a recovered session is completed too, but by another.
      this.acknowledge(session.status, this.run.news);
      return true;
    }
    const by = session.recovered_by ?? failure.recoveredBy;
    if (by !== undefined) {
      this.replaced({ message: `session ${by} goes on with it`, by });
      return true;
    }
    if (session.status === "completed" || session.status === "failed") {
      this.endFor(session.status, session);
      return true;
    }
    if (failure.status === 409) {
      this.replaced({ message: failure.message });
      return true;
    }
    return false;
  }

  /** Nobody goes on with the session: it is over because somebody else, an operator for example, said so. */
  private endFor(status: "completed" | "failed", { session_id: id, metadata }: Session): void {
    const why = metadata["error_message"];
    const reason = `session ${id} was marked as ${status} by somebody else`;
    const wasOver = isEnded(this.run.status);
    this.around.update((run) => {
      run.closed = status === "failed" && !wasOver ? "failed" : "reported";
    });
    this.around.log.warn(`“${this.run.title}”: ${reason}.`);
    this.around.endedFor(status, typeof why === "string" && status === "failed" ? `${reason}: ${why}` : reason);
  }

  /** One task that the API will not have must not keep everything that comes after it from being reported. */
  private giveUp(task: TaskRecord, failure: ApiError): void {
    this.around.log.error(`The API does not take task “${task.name}”, and it is not reported: ${failure.message}`);
    this.around.update(() => {
      task.isRefused = true;
    });
  }

  private acknowledge(status: SessionStatus, news: RunRecord["news"]): void {
    this.around.update((run) => {
      run.reported = status;
      if (run.news === news) {
        delete run.news;
      }
      if (isEnded(status)) {
        run.closed = "reported";
      }
    });
  }

  private replaced(replacement: Replacement): void {
    this.around.update((run) => {
      run.closed = "replaced";
    });
    this.around.log.warn(`“${this.run.title}” goes on elsewhere: ${replacement.message}`);
    this.around.replaced(replacement);
  }
}

function inTheWay(sessionId: string): string {
  return `session ${sessionId} of the same project is active on this machine`;
}

/** What an attempt that failed was to do. */
export function describe(step: Step): string {
  switch (step.kind) {
    case "create-session":
      return "create the session";
    case "heartbeat":
      return "send a heartbeat";
    case "find-tasks":
      return "list the session's tasks";
    case "create-task":
      return `create task “${step.task.name}”`;
    case "patch-task":
      return `report task “${step.task.name}” as ${step.task.status}`;
    case "patch-session":
      return "report the session's status";
  }
}

/** Why something failed, in a form that the API takes: programs write anything, and cutting may split a character. */
function messageOf({ errorMessage }: { readonly errorMessage?: string }): string {
  const message = (errorMessage ?? "").replaceAll("\0", "").slice(0, LONGEST_MESSAGE).toWellFormed().trim();
  return message === "" ? "failed" : message;
}

function sessionId(run: RunRecord): string {
  if (run.sessionId === undefined) {
    throw new Error(`run ${run.runId} has no session yet`);
  }
  return run.sessionId;
}

function taskId(task: TaskRecord): string {
  if (task.taskId === undefined) {
    throw new Error(`task ${task.key} is not known to the API yet`);
  }
  return task.taskId;
}
