/**
 * Finds what was left behind: by a window of this machine that crashed or was closed, by the command line, or by
 * another machine that has fallen silent. Another process that lives is never robbed, unless a person says so.
 */
import * as vscode from "vscode";
import { type Api, ApiError, type Session } from "../api/client.js";
import type { Log } from "../log.js";
import type { LeftBehind } from "../settings.js";
import { since } from "../words.js";
import type { OrchestrationRecord } from "./orchestration.js";
import type { Orchestrations } from "./orchestrations.js";
import { isKept } from "./ownership.js";
import { ForAPerson, Refusal } from "./refusal.js";
import { presenceBehind, titleOf } from "./outline.js";

/** While another process holds a run of this folder, or the API is awaited: how often to look again. */
const SOON_MS = 2_000;
/** How often to ask the API about sessions that fell silent. */
const LATER_MS = 60_000;
/** A window that reloads leaves its old process alive for a moment, five seconds at most; it is no news. */
const PATIENCE_WITH_OWNERS_MS = 6_000;

export interface RecoverySurroundings {
  readonly api: () => Api;
  readonly hasKey: () => Promise<boolean>;
  readonly machineId: () => string;
  readonly wish: () => LeftBehind;
  /** The folders of this window. */
  readonly workspaces: () => readonly string[];
  /** The projects that this window's plans belong to. */
  readonly projects: () => Promise<ReadonlySet<string>>;
  readonly log: Log;
}

export class Recovery implements vscode.Disposable {
  private readonly offered = new Set<string>();
  /** Runs that a person, or the setting, wants to go on as soon as that is possible. */
  private readonly wanted = new Set<string>();
  private readonly firstSeenElsewhere = new Map<string, number>();
  private timer: NodeJS.Timeout | undefined;
  /** By the time that has passed, and not by the clock: that may be set back. */
  private askedApiAt = Number.NEGATIVE_INFINITY;
  private looking = false;
  private disposed = false;

  constructor(
    private readonly orchestrations: Orchestrations,
    private readonly around: RecoverySurroundings,
  ) {}

  dispose(): void {
    this.disposed = true;
    clearTimeout(this.timer);
  }

  /** Looks now, and from then on as often as there is reason to. */
  async look(): Promise<void> {
    if (this.looking || this.disposed) {
      return;
    }
    this.looking = true;
    clearTimeout(this.timer);
    try {
      this.orchestrations.reportFinished();
      await this.lookHere();
      if (performance.now() - this.askedApiAt >= LATER_MS) {
        this.askedApiAt = performance.now();
        await this.lookAtApi();
      }
    } catch (error) {
      this.around.log.debug(`Looking for what was left behind: ${String(error)}`);
    } finally {
      this.looking = false;
      const soon = this.wanted.size > 0 || this.orchestrations.elsewhere(this.around.workspaces()).length > 0;
      this.lookIn(soon ? SOON_MS : LATER_MS);
    }
  }

  private lookIn(milliseconds: number): void {
    clearTimeout(this.timer);
    if (!this.disposed) {
      this.timer = setTimeout(() => void this.look(), milliseconds);
    }
  }

  /** Takes up a run of this machine, and says what came of it. */
  async continue(run: OrchestrationRecord, force = false, isAsked = true): Promise<void> {
    this.offered.add(run.runId);
    try {
      this.orchestrations.showTerminal(await this.orchestrations.continue(run.runId, force, isAsked));
      this.wanted.delete(run.runId);
    } catch (error) {
      if (error instanceof ForAPerson) {
        this.wanted.delete(run.runId);
        this.around.log.warn(`“${run.title}” does not go on by itself: ${error.message}`);
        // As what it is now.
        const kept = this.orchestrations.leftBehind(this.around.workspaces()).find(({ runId }) => runId === run.runId);
        if (kept !== undefined) {
          void this.offer(kept);
        }
        return;
      }
      const failure = error instanceof Refusal ? error : ApiError.from(error);
      if (failure instanceof Refusal || failure.kind === "refused") {
        // Asking again would get the same answer.
        this.wanted.delete(run.runId);
        this.around.log.warn(`“${run.title}” is not continued: ${failure.message}`);
        const actions = failure instanceof Refusal && failure.canOverrule && !force ? ["Take Over"] : [];
        void vscode.window
          .showWarningMessage(`“${run.title}” is not continued: ${failure.message}`, ...actions)
          .then(async (answer) => {
            if (answer !== undefined) {
              await this.continue(run, true);
            }
          });
        return;
      }
      if (failure.kind === "unauthorized") {
        this.orchestrations.emit("unauthorized", failure);
      }
      this.around.log.warn(`“${run.title}” waits for the API before it goes on: ${failure.message}`);
      if (!this.wanted.has(run.runId)) {
        this.wanted.add(run.runId);
        void vscode.window.showInformationMessage(
          `“${run.title}” will go on as soon as the API has confirmed that nobody else took it over. ` +
            `At the moment: ${failure.message}.`,
        );
        this.lookIn(SOON_MS);
      }
    }
  }

  private async lookHere(): Promise<void> {
    const workspaces = this.around.workspaces();
    for (const run of this.orchestrations.leftBehind(workspaces)) {
      if (this.wanted.has(run.runId)) {
        // Asked for, but who asked may not know what has become of it since.
        await this.continue(run, false, isKept(run));
      } else if (!this.offered.has(run.runId)) {
        this.offered.add(run.runId);
        this.around.log.info(`“${run.title}” ${fate(run)}.`);
        const wish = this.around.wish();
        // What a person has paused, or failed, is for a person to resume.
        if (wish === "continue" && run.isPausedByPerson !== true && !isKept(run)) {
          await this.continue(run, false, false);
        } else if (wish !== "leave") {
          void this.offer(run);
        }
      }
    }
    const now = performance.now();
    for (const { run, host } of this.orchestrations.elsewhere(workspaces)) {
      const firstSeen = this.firstSeenElsewhere.get(run.runId) ?? now;
      this.firstSeenElsewhere.set(run.runId, firstSeen);
      if (now - firstSeen >= PATIENCE_WITH_OWNERS_MS && !this.offered.has(`elsewhere:${run.runId}`)) {
        this.offered.add(`elsewhere:${run.runId}`);
        void this.offerTakeover(run, host);
      }
    }
  }

  private async offer(run: OrchestrationRecord): Promise<void> {
    const [goOn, leave] = isKept(run) ? ["Try Again", "Give Up"] : ["Continue", "Not Now"];
    const answer = await vscode.window.showInformationMessage(`“${run.title}” ${fate(run)}.`, goOn, leave);
    if (answer === goOn) {
      await this.continue(run);
    } else if (answer === "Give Up") {
      try {
        this.orchestrations.giveUp(run.runId);
      } catch (error) {
        const why = error instanceof Refusal ? error.message : String(error);
        void vscode.window.showWarningMessage(`“${run.title}” is not given up: ${why}`);
      }
    }
  }

  private async offerTakeover(run: OrchestrationRecord, host: string | undefined): Promise<void> {
    const answer = await vscode.window.showInformationMessage(
      host === undefined
        ? `“${run.title}” of this folder is at work in another window, or in one that was closed and lives on.`
        : `“${run.title}” of this folder may be at work on ${host}: its process cannot be seen from here.`,
      "Take Over",
      "Leave It There",
    );
    if (answer === "Take Over") {
      await this.continue(run, true);
    }
  }

  private async lookAtApi(): Promise<void> {
    if (!(await this.around.hasKey())) {
      return;
    }
    await this.orchestrations.lookAtOtherHosts(this.around.workspaces());
    // What they have left behind.
    await this.lookHere();
    if (this.around.wish() === "leave") {
      return;
    }
    const projects = await this.around.projects();
    if (projects.size === 0) {
      return;
    }
    for (const session of await this.abandoned(projects)) {
      if (!this.offered.has(session.session_id) && !this.isDisposed()) {
        this.offered.add(session.session_id);
        void this.offerSession(session);
      }
    }
  }

  /** Sessions of these projects without anybody behind them, those excepted that this machine's runs stand for. */
  private async abandoned(projects: ReadonlySet<string>): Promise<Session[]> {
    const api = this.around.api();
    const known = new Set(this.orchestrations.knownSessions());
    const here = await api.sessions({ machine_id: this.around.machineId(), status: "active" });
    const dead = here.filter((session) => presenceBehind(session) === "dead");
    const silent = await Promise.all(
      (await api.stalledSessions())
        .filter(({ project_id, session_id }) => projects.has(project_id) && !known.has(session_id))
        .map(({ session_id }) => api.session(session_id)),
    );
    const found = new Map([...dead, ...silent].map((session) => [session.session_id, session]));
    return [...found.values()].filter(
      (session) =>
        projects.has(session.project_id) && !known.has(session.session_id) && presenceBehind(session) !== "alive",
    );
  }

  private async offerSession(session: Session): Promise<void> {
    const where = session.machine_id === this.around.machineId() ? "on this machine" : `on ${session.machine_id}`;
    const silence = since(session.last_heartbeat);
    this.around.log.info(`Session ${session.session_id} ${where} has been silent for ${silence}.`);
    const answer = await vscode.window.showInformationMessage(
      `“${titleOf(session)}” has been silent ${where} for ${silence}. Continue it in this window?`,
      "Continue Here",
      "Not Now",
    );
    if (answer === "Continue Here") {
      await vscode.commands.executeCommand("claudeProjects.recover", session.session_id);
    }
  }

  private isDisposed(): boolean {
    return this.disposed;
  }
}

/** What became of a run with which nobody goes on. */
function fate(run: OrchestrationRecord): string {
  if (!isKept(run)) {
    return `was left behind at ${progress(run)}`;
  }
  const [why = ""] = (run.errorMessage ?? "its session was marked as failed by somebody else").split("\n", 1);
  return `failed at ${progress(run)}: ${why}`;
}

function progress(run: OrchestrationRecord): string {
  const done = run.tasks.filter(({ status }) => status === "completed").length;
  const next = run.tasks[done];
  const name = next === undefined ? "" : ` (“${next.name}”)`;
  return `task ${String(Math.min(done + 1, run.tasks.length))} of ${String(run.tasks.length)}${name}`;
}
