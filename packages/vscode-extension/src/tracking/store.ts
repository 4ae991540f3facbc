/**
 * Runs on disk, one file each, in a directory that outlives extension hosts, windows and browser profiles, and
 * claims on them: at any moment at most one process drives a run.
 */
import { randomUUID } from "node:crypto";
import { linkSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type ProcessIdentity, isAlive, self } from "../processes.js";

interface Identified {
  readonly version: 1;
  readonly runId: string;
}

/** The owner of a claim. The nonce tells two owners within one process apart. */
interface Claim extends ProcessIdentity {
  readonly nonce: string;
}

export class RunStore<T extends Identified> {
  constructor(private readonly directory: string) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  list(): T[] {
    return readdirSync(this.directory)
      .filter((name) => name.endsWith(".json"))
      .map((name) => this.read(name.slice(0, -".json".length)))
      .filter((run) => run !== undefined);
  }

  /** The run, or undefined where there is none or its file is not one of this version's. */
  read(runId: string): T | undefined {
    try {
      const run = JSON.parse(readFileSync(this.path(runId, "json"), "utf8")) as Partial<Identified>;
      return run.version === 1 && run.runId === runId ? (run as T) : undefined;
    } catch {
      return undefined;
    }
  }

  /** Replaces the file in one step, so that a crash leaves the old one or the new one and never half of it. */
  write(run: T): void {
    replace(this.path(run.runId, "json"), JSON.stringify(run));
  }

  delete(runId: string): void {
    rmSync(this.path(runId, "json"), { force: true });
    rmSync(this.path(runId, "claim"), { force: true });
  }

  /** The living process that drives a run. */
  owner(runId: string): ProcessIdentity | undefined {
    const claim = this.readClaim(runId);
    return claim !== undefined && isAlive(claim) ? claim : undefined;
  }

  /**
   * Makes the caller the only one to drive a run; undefined where a living process has it. With `force` that process
   * is overruled: it finds out by `RunClaim.held`.
   */
  claim(runId: string, force = false): RunClaim | undefined {
    const mine: Claim = { ...self(), nonce: randomUUID() };
    const path = this.path(runId, "claim");
    const claim = new RunClaim(() => this.readClaim(runId)?.nonce === mine.nonce, path);
    if (force) {
      replace(path, JSON.stringify(mine));
      return claim;
    }
    const draft = `${path}.${mine.nonce}`;
    writeFileSync(draft, JSON.stringify(mine), { mode: 0o600 });
    try {
      for (let attempt = 0; attempt < 3; attempt++) {
        // A hard link appears whole or not at all, and only where nothing is.
        if (
          succeeds(() => {
            linkSync(draft, path);
          })
        ) {
          return claim;
        }
        const holder = this.readClaim(runId);
        if (holder !== undefined && isAlive(holder)) {
          return undefined;
        }
        this.removeDead(path, mine.nonce, holder);
      }
      return undefined;
    } finally {
      rmSync(draft, { force: true });
    }
  }

  /** Moves a dead owner's claim aside; one that was laid down in the meantime is put back. */
  private removeDead(path: string, nonce: string, dead: Claim | undefined): void {
    const aside = `${path}.${nonce}.dead`;
    if (
      !succeeds(() => {
        renameSync(path, aside);
      })
    ) {
      return;
    }
    if (parseClaim(aside)?.nonce !== dead?.nonce) {
      succeeds(() => {
        linkSync(aside, path);
      });
    }
    rmSync(aside, { force: true });
  }

  private readClaim(runId: string): Claim | undefined {
    return parseClaim(this.path(runId, "claim"));
  }

  private path(runId: string, suffix: "json" | "claim"): string {
    return join(this.directory, `${runId}.${suffix}`);
  }
}

export class RunClaim {
  constructor(
    private readonly isMine: () => boolean,
    private readonly path: string,
  ) {}

  /** Whether this process still drives the run: read from disk, since another may have overruled it. */
  get held(): boolean {
    return this.isMine();
  }

  release(): void {
    if (this.held) {
      rmSync(this.path, { force: true });
    }
  }
}

function parseClaim(path: string): Claim | undefined {
  try {
    const claim = JSON.parse(readFileSync(path, "utf8")) as Partial<Claim>;
    return typeof claim.pid === "number" && typeof claim.started === "string" && typeof claim.nonce === "string"
      ? (claim as Claim)
      : undefined;
  } catch {
    return undefined;
  }
}

function replace(path: string, content: string): void {
  const draft = `${path}.${randomUUID()}.tmp`;
  writeFileSync(draft, content, { mode: 0o600 });
  renameSync(draft, path);
}

function succeeds(action: () => void): boolean {
  try {
    action();
    return true;
  } catch {
    return false;
  }
}
