/**
 * Whose the runs on disk are. Several windows share them, and several hosts where a home directory is on the network:
 * of an owner on another host nothing can be seen, and only the API tells whether it has fallen silent.
 */
import { existsSync } from "node:fs";
import { ApiError } from "../api/client.js";
import { isAlive, isSelf } from "../processes.js";
import { type Owner, type RunClaim, type RunStore, otherHost } from "../tracking/store.js";
import type { Handover } from "./handover.js";
import type { OrchestrationRecord } from "./orchestration.js";
import { KEPT_MS } from "./output.js";
import { Refusal } from "./refusal.js";

/** The folder of runs that this extension does not carry out, and so never takes up again. */
export const NO_WORKSPACE = "";

/** Whether there may be more to a run that is over than the API knows: who tries it again goes on from here. */
export function isKept(run: OrchestrationRecord): boolean {
  return run.closed === "failed" && run.workspace !== NO_WORKSPACE;
}

/** After that long without a word on disk, a run of another host that the API knows nothing of has been left behind. */
const QUIET_MS = 24 * 3_600_000;

export class Ownership {
  /** Owners on other hosts that were gone when the API was last asked about them, by their nonces. */
  private silent: ReadonlySet<string> = new Set();

  constructor(
    private readonly store: RunStore<OrchestrationRecord>,
    private readonly handover: Handover,
  ) {}

  /** The process that drives a run, or may do so: none that is known to be gone. */
  owner(run: OrchestrationRecord): Owner | undefined {
    const owner = this.store.owner(run.runId);
    if (owner === undefined || this.silent.has(owner.nonce)) {
      return undefined;
    }
    // The API cannot be asked about a run that it has not heard of.
    const isForgotten = otherHost(owner) !== undefined && run.sessionId === undefined && this.isQuiet(run.runId);
    return isForgotten ? undefined : owner;
  }

  /** The claim on a run. Throws Refusal where another process has it. */
  claim(runId: string, overruled?: Owner | "anybody"): RunClaim {
    const claim = this.store.claim(runId, overruled);
    if (claim === undefined) {
      throw new Refusal(`${subject(this.store.owner(runId))} at work on it.`, undefined, true);
    }
    return claim;
  }

  /** The same for a run that nobody drives: an owner on another host is asked about. Throws Refusal or ApiError. */
  async claimLeftBehind(runId: string): Promise<RunClaim> {
    const owner = this.ownerElsewhere(runId);
    const run = this.store.read(runId);
    if (owner === undefined || run === undefined || !(await this.checkGone(run))) {
      return this.claim(runId);
    }
    return this.claim(runId, owner);
  }

  /** The claim on what a run that has ended has still to report; undefined where it is another process's to do. */
  claimToReport(run: OrchestrationRecord): RunClaim | undefined {
    const owner = this.store.owner(run.runId);
    return this.store.claim(run.runId, owner !== undefined && this.silent.has(owner.nonce) ? owner : undefined);
  }

  /** The claim on the right to recover a session. */
  claimTurn(sessionId: string, force: boolean): RunClaim {
    // Where another host went down in its turn, nothing but a person's word ends it.
    return this.claim(sessionId, force ? this.ownerElsewhere(sessionId) : undefined);
  }

  /** Asks the API about the runs of these folders whose owners are on other hosts: one that has fallen silent has left its run behind. */
  async lookAtOtherHosts(workspaces: readonly string[]): Promise<void> {
    const silent = await Promise.all(
      this.store.list().map(async (run) => {
        const owner = this.ownerElsewhere(run.runId);
        const isAsked = run.workspace === NO_WORKSPACE || workspaces.includes(run.workspace);
        return owner !== undefined && isAsked && (await this.isGone(run, owner)) ? [owner.nonce] : [];
      }),
    );
    this.silent = new Set(silent.flat());
  }

  /** While the API does not say who is at work on a project, the runs on disk do. Throws Refusal. */
  checkAlone({ runId, projectId, machineId }: OrchestrationRecord): void {
    for (const other of this.store.list()) {
      const isOfProject = other.projectId === projectId && other.machineId === machineId && other.runId !== runId;
      const owner = isOfProject && other.status === "active" ? this.owner(other) : undefined;
      if (owner !== undefined) {
        // What can be seen from here lives, and can be ended where it is.
        throw new Refusal(
          `${subject(owner)} at work on project ${projectId}.`,
          undefined,
          otherHost(owner) !== undefined,
        );
      }
    }
  }

  /** A plan that is begun anew will not be gone on with where an operator had ended it. */
  dropKept(begun: OrchestrationRecord): void {
    for (const run of this.store.list()) {
      if (isKept(run) && isOfSamePlan(run, begun) && this.owner(run) === undefined) {
        this.store.delete(run.runId);
      }
    }
  }

  /** Whether a run that nobody will go on with is older than all that is kept of it elsewhere. */
  isForgotten(run: OrchestrationRecord): boolean {
    const isOver = run.closed !== undefined || !(run.workspace === NO_WORKSPACE || existsSync(run.workspace));
    const owner = this.store.owner(run.runId);
    return isOver && Date.now() - this.store.writtenAt(run.runId) > KEPT_MS && (owner === undefined || !isAlive(owner));
  }

  /** Whether an owner on another host is gone; where the API does not say, what it said before holds. */
  private async isGone(run: OrchestrationRecord, owner: Owner): Promise<boolean> {
    try {
      return await this.checkGone(run);
    } catch (error) {
      const isAnswer = error instanceof Refusal || ApiError.from(error).kind === "refused";
      return !isAnswer && this.silent.has(owner.nonce);
    }
  }

  /** Whether the owner of a run on another host is gone. Throws Refusal where the API says that it may be at work. */
  private async checkGone({ runId, sessionId }: OrchestrationRecord): Promise<boolean> {
    try {
      if (sessionId !== undefined) {
        await this.handover.checkSilence(sessionId);
        return true;
      }
    } catch (error) {
      if (error instanceof Refusal || ApiError.from(error).status !== 404) {
        throw error;
      }
    }
    // The API knows nothing of it, and never will where its host does not come back.
    return this.isQuiet(runId);
  }

  /** The owner of a run, where it is on another host. */
  private ownerElsewhere(runId: string): Owner | undefined {
    const owner = this.store.owner(runId);
    return owner !== undefined && otherHost(owner) !== undefined ? owner : undefined;
  }

  private isQuiet(runId: string): boolean {
    return Date.now() - this.store.touchedAt(runId) > QUIET_MS;
  }
}

function isOfSamePlan(one: OrchestrationRecord, other: OrchestrationRecord): boolean {
  const path = (run: OrchestrationRecord): unknown => run.metadata["plan_path"];
  // Where one was recovered from a session of another tool, its title is all there is to compare.
  const isNamed = path(one) !== undefined && path(other) !== undefined;
  return (
    one.projectId === other.projectId &&
    one.workspace === other.workspace &&
    (isNamed ? path(one) === path(other) : one.title === other.title)
  );
}

/** An owner, as the beginning of a sentence about what it does. */
function subject(owner: Owner | undefined): string {
  if (owner !== undefined && isSelf(owner)) {
    return "This window is";
  }
  const process = `process ${String(owner?.pid ?? "unknown")}`;
  const host = owner === undefined ? undefined : otherHost(owner);
  return host === undefined
    ? `Another window (${process}) is`
    : `A window on ${host} (${process}), which cannot be seen from here, may be`;
}
