/**
 * Runs on disk, one file each, in a directory that outlives extension hosts, windows and browser profiles, and
 * claims on them: at any moment at most one process drives a run. Several hosts may share the directory, as they do
 * where a home directory is on the network.
 */
import { randomUUID } from "node:crypto";
import {
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { type ProcessIdentity, isAlive, isOfThisBoot, presence, self } from "../processes.js";

/** Nothing is half-way for so long. */
const HALF_WAY_MS = 24 * 3_600_000;
/** What this store may leave behind when it is interrupted; anything else in the directory is not its own. */
const HALF_WAY = /^[^.]+\.(?:json\.[^.]+\.tmp|claim(?:\.[^.]+)?(?:\.(?:dead|tmp))?)$/;

interface Identified {
  readonly version: 1;
  readonly runId: string;
}

/** The owner of a claim. */
export interface Owner extends ProcessIdentity {
  /** Tells two owners within one process apart. */
  readonly nonce: string;
  /** Missing in a claim of an earlier version. */
  readonly hostname?: string;
}

/**
 * The host of an owner that cannot be seen from here and may live: another one, or this one where the owner is in
 * another container of the same boot. Undefined where it can be seen, or ended when this host was booted anew.
 */
export function otherHost(owner: Owner): string | undefined {
  if (presence(owner) !== "unseen") {
    return undefined;
  }
  if (isOfThisBoot(owner)) {
    return owner.hostname ?? hostname();
  }
  return owner.hostname === hostname() ? undefined : owner.hostname;
}

function mayLive(owner: Owner): boolean {
  return isAlive(owner) || otherHost(owner) !== undefined;
}

export class RunStore<T extends Identified> {
  constructor(private readonly directory: string) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    this.tidy();
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

  /** When a run was last written, in milliseconds. */
  writtenAt(runId: string): number {
    return lastChange(this.path(runId, "json")) ?? Date.now();
  }

  /** When it was last written or claimed. */
  touchedAt(runId: string): number {
    return Math.max(this.writtenAt(runId), lastChange(this.path(runId, "claim")) ?? 0);
  }

  /** The process that drives a run: it lives, or is on another host and may live. */
  owner(runId: string): Owner | undefined {
    const owner = this.readClaim(runId);
    return owner !== undefined && mayLive(owner) ? owner : undefined;
  }

  /**
   * Makes the caller the only one to drive a run; undefined where another process has it. The one that is overruled
   * finds out by `RunClaim.held`.
   */
  claim(runId: string, overruled?: Owner | "anybody"): RunClaim | undefined {
    const mine: Owner = { ...self(), hostname: hostname(), nonce: randomUUID() };
    const path = this.path(runId, "claim");
    const claim = new RunClaim(() => this.readClaim(runId)?.nonce === mine.nonce, path);
    if (overruled === "anybody") {
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
        if (holder?.nonce === mine.nonce) {
          // On a network file system: it was done, the answer was lost, and to ask again found the link there.
          return claim;
        }
        if (holder !== undefined && mayLive(holder) && holder.nonce !== overruled?.nonce) {
          return undefined;
        }
        this.remove(path, mine.nonce, holder);
      }
      return undefined;
    } finally {
      rmSync(draft, { force: true });
    }
  }

  /**
   * Removes what crashes have left half-way: drafts, and claims on what never came to be. What does not let itself be
   * removed, as on a network file system that hangs, must not keep the extension from its work.
   */
  private tidy(): void {
    succeeds(() => {
      for (const name of readdirSync(this.directory).filter((one) => HALF_WAY.test(one))) {
        const path = join(this.directory, name);
        succeeds(() => {
          const isOfARun = name.endsWith(".claim") && existsSync(path.replace(/claim$/, "json"));
          if (!isOfARun && Date.now() - statSync(path).mtimeMs > HALF_WAY_MS) {
            rmSync(path);
          }
        });
      }
    });
  }

  /** Moves an owner's claim aside; one that was laid down in the meantime is put back. */
  private remove(path: string, nonce: string, owner: Owner | undefined): void {
    const aside = `${path}.${nonce}.dead`;
    if (
      !succeeds(() => {
        renameSync(path, aside);
      })
    ) {
      return;
    }
    if (parseClaim(aside)?.nonce !== owner?.nonce) {
      succeeds(() => {
        linkSync(aside, path);
      });
    }
    rmSync(aside, { force: true });
  }

  private readClaim(runId: string): Owner | undefined {
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

function parseClaim(path: string): Owner | undefined {
  try {
    const claim = JSON.parse(readFileSync(path, "utf8")) as Partial<Owner>;
    return typeof claim.pid === "number" && typeof claim.started === "string" && typeof claim.nonce === "string"
      ? (claim as Owner)
      : undefined;
  } catch {
    return undefined;
  }
}

function lastChange(path: string): number | undefined {
  try {
    return statSync(path).mtimeMs;
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
