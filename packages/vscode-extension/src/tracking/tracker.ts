/**
 * Keeps the API informed of one run: heartbeats on a fixed beat, and every change of the run's record until it is
 * acknowledged. One request is under way at a time, so that the API sees things in the order in which they happened.
 * The work being tracked never waits for any of this, and never fails because of it.
 */
import { EventEmitter } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { type Api, ApiError, type Session } from "../api/client.js";
import type { Log } from "../log.js";
import { type RunRecord, type SessionStatus, type Step, type TaskRecord, isEnded, nextStep } from "./record.js";

/** Why a run must stop: its session went on elsewhere. */
export interface Replacement {
  readonly message: string;
  readonly by?: string;
}

interface TrackerEvents {
  /** The record, the connection or the last heartbeat is another one than before. */
  change: [];
  replaced: [Replacement];
  /** Somebody deleted the session: the work goes on, unseen. */
  deleted: [];
  unauthorized: [ApiError];
  /** Everything is acknowledged, or never will be. */
  settled: [];
}

export type Connection = "unknown" | "connected" | "offline" | "unauthorized";

export type Establishment =
  | { readonly kind: "established" }
  | { readonly kind: "conflict"; readonly existing: Session }
  | { readonly kind: "unavailable"; readonly error: ApiError };

export interface TrackerOptions {
  readonly heartbeatMs: number;
  /** The first wait between attempts; each further one doubles it. */
  readonly retryMs?: number;
  readonly longestRetryMs?: number;
  /** Whether a session that is in the way of this run's may be set aside because nothing is behind it any more. */
  readonly setAside?: (existing: Session) => Promise<boolean>;
}

/** PRD 4.3: "If session creation fails: Retry up to 3 times with exponential backoff". */
const CREATION_RETRIES = 3;
/** A timer of one second that comes this late: the machine was asleep, or the process stopped. */
const SLEPT_MS = 5_000;

export class Tracker extends EventEmitter<TrackerEvents> {
  connection: Connection = "unknown";
  lastHeartbeat: Date | undefined;

  private heartbeatDue = false;
  private heartbeat: NodeJS.Timeout | undefined;
  private watch: NodeJS.Timeout | undefined;
  private retry: NodeJS.Timeout | undefined;
  private pumping = false;
  private failures = 0;
  private disposed = false;
  private started = false;

  constructor(
    readonly run: RunRecord,
    private readonly currentApi: () => Api,
    private readonly save: (run: RunRecord) => void,
    private readonly log: Log,
    private readonly options: TrackerOptions,
  ) {
    super();
  }

  private get api(): Api {
    return this.currentApi();
  }

  /**
   * Creates the session: one attempt and up to three more. A conflict is for the caller to settle; an API that cannot
   * be reached, or refuses the key, does not keep the work from starting, and the session is created when it can be.
   */
  async establish(): Promise<Establishment> {
    for (let attempt = 0; ; attempt++) {
      try {
        const existing = await this.createSession();
        return existing === undefined ? { kind: "established" } : { kind: "conflict", existing };
      } catch (error) {
        const failure = ApiError.from(error);
        this.noteFailure(failure, "create the session");
        if (attempt >= CREATION_RETRIES || !failure.isTemporary) {
          return { kind: "unavailable", error: failure };
        }
        await delay(Math.max(failure.retryAfterMs ?? 0, this.backoff(attempt)));
      }
    }
  }

  /** Begins to heartbeat and to report. */
  start(): void {
    if (this.started) {
      return;
    }
    this.started = true;
    this.heartbeat = setInterval(() => {
      this.heartbeatDue = true;
      this.pump();
    }, this.options.heartbeatMs);
    // Timers stand still while the machine sleeps: what happened meanwhile is to be known at once.
    let seen = Date.now();
    this.watch = setInterval(() => {
      const now = Date.now();
      if (now - seen > SLEPT_MS) {
        this.log.info(`This machine was away for ${String(Math.round((now - seen) / 1_000))} s.`);
        this.beat();
      }
      seen = now;
    }, 1_000);
    this.pump();
  }

  /** Changes the record: written to disk before anything else happens, reported as soon as the API takes it. */
  update(change: (run: RunRecord) => void): void {
    change(this.run);
    this.save(this.run);
    this.emit("change");
    if (this.started) {
      this.pump();
    }
  }

  /** Sends a heartbeat now rather than at the next beat. */
  beat(): void {
    this.heartbeatDue = true;
    this.pump();
  }

  /** Tries again at once, after a change of address or key. */
  reconnect(): void {
    this.failures = 0;
    if (this.started) {
      this.pump();
    }
  }

  get isSettled(): boolean {
    return nextStep(this.run, false) === undefined;
  }

  /** Resolves once everything is acknowledged (true) or the patience is over (false). */
  async settle(patienceMs: number): Promise<boolean> {
    if (this.isSettled) {
      return true;
    }
    return await new Promise<boolean>((resolve) => {
      const finish = (): void => {
        clearTimeout(timer);
        this.off("settled", finish);
        resolve(this.isSettled);
      };
      const timer = setTimeout(finish, patienceMs);
      this.on("settled", finish);
      this.pump();
    });
  }

  dispose(): void {
    this.disposed = true;
    this.silence();
    clearTimeout(this.retry);
  }

  private silence(): void {
    clearInterval(this.heartbeat);
    clearInterval(this.watch);
  }

  private pump(): void {
    if (this.pumping || this.disposed) {
      return;
    }
    this.pumping = true;
    clearTimeout(this.retry);
    void this.report().then((delivered) => {
      this.pumping = false;
      // What changed in the last moment, after `report` had looked.
      if (delivered && nextStep(this.run, this.heartbeatDue) !== undefined) {
        this.pump();
      }
    });
  }

  /** Reports all that is outstanding, without heartbeats and without another attempt. Throws ApiError. */
  async deliver(): Promise<void> {
    while (!this.disposed) {
      const step = nextStep(this.run, this.heartbeatDue);
      if (step === undefined) {
        return;
      }
      try {
        await this.perform(step);
        this.noteSuccess();
      } catch (error) {
        const failure = ApiError.from(error);
        if (!(await this.isSettledByRefusal(step, failure))) {
          this.noteFailure(failure, describe(step));
          throw failure;
        }
      }
    }
  }

  /** Whether everything got through. */
  private async report(): Promise<boolean> {
    try {
      await this.deliver();
      this.emit("settled");
      return true;
    } catch (error) {
      const failure = ApiError.from(error);
      // A refused key is not asked again and again: the next heartbeat tries it, or `reconnect`.
      if (failure.kind !== "unauthorized" && !this.disposed) {
        const wait = Math.max(failure.retryAfterMs ?? 0, this.backoff(this.failures++));
        this.retry = setTimeout(() => {
          this.pump();
        }, wait);
      }
      return false;
    }
  }

  private async perform(step: Step): Promise<void> {
    const { run, api } = this;
    switch (step.kind) {
      case "create-session": {
        const existing = await this.createSession();
        if (existing !== undefined && !((await this.options.setAside?.(existing)) ?? false)) {
          this.replaced({
            message: `session ${existing.session_id} of the same project is active on this machine`,
            by: existing.session_id,
          });
        }
        return;
      }
      case "heartbeat":
        // Before the request: a beat that falls due while it is under way is another one.
        this.heartbeatDue = false;
        await api.heartbeat(sessionId(run), step.currentTaskId);
        this.lastHeartbeat = new Date();
        this.emit("change");
        return;
      case "find-tasks":
        await this.findTasks();
        return;
      case "create-task": {
        const { task } = step;
        const created = await this.creating(() =>
          api.createTask({
            session_id: sessionId(run),
            project_id: run.projectId,
            task_name: task.name,
            ...(task.githubIssueId === undefined ? {} : { github_issue_id: task.githubIssueId }),
            metadata: { ...task.metadata, task_key: task.key },
          }),
        );
        this.update(() => {
          task.taskId = created.task_id;
          task.reported = "pending";
        });
        return;
      }
      case "patch-task": {
        const { task } = step;
        const { status, news } = task;
        try {
          await api.patchTask(taskId(task), {
            ...(status === task.reported ? {} : { status }),
            ...(status === "failed" ? { error_message: task.errorMessage ?? "failed" } : {}),
            ...(news === undefined ? {} : { metadata: news }),
          });
        } catch (error) {
          task.claimUnanswered ||= status === "in_progress" && ApiError.from(error).mayHaveHappened;
          throw error;
        }
        this.update(() => {
          task.reported = status;
          if (task.news === news) {
            delete task.news;
          }
        });
        return;
      }
      case "patch-session": {
        const { status } = run;
        if (status === "failed") {
          await api.markFailed(sessionId(run), run.errorMessage ?? "failed");
        } else {
          await api.patchSession(sessionId(run), { status });
        }
        this.acknowledge(status);
      }
    }
  }

  /** Creates this run's session; returns the one that is in its way where there is one. */
  private async createSession(): Promise<Session | undefined> {
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

  private adopt(session: Session): void {
    this.log.info(`Session ${session.session_id} tracks “${this.run.title}”.`);
    this.noteSuccess();
    this.lastHeartbeat = new Date();
    this.update((run) => {
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
        this.run.unanswered = true;
        this.save(this.run);
      }
      throw error;
    }
  }

  private async findTasks(): Promise<void> {
    const found = new Map<unknown, { task_id: string; status: string }>();
    for (const task of await this.api.tasks(sessionId(this.run))) {
      found.set(task.metadata["task_key"], task);
    }
    this.update((run) => {
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

  /**
   * Whether a refusal closes the matter: an answer that repeating the request will not change.
   * True where the next step may be taken at once.
   */
  private async isSettledByRefusal(step: Step, failure: ApiError): Promise<boolean> {
    if (failure.kind !== "refused") {
      return false;
    }
    try {
      if (step.kind === "patch-task" && (failure.status === 400 || failure.status === 404)) {
        await this.takeTaskAsItIs(step.task, failure);
        return true;
      }
      if (this.run.sessionId !== undefined && failure.status !== undefined && failure.status < 500) {
        return await this.takeSessionAsItIs(failure);
      }
    } catch (error) {
      this.log.debug(`Looking into a refusal: ${ApiError.from(error).message}`);
    }
    return false;
  }

  /** The API refused a task's change: an answer to the same change was lost before, or somebody else changed it. */
  private async takeTaskAsItIs(task: TaskRecord, failure: ApiError): Promise<void> {
    const status = failure.status === 404 ? undefined : (await this.api.task(taskId(task))).status;
    if (status === "in_progress" && task.status === "in_progress" && task.claimUnanswered !== true) {
      // A task is claimed once (PRD 3.1), and it was not by this run.
      this.replaced({ message: `another process is at work on task “${task.name}”` });
      return;
    }
    if (status !== task.status) {
      this.log.error(
        `The API keeps task “${task.name}” as ${status ?? "deleted"} although it is ${task.status}: ${failure.message}`,
      );
    }
    this.update(() => {
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
      this.update((run) => {
        run.closed = "deleted";
      });
      this.log.error(`Session ${sessionId(this.run)} was deleted from the API: the work goes on untracked.`);
      this.emit("deleted");
      return true;
    }
    if (session.status === this.run.status && isEnded(session.status)) {
      // What this run wanted to say; a recovered session is completed too, but by another.
      if (session.recovered_by === null) {
        this.acknowledge(session.status);
        return true;
      }
    }
    const by = session.recovered_by ?? failure.recoveredBy ?? failure.existingSessionId;
    if (by !== undefined || isEnded(session.status as SessionStatus) || failure.status === 409) {
      const ended = isEnded(session.status as SessionStatus)
        ? `session ${session.session_id} has ended as ${session.status}`
        : failure.message;
      this.replaced({
        message: by === undefined ? ended : `session ${by} goes on with it`,
        ...(by === undefined ? {} : { by }),
      });
      return true;
    }
    return false;
  }

  private acknowledge(status: SessionStatus): void {
    this.update((run) => {
      run.reported = status;
      if (isEnded(status)) {
        run.closed = "reported";
        this.silence();
      }
    });
  }

  private replaced(replacement: Replacement): void {
    this.silence();
    this.update((run) => {
      run.closed = "replaced";
    });
    this.log.warn(`“${this.run.title}” goes on elsewhere: ${replacement.message}`);
    this.emit("replaced", replacement);
  }

  private noteSuccess(): void {
    if (this.connection === "offline") {
      this.log.info("The API answers again: what it missed is being sent.");
    }
    this.failures = 0;
    this.connect("connected");
  }

  private noteFailure(failure: ApiError, what: string): void {
    this.log.error(`Could not ${what}: ${failure.message}`);
    if (failure.kind !== "unauthorized") {
      this.connect("offline");
      return;
    }
    const known = this.connection === "unauthorized";
    this.connect("unauthorized");
    if (!known) {
      this.emit("unauthorized", failure);
    }
  }

  private connect(connection: Connection): void {
    if (this.connection !== connection) {
      this.connection = connection;
      this.emit("change");
    }
  }

  private backoff(attempt: number): number {
    const { retryMs = 1_000, longestRetryMs = 30_000 } = this.options;
    // Jitter, so that the windows of a whole office do not return to a restarted API in step.
    return Math.min(retryMs * 2 ** attempt, longestRetryMs) * (0.8 + 0.4 * Math.random());
  }
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

function describe(step: Step): string {
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
