/**
 * The orchestrations of this window: begun from a plan, taken up from disk, or recovered from the API. Every way in
 * ends in `drive`, and none of them without the claim on the run.
 */
import { EventEmitter } from "node:events";
import { randomUUID } from "node:crypto";
import { type Api, ApiError, type Session } from "../api/client.js";
import type { Log } from "../log.js";
import type { Plan } from "../plan/plan.js";
import { endGroup, isAlive, isSelf } from "../processes.js";
import { isEnded, type Metadata } from "../tracking/record.js";
import type { Passage } from "../tracking/reporter.js";
import { type RunClaim, type RunStore, otherHost } from "../tracking/store.js";
import { Tracker } from "../tracking/tracker.js";
import { Handover } from "./handover.js";
import { Orchestration, type OrchestrationRecord, type Places, type Screen, type State } from "./orchestration.js";
import { GOODBYE, digestOf, titleOf } from "./outline.js";
import { NO_WORKSPACE, Ownership, isKept } from "./ownership.js";
import { ForAPerson, Refusal } from "./refusal.js";
import { history, newTask, putBack, reconstruct } from "./restore.js";

export interface Surroundings {
  readonly api: () => Api;
  readonly machineId: () => string;
  readonly heartbeatMs: () => number;
  readonly places: Places;
  readonly extensionVersion: string;
  readonly editorVersion: string;
  readonly log: Log;
  /** Opens a terminal for a run; its interruption and closing come back through the callbacks. */
  screen(title: string, interrupted: () => void, closed: () => void): Screen & { dispose(): void; show(): void };
}

interface OrchestrationsEvents {
  change: [];
  ended: [Orchestration, State];
  /** It paused by itself, for a person to decide. */
  held: [Orchestration, string];
  unauthorized: [ApiError];
  deleted: [Orchestration];
}

/** How long an ending is waited for before it is left to the background. */
const PATIENCE_MS = 5_000;

interface Running {
  readonly orchestration: Orchestration;
  readonly claim: RunClaim;
  readonly screen: { dispose(): void; show(): void };
  readonly done: Promise<void>;
}

export class Orchestrations extends EventEmitter<OrchestrationsEvents> {
  private readonly running = new Map<string, Running>();
  /** The projects of plans that are about to run. */
  private readonly starting = new Set<string>();
  /** Trackers that outlive their orchestration, until the API knows how it ended. */
  private readonly couriers = new Map<string, { readonly tracker: Tracker; readonly claim: RunClaim }>();
  private readonly handover: Handover;
  private readonly ownership: Ownership;

  constructor(
    private readonly store: RunStore<OrchestrationRecord>,
    private readonly around: Surroundings,
  ) {
    super();
    this.handover = new Handover(around);
    this.ownership = new Ownership(store, this.handover);
  }

  get all(): Orchestration[] {
    return [...this.running.values()].map(({ orchestration }) => orchestration);
  }

  /** Those that are at work or paused. */
  get live(): Orchestration[] {
    return this.all.filter((orchestration) => !orchestration.isOver);
  }

  find(runId: string): Orchestration | undefined {
    return this.running.get(runId)?.orchestration;
  }

  showTerminal(orchestration: Orchestration): void {
    this.running.get(orchestration.run.runId)?.screen.show();
  }

  /** Begins a plan; with `force`, also where another host may be at work on its project. Throws Refusal. */
  async start(plan: Plan, workspace: string, force = false): Promise<Orchestration> {
    const { projectId } = plan;
    if (this.starting.has(projectId) || this.live.some(({ run }) => run.projectId === projectId)) {
      throw new Refusal(`Project ${projectId} is being worked on in this window already.`);
    }
    // While the API is away, a start takes long enough for a person to try again.
    this.starting.add(projectId);
    try {
      return await this.begin(plan, workspace, force);
    } finally {
      this.starting.delete(projectId);
    }
  }

  /** Tracks work that somebody else carries out. Throws Refusal. */
  async trackOnly(projectId: string, title: string, metadata: Metadata): Promise<Tracker> {
    const run: OrchestrationRecord = {
      version: 1,
      runId: randomUUID(),
      title,
      projectId,
      machineId: this.around.machineId(),
      metadata: { title, ...metadata, ...this.handover.thisProcess(null) },
      status: "active",
      workspace: NO_WORKSPACE,
      tasks: [],
    };
    const claim = this.ownership.claim(run.runId);
    this.store.write(run);
    const tracker = this.track(run, claim);
    await this.establish(run, claim, tracker);
    this.reportInBackground(run, claim, tracker);
    return tracker;
  }

  /** Runs of these folders that nobody drives at the moment, and with which a person may want to go on. */
  leftBehind(workspaces: readonly string[]): OrchestrationRecord[] {
    return this.unfinished(workspaces).filter((run) => this.ownership.owner(run) === undefined);
  }

  /** Runs of these folders that another process drives, or may drive: on another host, it cannot be seen. */
  elsewhere(workspaces: readonly string[]): { readonly run: OrchestrationRecord; readonly host: string | undefined }[] {
    return this.unfinished(workspaces).flatMap((run) => {
      const owner = this.ownership.owner(run);
      return owner === undefined || isSelf(owner) ? [] : [{ run, host: otherHost(owner) }];
    });
  }

  /** Asks the API about the runs of these folders whose owners are on other hosts: one that has fallen silent has left its run behind. */
  async lookAtOtherHosts(workspaces: readonly string[]): Promise<void> {
    await this.ownership.lookAtOtherHosts(workspaces);
  }

  /** The sessions that this machine's runs stand for. */
  knownSessions(): string[] {
    return [...this.store.list(), ...this.all.map(({ run }) => run)].flatMap(({ sessionId }) => sessionId ?? []);
  }

  /** Gives up what was left behind: the API hears that it failed, and why. Throws Refusal. */
  async abandon(runId: string, reason: string): Promise<void> {
    const claim = await this.ownership.claimLeftBehind(runId);
    const run = this.store.read(runId);
    if (run === undefined || isKept(run)) {
      this.store.delete(runId);
      return;
    }
    if (run.child !== undefined) {
      await endGroup(run.child);
    }
    const tracker = this.track(run, claim);
    tracker.update(() => {
      putBack(run);
      run.status = "failed";
      run.errorMessage = reason;
      run.news = GOODBYE;
    });
    this.reportInBackground(run, claim, tracker);
    // The next session of the project would collide with this one.
    await tracker.settle(PATIENCE_MS);
  }

  /** Drops what is kept of a run that somebody has failed. Throws Refusal where somebody has gone on with it since. */
  giveUp(runId: string): void {
    const claim = this.ownership.claim(runId);
    const run = this.store.read(runId);
    if (run === undefined || isKept(run)) {
      this.store.delete(runId);
      return;
    }
    claim.release();
    throw new Refusal("It has been gone on with in the meantime.");
  }

  /** Sends what runs that have ended could not report while their window lived. */
  reportFinished(): void {
    for (const run of this.store.list()) {
      if (this.ownership.isForgotten(run)) {
        this.store.delete(run.runId);
        continue;
      }
      const isDriven = this.running.has(run.runId) || this.couriers.has(run.runId);
      // What another window drives is its own to report, also where its session was deleted and it works on.
      if (isDriven || this.ownership.owner(run) !== undefined || isKept(run)) {
        continue;
      }
      const isNobodys = run.workspace === NO_WORKSPACE;
      if (run.closed !== undefined || (isNobodys && !isEnded(run.status))) {
        // What was only tracked is for whoever carried it out to go on with; the API finds the session silent.
        this.store.delete(run.runId);
      } else if (isEnded(run.status)) {
        const claim = this.ownership.claimToReport(run);
        if (claim !== undefined) {
          // The window that reported it may have ended between a creation and its answer.
          run.unanswered = true;
          this.reportInBackground(run, claim, this.track(run, claim));
        }
      }
    }
  }

  /**
   * Takes up a run that this machine left behind. With `force`, also one that another living process drives: that
   * one stops. Where nobody has asked for it, one whose session somebody has failed is kept for a person to decide.
   * Throws Refusal, ForAPerson, or ApiError where the API must be asked first and does not answer.
   */
  async continue(runId: string, force = false, isAsked = true): Promise<Orchestration> {
    const courier = this.couriers.get(runId);
    if (courier !== undefined) {
      // This window itself is still reporting how the run ended before.
      courier.tracker.dispose();
      courier.claim.release();
      this.couriers.delete(runId);
    }
    const claim = force ? this.ownership.claim(runId, "anybody") : await this.ownership.claimLeftBehind(runId);
    try {
      const run = this.store.read(runId);
      if (run === undefined) {
        throw new Refusal("This orchestration is not here any more.");
      }
      if (!isAsked) {
        await this.checkNotFailed(run);
      }
      return await this.takeUp(run, claim, force);
    } catch (error) {
      claim.release();
      throw error;
    }
  }

  /** Recovers a session that the API knows, from whatever machine and tool it came. Throws Refusal or ApiError. */
  async recover(sessionId: string, workspace: string, force = false): Promise<Orchestration> {
    const local = this.store.list().find((run) => run.sessionId === sessionId);
    if (local !== undefined) {
      return await this.continue(local.runId, force);
    }
    // The session's id stands in for the run's until there is one, so that two windows do not recover it at once.
    const turn = this.ownership.claimTurn(sessionId, force);
    try {
      const api = this.around.api();
      const session = await api.session(sessionId);
      await this.handover.checkAbandoned(session, force);
      const run: OrchestrationRecord = {
        version: 1,
        runId: randomUUID(),
        title: titleOf(session),
        projectId: session.project_id,
        machineId: this.around.machineId(),
        metadata: session.metadata,
        sessionId,
        reported: "active",
        status: "active",
        workspace,
        tasks: reconstruct(session, await history(api, session)),
      };
      const claim = this.ownership.claim(run.runId);
      try {
        await this.handover.moveOn(run, session, force, () => {
          this.store.write(run);
        });
      } catch (error) {
        claim.release();
        throw error;
      }
      return this.drive(run, claim, this.track(run, claim));
    } finally {
      turn.release();
    }
  }

  /** Tries at once what waits for the API, after a change of address or key. */
  reconnect(): void {
    for (const { orchestration } of this.running.values()) {
      orchestration.tracker.reconnect();
    }
    this.couriers.forEach(({ tracker }) => {
      tracker.reconnect();
    });
  }

  /** Puts everything down within a few seconds, for the next window to pick up. */
  async suspend(patienceMs: number): Promise<void> {
    const putDown = async ({ tracker, claim }: { tracker: Tracker; claim: RunClaim }): Promise<void> => {
      await tracker.settle(patienceMs);
      tracker.dispose();
      claim.release();
    };
    await Promise.all([
      ...[...this.running.values()].map(async ({ orchestration, claim, done }) => {
        orchestration.suspend();
        await done;
        await putDown({ tracker: orchestration.tracker, claim });
      }),
      ...[...this.couriers.values()].map(putDown),
    ]);
  }

  private async begin(plan: Plan, workspace: string, force: boolean): Promise<Orchestration> {
    const runId = randomUUID();
    const run: OrchestrationRecord = {
      version: 1,
      runId,
      title: plan.name,
      projectId: plan.projectId,
      machineId: this.around.machineId(),
      metadata: {},
      status: "active",
      workspace,
      tasks: plan.tasks.map((task, index) => newTask(digestOf(task), task, index, plan.tasks.length)),
    };
    run.metadata = { ...this.handover.behind(run, null), workspace, plan_path: plan.path };
    const claim = this.ownership.claim(runId);
    this.store.write(run);
    const tracker = this.track(run, claim);
    await this.establish(run, claim, tracker, force);
    this.ownership.dropKept(run);
    return this.drive(run, claim, tracker);
  }

  /** Creates the session, or lets the work begin without one where the API cannot say. Throws Refusal. */
  private async establish(run: OrchestrationRecord, claim: RunClaim, tracker: Tracker, force = false): Promise<void> {
    let established = await tracker.establish();
    if (established.kind === "conflict" && (await this.hasSettled(established.existing))) {
      established = await tracker.establish();
    }
    if (established.kind === "conflict") {
      this.forget(run, claim, tracker);
      throw this.handover.inTheWay(established.existing);
    }
    if (established.kind === "unavailable") {
      const { error } = established;
      if (error.kind === "refused") {
        this.forget(run, claim, tracker);
        throw new Refusal(`The API refused the session: ${error.message}`);
      }
      try {
        this.ownership.checkAlone(run);
      } catch (error) {
        if (!force || !(error instanceof Refusal) || !error.canOverrule) {
          this.forget(run, claim, tracker);
          throw error;
        }
      }
      this.around.log.warn(`“${run.title}” begins untracked; what happens will be reported when the API answers.`);
    }
  }

  private async clearTheWay(existing: Session): Promise<Passage> {
    return (await this.hasSettled(existing)) ? "free" : await this.handover.clearTheWay(existing);
  }

  /** Whether a session was one of this window's that have ended, and the API now knows of that. */
  private async hasSettled({ session_id: id }: Session): Promise<boolean> {
    const courier = [...this.couriers.values()].find(({ tracker: { run } }) => run.sessionId === id);
    if (courier === undefined || !isEnded(courier.tracker.run.status)) {
      return false;
    }
    courier.tracker.reconnect();
    return await courier.tracker.settle(PATIENCE_MS);
  }

  /** Throws ForAPerson where the last session of a run that has not ended was marked as failed: by somebody else. */
  private async checkNotFailed(run: OrchestrationRecord): Promise<void> {
    if (run.sessionId === undefined) {
      return;
    }
    const session = await this.around
      .api()
      .session(run.sessionId)
      .then((first) => this.handover.lastOf(first))
      .catch((error: unknown) => {
        if (ApiError.from(error).status === 404) {
          return undefined;
        }
        throw error;
      });
    if (session?.status === "failed") {
      // As its own window would have kept it.
      const why = session.metadata["error_message"];
      const reason = `session ${session.session_id} was marked as failed by somebody else`;
      run.closed = "failed";
      run.errorMessage = typeof why === "string" ? `${reason}: ${why}` : reason;
      this.store.write(run);
      throw new ForAPerson(run.errorMessage);
    }
  }

  private async takeUp(run: OrchestrationRecord, claim: RunClaim, force: boolean): Promise<Orchestration> {
    const api = this.around.api();
    const wasPutDown = run.status === "paused" && !force;
    if (run.child !== undefined && isAlive(run.child) && !force) {
      this.around.log.warn(`Ending process ${String(run.child.pid)}, which a crash of “${run.title}” left behind.`);
      await endGroup(run.child);
    }
    // A crash may have come between a creation and its answer.
    run.unanswered = true;
    if (run.sessionId === undefined) {
      // The API has never heard of it: there is nobody else to agree with.
      if (!force) {
        this.ownership.checkAlone(run);
      }
      putBack(run);
      return this.drive(run, claim, this.track(run, claim));
    }
    const session = await api.session(run.sessionId).catch((error: unknown) => {
      const failure = ApiError.from(error);
      if (failure.status === 404) {
        this.store.delete(run.runId);
        throw new Refusal(`Session ${run.sessionId ?? ""} was deleted from the API.`);
      }
      throw failure;
    });
    if (isEnded(session.status as OrchestrationRecord["status"]) && session.recovered_by !== null) {
      const successor = await api.session(session.recovered_by).catch(() => undefined);
      // Unless it was this machine that recovered it, and crashed before it could go on, or before it was done.
      if (successor?.machine_id !== run.machineId || successor.status === "completed") {
        this.store.delete(run.runId);
        throw new Refusal(`“${run.title}” went on as session ${session.recovered_by}.`);
      }
    } else if (session.status === "completed") {
      this.store.delete(run.runId);
      throw new Refusal(`Session ${session.session_id} is completed.`);
    }
    if (wasPutDown && session.status === "paused") {
      putBack(run);
      await api.patchSession(session.session_id, { metadata: this.handover.behind(run, session.session_id) });
      return this.drive(run, claim, this.track(run, claim));
    }
    // What it had done and could not report any more must be known before the rest is handed to a successor.
    if (!force && session.status !== "failed" && session.recovered_by === null) {
      const messenger = this.track(run, claim);
      await messenger.deliver();
      messenger.dispose();
    }
    const { child } = run;
    await this.handover.moveOn(run, await api.session(session.session_id), force, () => {
      this.store.write(run);
    });
    if (force && child !== undefined) {
      // Only now: its window must find the session gone, or it would report the task as failed.
      await endGroup(child);
    }
    return this.drive(run, claim, this.track(run, claim));
  }

  private track(run: OrchestrationRecord, claim: RunClaim): Tracker & { readonly run: OrchestrationRecord } {
    const save = (): void => {
      // A window that was overruled must not write over its successor's state.
      if (!claim.held) {
        return;
      }
      try {
        this.store.write(run);
      } catch (error) {
        // A full disk, say: the work goes on, and only a crash would now lose what it has done.
        this.around.log.error(`The state of “${run.title}” cannot be kept: ${String(error)}`);
      }
    };
    const tracker = new Tracker(run, this.around.api, save, this.around.log, {
      heartbeatMs: this.around.heartbeatMs,
      clearTheWay: (existing) => this.clearTheWay(existing),
    });
    tracker.on("unauthorized", (error) => this.emit("unauthorized", error));
    return tracker as Tracker & { readonly run: OrchestrationRecord };
  }

  private drive(
    run: OrchestrationRecord,
    claim: RunClaim,
    tracker: Tracker & { readonly run: OrchestrationRecord },
  ): Orchestration {
    const screen = this.around.screen(
      run.title,
      () => {
        orchestration.pause(true);
      },
      () => {
        orchestration.pause(true);
      },
    );
    const orchestration = new Orchestration(tracker, claim, screen, this.around.places, this.around.log);
    tracker.on("deleted", () => this.emit("deleted", orchestration));
    orchestration.on("change", () => this.emit("change"));
    orchestration.on("held", (reason) => this.emit("held", orchestration, reason));
    this.running.get(run.runId)?.screen.dispose();
    const done = orchestration.carryOut().then((state) => {
      this.conclude(run, claim, tracker, state);
      this.emit("ended", orchestration, state);
      this.emit("change");
    });
    this.running.set(run.runId, { orchestration, claim, screen, done });
    this.emit("change");
    return orchestration;
  }

  private conclude(run: OrchestrationRecord, claim: RunClaim, tracker: Tracker, state: State): void {
    if (state === "replaced") {
      tracker.dispose();
      if (claim.held) {
        this.store.delete(run.runId);
      }
    } else if (state !== "suspended") {
      this.reportInBackground(run, claim, tracker);
    }
  }

  /** Keeps at it until the API knows how the run ended, then forgets the run. */
  private reportInBackground(run: OrchestrationRecord, claim: RunClaim, tracker: Tracker): void {
    this.couriers.set(run.runId, { tracker, claim });
    const finish = (): void => {
      if (run.closed === undefined) {
        return;
      }
      tracker.dispose();
      this.couriers.delete(run.runId);
      if (isKept(run)) {
        claim.release();
      } else if (claim.held) {
        this.store.delete(run.runId);
      }
    };
    tracker.on("settled", finish);
    tracker.start();
    finish();
  }

  private forget(run: OrchestrationRecord, claim: RunClaim, tracker: Tracker): void {
    tracker.dispose();
    claim.release();
    this.store.delete(run.runId);
  }

  private unfinished(workspaces: readonly string[]): OrchestrationRecord[] {
    return this.store.list().filter(
      (run) =>
        workspaces.includes(run.workspace) &&
        // Where it was failed by somebody else in this window, its notification has said so.
        (isKept(run) ? !this.running.has(run.runId) : run.closed === undefined && !isEnded(run.status)) &&
        !this.live.some((orchestration) => orchestration.run.runId === run.runId),
    );
  }
}
