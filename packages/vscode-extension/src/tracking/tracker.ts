/**
 * Keeps the API informed of one run: heartbeats on a fixed beat, and every change of the run's record until it is
 * acknowledged. One request is under way at a time, so that the API sees things in the order in which they happened.
 * The work being tracked never waits long for any of this, and never fails because of it.
 */
import { EventEmitter } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { type Api, ApiError, type Session } from "../api/client.js";
import type { Log } from "../log.js";
import { type RunRecord, type TaskRecord, nextStep } from "./record.js";
import { type Passage, type Replacement, Reporter, describe } from "./reporter.js";

interface TrackerEvents {
  /** The record, the connection or the last heartbeat is another one than before. */
  change: [];
  replaced: [Replacement];
  /** Another session of the same project is active on this machine: which one. */
  held: [string];
  /** Somebody else has ended the session, and nobody goes on with it. */
  endedFor: ["completed" | "failed", string];
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
  readonly heartbeatMs: () => number;
  /** The first wait between attempts; each further one doubles it. */
  readonly retryMs?: number;
  readonly longestRetryMs?: number;
  /** Sets aside a session that is in the way of this run's, where nothing is behind it any more. */
  readonly clearTheWay: (existing: Session) => Promise<Passage>;
}

/** PRD 4.3: "If session creation fails: Retry up to 3 times with exponential backoff". */
const CREATION_RETRIES = 3;
/** A timer of one second that comes this late: the machine was asleep, or the process stopped. */
const SLEPT_MS = 5_000;

export class Tracker extends EventEmitter<TrackerEvents> {
  connection: Connection = "unknown";
  lastHeartbeat: Date | undefined;

  private readonly reporter: Reporter;
  private heartbeatDue = false;
  private heartbeat: NodeJS.Timeout | undefined;
  private heartbeatMs = 0;
  private seenAt = Date.now();
  private watch: NodeJS.Timeout | undefined;
  private retry: NodeJS.Timeout | undefined;
  private pumping = false;
  private isOutdated = false;
  private failures = 0;
  private disposed = false;
  private started = false;

  constructor(
    readonly run: RunRecord,
    api: () => Api,
    private readonly save: (run: RunRecord) => void,
    private readonly log: Log,
    private readonly options: TrackerOptions,
  ) {
    super();
    this.reporter = new Reporter(run, {
      api,
      log,
      update: (change) => {
        this.update(change);
      },
      beaten: () => {
        this.noteSuccess();
        this.lastHeartbeat = new Date();
        this.emit("change");
      },
      replaced: (replacement) => {
        this.silence();
        this.emit("replaced", replacement);
      },
      deleted: () => this.emit("deleted"),
      held: (reason) => this.emit("held", reason),
      endedFor: (status, reason) => this.emit("endedFor", status, reason),
      clearTheWay: options.clearTheWay,
    });
  }

  /**
   * Creates the session: one attempt and up to three more. A conflict is for the caller to settle; an API that cannot
   * be reached, or refuses the key, does not keep the work from starting, and the session is created when it can be.
   */
  async establish(): Promise<Establishment> {
    for (let attempt = 0; ; attempt++) {
      try {
        const existing = await this.reporter.createSession();
        return existing === undefined ? { kind: "established" } : { kind: "conflict", existing };
      } catch (error) {
        const failure = ApiError.from(error);
        this.noteFailure(failure, "create the session");
        if (attempt >= CREATION_RETRIES || !failure.isTemporary) {
          return { kind: "unavailable", error: failure };
        }
        await delay(this.nextAttempt(failure, attempt));
      }
    }
  }

  /** Begins to heartbeat and to report. */
  start(): void {
    if (this.started) {
      return;
    }
    this.started = true;
    this.keepBeat();
    this.seenAt = Date.now();
    this.watch = setInterval(() => {
      this.lookAtClock();
    }, 1_000);
    this.pump();
  }

  /** Changes the record: written to disk before anything else happens, reported as soon as the API takes it. */
  update(change: (run: RunRecord) => void): void {
    change(this.run);
    this.save(this.run);
    this.emit("change");
    if (this.run.closed !== undefined) {
      this.silence();
    }
    if (this.started) {
      this.pump();
    }
  }

  /** Sends a heartbeat now rather than at the next beat. */
  beat(): void {
    this.heartbeatDue = true;
    this.pump();
  }

  /** Tries again at once, after a change of address, key or settings. */
  reconnect(): void {
    this.failures = 0;
    // What is under way still has the address and the key of before.
    this.isOutdated = this.pumping;
    if (this.started) {
      this.keepBeat();
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

  /** Resolves once the API has acknowledged a task's status, or does not answer, or the patience is over. */
  async acknowledged(task: TaskRecord, patienceMs: number): Promise<void> {
    const isSettled = (): boolean =>
      task.reported === task.status ||
      task.isRefused === true ||
      this.run.closed !== undefined ||
      this.connection === "offline" ||
      this.connection === "unauthorized";
    this.lookAtClock();
    if (isSettled()) {
      return;
    }
    await new Promise<void>((resolve) => {
      const look = (): void => {
        if (isSettled()) {
          finish();
        }
      };
      const finish = (): void => {
        clearTimeout(timer);
        this.off("change", look);
        resolve();
      };
      const timer = setTimeout(finish, patienceMs);
      this.on("change", look);
    });
  }

  dispose(): void {
    this.disposed = true;
    this.silence();
    clearTimeout(this.retry);
  }

  /** Reports all that is outstanding, without another attempt. Throws ApiError. */
  async deliver(): Promise<void> {
    while (!this.disposed) {
      const step = nextStep(this.run, this.heartbeatDue);
      if (step === undefined) {
        return;
      }
      if (step.kind === "heartbeat") {
        // Before the request: a beat that falls due while it is under way is another one.
        this.heartbeatDue = false;
      }
      try {
        await this.reporter.perform(step);
        this.noteSuccess();
      } catch (error) {
        const failure = ApiError.from(error);
        if (!(await this.reporter.isSettledByRefusal(step, failure))) {
          // A beat that did not get through is still due, and goes out with the next attempt.
          this.heartbeatDue ||= step.kind === "heartbeat" && failure.kind !== "refused";
          this.noteFailure(failure, describe(step));
          throw failure;
        }
      }
    }
  }

  /** Timers stand still while the machine sleeps: what happened meanwhile is to be known at once. */
  private lookAtClock(): void {
    const now = Date.now();
    const awayMs = now - this.seenAt;
    this.seenAt = now;
    if (awayMs > SLEPT_MS) {
      this.log.info(`This machine was away for ${String(Math.round(awayMs / 1_000))} s.`);
      // What was known of the API is old: nothing is begun on the strength of it.
      this.connect("unknown");
      this.beat();
    }
  }

  private keepBeat(): void {
    const heartbeatMs = this.options.heartbeatMs();
    if (this.run.closed !== undefined || this.disposed || heartbeatMs === this.heartbeatMs) {
      return;
    }
    this.heartbeatMs = heartbeatMs;
    clearInterval(this.heartbeat);
    this.heartbeat = setInterval(() => {
      this.beat();
    }, heartbeatMs);
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
      const isLeft = delivered && nextStep(this.run, this.heartbeatDue) !== undefined;
      if (isLeft || this.isOutdated) {
        this.isOutdated = false;
        this.pump();
      }
    });
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
        this.retry = setTimeout(
          () => {
            this.pump();
          },
          this.nextAttempt(failure, this.failures++),
        );
      }
      return false;
    }
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

  /** How long to wait after so many failures. */
  private nextAttempt(failure: ApiError, failures: number): number {
    const { retryMs = 1_000, longestRetryMs = 30_000 } = this.options;
    // Jitter, so that the windows of a whole office do not return to a restarted API in step.
    const backoff = Math.min(retryMs * 2 ** failures, longestRetryMs) * (0.8 + 0.4 * Math.random());
    const wait = Math.max(failure.retryAfterMs ?? 0, backoff);
    this.log.info(`The next attempt follows in ${(wait / 1_000).toFixed(1)} s.`);
    return wait;
  }
}
