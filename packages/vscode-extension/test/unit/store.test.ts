import { fork, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { machineId } from "../../src/machine.js";
import { endGroup, identify, isAlive, isSelf, presence, self } from "../../src/processes.js";
import { RunStore, otherHost } from "../../src/tracking/store.js";
import { until } from "../rig/until.js";

let directory: string;
const children: ChildProcess[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "claude-projects-store-"));
});

afterEach(() => {
  children.splice(0).forEach((child) => child.kill("SIGKILL"));
  rmSync(directory, { recursive: true, force: true });
});

function sleeper(): ChildProcess & { pid: number } {
  const child = spawn("sleep", ["60"], { detached: true });
  children.push(child);
  return child as ChildProcess & { pid: number };
}

describe("a claim", () => {
  const store = (): RunStore<{ version: 1; runId: string }> => new RunStore(directory);

  test("is held by one at a time, and free again when it is released", () => {
    const first = store().claim("r");
    expect(first?.held).toBe(true);
    expect(store().claim("r")).toBeUndefined();
    first?.release();
    expect(store().claim("r")?.held).toBe(true);
  });

  test("of a dead process is taken over; of a living one it is not, unless by force", async () => {
    const child = sleeper();
    const identity = await until("it runs", () => identify(child.pid));
    const path = join(directory, "r.claim");
    store();
    writeFileSync(path, JSON.stringify({ ...identity, nonce: "theirs" }));
    expect(store().claim("r")).toBeUndefined();
    expect(store().owner("r")?.pid).toBe(child.pid);
    await endGroup(identity);
    expect(store().claim("r")?.held).toBe(true);

    const overruled = store().claim("q");
    const winner = store().claim("q", "anybody");
    expect([overruled?.held, winner?.held]).toEqual([false, true]);
    overruled?.release();
    expect(winner?.held).toBe(true);
  });

  test.each([
    ["says this host", { hostname: hostname() }],
    ["does not say which host", {}],
  ])("left by a process of an earlier boot is nobody's where it %s", (_, host) => {
    store();
    const left = { ...self(), place: "an earlier boot", nonce: "theirs", ...host };
    writeFileSync(join(directory, "r.claim"), JSON.stringify(left));
    expect(store().owner("r")).toBeUndefined();
    expect(store().claim("r")?.held).toBe(true);
    expect(store().owner("r")).toMatchObject({ pid: process.pid, hostname: hostname() });
  });

  test("of another host that shares the directory is left alone, until that very owner is known to be gone", () => {
    store();
    const theirs = { ...self(), place: "another system", hostname: "another-host", nonce: "theirs" };
    writeFileSync(join(directory, "r.claim"), JSON.stringify(theirs));
    expect(store().claim("r")).toBeUndefined();
    const owner = store().owner("r");
    expect(owner).toEqual(theirs);
    expect(owner && otherHost(owner)).toBe("another-host");
    // The same process id here means nothing.
    expect(owner && isSelf(owner)).toBe(false);

    const mine = store().claim("r", owner);
    expect(mine?.held).toBe(true);
    // Whoever has taken it in the meantime is not meant.
    expect(store().claim("r", owner)).toBeUndefined();
    expect(mine?.held).toBe(true);
  });

  test("of another container of this boot is left alone, although it has the same hostname", () => {
    store();
    const [boot] = self().place.split(" ");
    const theirs = { ...self(), place: `${boot ?? ""} pid:[1]`, hostname: hostname(), nonce: "theirs" };
    writeFileSync(join(directory, "r.claim"), JSON.stringify(theirs));
    expect(store().claim("r")).toBeUndefined();
    expect(otherHost(theirs)).toBe(hostname());
  });

  test("that is not readable is nobody's", () => {
    store();
    writeFileSync(join(directory, "r.claim"), "{");
    expect(store().claim("r")?.held).toBe(true);
  });

  test("of a dead process goes to exactly one of twenty that want it at once", async () => {
    store();
    writeFileSync(join(directory, "r.claim"), JSON.stringify({ ...self(), started: "long ago", nonce: "theirs" }));
    // Processes of their own, so that they really are at it at the same time.
    const program = join(directory, "claimant.mjs");
    const { build } = await import("esbuild");
    await build({
      stdin: {
        contents: `
          import { RunStore } from ${JSON.stringify(join(import.meta.dirname, "../../src/tracking/store.ts"))};
          process.once("message", (directory) => {
            const claim = new RunStore(directory).claim("r");
            process.send(claim?.held === true);
            process.once("message", () => process.exit());
          });
          process.send("ready");`,
        resolveDir: import.meta.dirname,
      },
      bundle: true,
      platform: "node",
      format: "esm",
      outfile: program,
    });
    const claimants = Array.from({ length: 20 }, () => fork(program));
    children.push(...claimants);
    const next = (child: ChildProcess): Promise<unknown> => new Promise((resolve) => child.once("message", resolve));
    await Promise.all(claimants.map(next));
    const results = claimants.map(next);
    claimants.forEach((child) => child.send(directory));
    expect((await Promise.all(results)).filter((held) => held === true)).toHaveLength(1);
  });
});

describe("runs on disk", () => {
  function makeOld(...names: readonly string[]): void {
    const dayAgo = new Date(Date.now() - 25 * 3_600_000);
    for (const name of names) {
      utimesSync(join(directory, name), dayAgo, dayAgo);
    }
  }

  test("come back as they were written, and nothing else is left in the directory", () => {
    const store = new RunStore<{ version: 1; runId: string; value: number }>(directory);
    store.write({ version: 1, runId: "a", value: 1 });
    store.write({ version: 1, runId: "a", value: 2 });
    expect(store.list()).toEqual([{ version: 1, runId: "a", value: 2 }]);
    expect(readdirSync(directory)).toEqual(["a.json"]);
    store.delete("a");
    expect(store.list()).toEqual([]);
  });

  test("are all that is kept: what a crash left half-way is removed a day later", () => {
    const old = ["a.json", "a.claim", "b.claim", "a.json.1.tmp", "a.claim.1", "a.claim.1.dead"];
    const young = ["c.claim", "c.json.1.tmp"];
    for (const name of [...old, ...young]) {
      writeFileSync(join(directory, name), "{}");
    }
    makeOld(...old);
    new RunStore(directory);
    expect(readdirSync(directory)).toEqual(["a.claim", "a.json", ...young]);
  });

  test("are found although something half-way cannot be removed; what is not the store's own stays", () => {
    const old = ["a.claim.1", "notes", "notes.txt", "z.claim"];
    for (const name of ["a.claim.1", "notes"]) {
      mkdirSync(join(directory, name));
    }
    for (const name of ["notes.txt", "z.claim"]) {
      writeFileSync(join(directory, name), "");
    }
    makeOld(...old);
    expect(new RunStore(directory).list()).toEqual([]);
    expect(readdirSync(directory)).toEqual(["a.claim.1", "notes", "notes.txt"]);
  });

  test("of another version, or damaged, are passed over", () => {
    const store = new RunStore(directory);
    writeFileSync(join(directory, "a.json"), '{"version": 2, "runId": "a"}');
    writeFileSync(join(directory, "b.json"), '{"version": 1, "ru');
    expect(store.list()).toEqual([]);
  });
});

describe("processes", () => {
  test("one that has ended but was not collected by its parent counts as dead", async () => {
    // The shell does not wait for its child, which becomes a zombie.
    const parent = spawn("sh", ["-c", "sleep 0.1 & echo $!; exec sleep 60"], { detached: true });
    children.push(parent);
    const line = await new Promise<string>((resolve) =>
      parent.stdout.once("data", (data) => {
        resolve(String(data));
      }),
    );
    const pid = Number(line.trim());
    await until("it is a zombie", () => readFileSync(`/proc/${String(pid)}/stat`, "utf8").includes(") Z "));
    expect(identify(pid)).toBeUndefined();
  });

  test("another process with the same id is another process", () => {
    expect(isAlive({ ...self(), started: "tick 1" })).toBe(false);
    expect(presence({ ...self(), place: "elsewhere" })).toBe("unseen");
  });

  test("a group is ended with all that its leader has started, also what ignores SIGTERM", async () => {
    const leader = spawn("sh", ["-c", "trap '' TERM; sh -c \"trap '' TERM; echo \\$\\$; sleep 60\" & wait; sleep 60"], {
      detached: true,
    });
    children.push(leader);
    const line = await new Promise<string>((resolve) =>
      leader.stdout.once("data", (data) => {
        resolve(String(data));
      }),
    );
    const identity = await until("it runs", () => identify(leader.pid ?? 0));
    await endGroup(identity, 200);
    expect(isAlive(identity)).toBe(false);
    await until("its child has ended too", () => identify(Number(line.trim())) === undefined);
  });

  test("what ignores SIGTERM is ended in its time, also where the clock is set back meanwhile", async () => {
    const stubborn = spawn("sh", ["-c", "trap '' TERM; echo; sleep 60"], { detached: true });
    children.push(stubborn);
    await once(stubborn.stdout, "data");
    const identity = await until("it runs", () => identify(stubborn.pid ?? 0));
    vi.useFakeTimers({ toFake: ["Date"] });
    try {
      const ending = endGroup(identity, 200);
      vi.setSystemTime(Date.now() - 86_400_000);
      await ending;
    } finally {
      vi.useRealTimers();
    }
    expect(isAlive(identity)).toBe(false);
  });
});

describe("the machine's id", () => {
  const sources = { hostname: () => "builder-7", macAddresses: () => ["aa:bb:cc:dd:ee:ff"], uuid: () => "a-uuid" };

  test("is its hostname, and stays what it was when that changes", () => {
    expect(machineId(directory, sources)).toBe("builder-7");
    expect(machineId(directory, { ...sources, hostname: () => "renamed" })).toBe("builder-7");
  });

  test.each(["", "localhost"])(
    "is a MAC address where the hostname is “%s”, and a UUID where there is none",
    (hostname) => {
      expect(machineId(join(directory, "a"), { ...sources, hostname: () => hostname })).toBe("aa:bb:cc:dd:ee:ff");
      const bare = { ...sources, hostname: () => hostname, macAddresses: () => [] };
      expect(machineId(join(directory, "b"), bare)).toBe("a-uuid");
      expect(machineId(join(directory, "b"), { ...bare, uuid: () => "another" })).toBe("a-uuid");
    },
  );
});
