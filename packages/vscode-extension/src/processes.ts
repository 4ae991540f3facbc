/**
 * Processes across crashes. A process id alone is recycled by the system and means something else after a reboot, so
 * that a process is known by its id, the moment it started, and the place where its id is valid. The words are those
 * of the command line (`claude_projects.process`), so that each understands what the other left behind.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";

export interface ProcessIdentity {
  readonly pid: number;
  /** Opaque: equal for the same process, different for another one with the same id. */
  readonly started: string;
  /** Opaque: the boot of the system, and the namespace within it, in which the id means this process. */
  readonly place: string;
}

export type Presence = "alive" | "dead" | "unseen";

/** The identity of a running process; undefined where there is none, or only a zombie that nobody has collected. */
export function identify(pid: number): ProcessIdentity | undefined {
  if (!Number.isSafeInteger(pid) || pid <= 0) {
    return undefined;
  }
  const started = process.platform === "linux" ? startOnLinux(pid) : startElsewhere(pid);
  return started === undefined ? undefined : { pid, started, place: place() };
}

/** Whether a process lives; `unseen` where its id belongs to another system, boot or container. */
export function presence(identity: ProcessIdentity): Presence {
  if (identity.place !== place()) {
    return "unseen";
  }
  return identify(identity.pid)?.started === identity.started ? "alive" : "dead";
}

/** Whether a process was started since this system was, in whatever container. */
export function isOfThisBoot({ place: there }: ProcessIdentity): boolean {
  return there.split(" ", 1)[0] === place().split(" ", 1)[0];
}

export function isAlive(identity: ProcessIdentity): boolean {
  return presence(identity) === "alive";
}

export function isSelf(identity: ProcessIdentity): boolean {
  return identity.pid === process.pid && isAlive(identity);
}

/** This extension host. */
export function self(): ProcessIdentity {
  return identify(process.pid) ?? { pid: process.pid, started: "unknown", place: place() };
}

let knownPlace: string | undefined;

function place(): string {
  if (knownPlace === undefined) {
    try {
      const boot = readFileSync("/proc/sys/kernel/random/boot_id", "ascii").trim();
      knownPlace = `${boot} ${readlinkSync("/proc/self/ns/pid")}`;
    } catch {
      knownPlace = `${hostname()} ${process.platform}`;
    }
  }
  return knownPlace;
}

/**
 * Ends a process and what it started: SIGTERM to its group, SIGKILL after the grace.
 * Returns once it is gone. A recycled process id is left alone. The clock may be set meanwhile: it is not asked.
 */
export async function endGroup(identity: ProcessIdentity, graceMs = 3_000): Promise<void> {
  if (!isAlive(identity)) {
    return;
  }
  for (const [signal, patienceMs] of [
    ["SIGTERM", graceMs],
    ["SIGKILL", 2_000],
  ] as const) {
    signalGroup(identity.pid, signal);
    const deadline = performance.now() + patienceMs;
    while (isAlive(identity) && performance.now() < deadline) {
      await delay(50);
    }
    if (!isAlive(identity)) {
      break;
    }
  }
  // What it had started and did not end with it.
  signalGroup(identity.pid, "SIGKILL");
}

/** Ends what a finished command has left in its group; what left the group, as a daemon does, was meant to stay. */
export async function endLeftovers(pid: number, graceMs = 1_000): Promise<void> {
  if (process.platform === "win32" || !groupLives(pid)) {
    return;
  }
  signalGroup(pid, "SIGTERM");
  const deadline = performance.now() + graceMs;
  while (groupLives(pid) && performance.now() < deadline) {
    await delay(20);
  }
  signalGroup(pid, "SIGKILL");
}

function groupLives(pid: number): boolean {
  try {
    process.kill(-pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Signals a process group that was started with `detached: true`; on Windows, where there are none, the tree. */
export function signalGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    if (process.platform === "win32") {
      execFileSync("taskkill", ["/pid", String(pid), "/T", ...(signal === "SIGKILL" ? ["/F"] : [])], {
        stdio: "ignore",
      });
    } else {
      process.kill(-pid, signal);
    }
  } catch {
    // Gone already: that is what was wanted.
  }
}

function startOnLinux(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
    // The name, field 2, may hold spaces and brackets itself; what follows its last bracket is regular.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const state = fields[0];
    const start = fields[19];
    return state === "Z" || state === "X" || start === undefined ? undefined : `tick ${start}`;
  } catch {
    return undefined;
  }
}

function startElsewhere(pid: number): string | undefined {
  try {
    if (process.platform === "win32") {
      process.kill(pid, 0);
      return "unknown";
    }
    const line = execFileSync("ps", ["-o", "stat=,lstart=", "-p", String(pid)], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    }).trim();
    const moment = Date.parse(line.replace(/^\S+\s+/, ""));
    return line === "" || line.startsWith("Z") ? undefined : `second ${String(Math.round(moment / 1_000))}`;
  } catch {
    return undefined;
  }
}
