/** How the tasks of a plan are carried out, against the real API: what they leave, and how they end. */
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { identify } from "../../src/processes.js";
import { until } from "../rig/until.js";
import { backend, begun, ended, gated, host, open, project, read, sessionOf, setStage, tasksOf } from "../rig/stage.js";

setStage();

describe("a task", () => {
  test("is claimed before it begins, and finds its session and itself in its environment", async () => {
    const command = "echo $CLAUDE_PROJECTS_SESSION_ID $CLAUDE_PROJECTS_TASK_ID > ids";
    const orchestration = await host.start(project, [{ name: "first", command }]);
    await ended(orchestration);
    const [task] = await tasksOf(orchestration);
    expect(read("ids")).toBe(`${task?.session_id ?? ""} ${task?.task_id ?? ""}`);
  });

  test("took as long as it took, also where the clock is set back meanwhile", async () => {
    const orchestration = await host.start(project, [gated("first")]);
    await begun("first");
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 86_400_000 });
    try {
      open("first");
      await until("it is over", () => orchestration.isOver);
    } finally {
      vi.useRealTimers();
    }
    await host.reported(orchestration);
    const [task] = await tasksOf(orchestration);
    expect((task?.metadata["result"] as { seconds: number }).seconds).toBeGreaterThan(0);
  });

  test("does not find the API's key in its environment, and nobody else can read what is kept of it", async () => {
    process.env["CLAUDE_PROJECTS_API_KEY"] = backend.key;
    let runId: string;
    try {
      const orchestration = await host.start(project, [{ name: "looks", command: "env > found" }, gated("second")]);
      await begun("second");
      ({ runId } = orchestration.run);
    } finally {
      delete process.env["CLAUDE_PROJECTS_API_KEY"];
    }
    expect(read("found")).toContain("CLAUDE_PROJECTS_TASK_ID=");
    expect(read("found")).not.toContain(backend.key);
    const mode = (path: string): string => (statSync(path).mode & 0o777).toString(8);
    const output = join(host.directory, "output");
    const files = [
      ...["json", "claim"].map((suffix) => join(host.runs, `${runId}.${suffix}`)),
      ...readdirSync(output).map((name) => join(output, name)),
    ];
    expect(files).toHaveLength(4);
    expect(files.map(mode)).toEqual(files.map(() => "600"));
    expect([host.runs, output].map(mode)).toEqual(["700", "700"]);
    expect(files.filter((path) => readFileSync(path, "utf8").includes(backend.key))).toEqual([]);
    open("second");
  });

  test("of Claude's fails where its report says so, whatever its exit code, and its answer is the reason", async () => {
    const report = { type: "result", is_error: true, result: "I could not log in", num_turns: 3, total_cost_usd: 0.25 };
    writeFileSync(join(host.workspace, "report.json"), JSON.stringify(report));
    const orchestration = await host.start(project, [{ name: "ask", command: "cat report.json" }]);
    await ended(orchestration);
    const [task] = await tasksOf(orchestration);
    expect(task).toMatchObject({ status: "failed", error_message: "claude reports an error\nI could not log in" });
    expect(task?.metadata).toMatchObject({ result: { exit_code: 0, claude: { num_turns: 3, total_cost_usd: 0.25 } } });
    expect(await sessionOf(orchestration)).toMatchObject({ status: "failed" });
  });

  test("of Claude's that went well is completed, with what it cost", async () => {
    const report = { type: "result", is_error: false, result: "Done.", session_id: "c", total_cost_usd: 0.5 };
    writeFileSync(join(host.workspace, "report.json"), JSON.stringify(report));
    const orchestration = await host.start(project, [{ name: "ask", command: "cat report.json" }]);
    await ended(orchestration);
    expect((await tasksOf(orchestration))[0]).toMatchObject({
      status: "completed",
      metadata: { result: { exit_code: 0, claude: { session_id: "c", total_cost_usd: 0.5 } } },
    });
    expect(host.screen.join("")).toContain("0.50 USD");
  });

  test("takes with it what it leaves running in its group before the next one begins", async () => {
    const orchestration = await host.start(project, [
      { name: "leaves", command: "sleep 600 & echo $! > straggler" },
      // A zombie is dead, however long whoever inherits it takes to notice.
      {
        name: "looks",
        command:
          "case $(cut -d' ' -f3 /proc/$(cat straggler)/stat) in ''|Z) echo gone;; *) echo lives;; esac > verdict",
      },
    ]);
    await ended(orchestration);
    expect(read("verdict")).toBe("gone");
    expect(identify(Number(read("straggler")))).toBeUndefined();
  });

  test("that fails by itself while a pause is waiting for it has failed", async () => {
    const orchestration = await host.start(project, [gated("first", "exit 3"), gated("second")]);
    await begun("first");
    orchestration.pause(false);
    open("first");
    await ended(orchestration);
    expect((await tasksOf(orchestration))[0]).toMatchObject({ status: "failed", error_message: "exit code 3" });
    expect(orchestration.state).toBe("failed");
  });

  test("that runs out of time has failed, although it ended with exit code 0 when it was told to end", async () => {
    const command = "trap 'exit 0' TERM; sleep 600 & wait";
    const orchestration = await host.start(project, [{ name: "slow", command, timeout_seconds: 0.5 }, gated("second")]);
    await ended(orchestration);
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["failed", "pending"]);
    expect((await tasksOf(orchestration))[0]?.error_message).toMatch(/^timed out after/);
    expect(orchestration.state).toBe("failed");
  });

  test("whose guard is killed is ended with it, before it counts as failed", async () => {
    const orchestration = await host.start(project, [gated("first")]);
    const shell = await begun("first");
    await until("it is known", () => orchestration.run.child);
    const guard = /^PPid:\t(\d+)$/m.exec(readFileSync(`/proc/${String(shell)}/status`, "utf8"))?.[1];
    process.kill(Number(guard), "SIGKILL");
    await until("it is over", () => orchestration.isOver);
    expect(identify(shell)).toBeUndefined();
    await host.reported(orchestration);
    expect((await tasksOf(orchestration))[0]).toMatchObject({
      status: "failed",
      error_message: "ended because the process that guards it was killed",
    });
  });

  test("that somebody else completed before it began is not begun", async () => {
    const orchestration = await host.start(project, [gated("first"), { name: "second", command: "touch ran" }]);
    await begun("first");
    const second = await until("the API has both", async () => (await tasksOf(orchestration))[1]);
    await backend.api().patchTask(second.task_id, { status: "completed" });
    open("first");
    await ended(orchestration);
    expect(orchestration.state).toBe("completed");
    expect(existsSync(join(host.workspace, "ran"))).toBe(false);
  });

  test("that is interrupted starts anew, although it ended with exit code 0", async () => {
    const orchestration = await host.start(project, [gated("first", "", "trap 'exit 0' INT; ")]);
    await begun("first");
    orchestration.pause(true);
    await until("it is paused", () => orchestration.state === "paused");
    await until("the API knows", async () => (await tasksOf(orchestration))[0]?.status === "blocked");
    orchestration.resume();
    await begun("first");
    open("first");
    await ended(orchestration);
    expect(orchestration.state).toBe("completed");
  });

  test("whose interruption is taken back before it has ended starts anew, and the plan goes on", async () => {
    const orchestration = await host.start(project, [
      gated("first", "", "trap 'until [ -e leave ]; do sleep 0.05; done; rm leave; exit 130' INT; "),
    ]);
    await begun("first");
    orchestration.pause(true);
    expect(orchestration.state).toBe("pausing");
    orchestration.resume();
    writeFileSync(join(host.workspace, "leave"), "");
    await begun("first");
    open("first");
    await ended(orchestration);
    expect((await tasksOf(orchestration)).map(({ status }) => status)).toEqual(["completed"]);
  });

  test("goes on when the state of its run cannot be kept", async () => {
    const orchestration = await host.start(project, [gated("first"), gated("second")]);
    await begun("first");
    // In the way of what is to be written, as a full disk would be.
    const file = join(host.runs, `${orchestration.run.runId}.json`);
    rmSync(file);
    mkdirSync(join(file, "in-the-way"), { recursive: true });
    open("first");
    await begun("second");
    open("second");
    await until("it is over", () => orchestration.isOver);
    rmSync(file, { recursive: true });
    await host.reported(orchestration);
    expect(orchestration.state).toBe("completed");
    expect(host.log.join("\n")).toContain("cannot be kept");
  });
});

describe("a plan", () => {
  test("is begun once, however often a person asks before it has come to run", async () => {
    const starting = host.start(project, [gated("first")]);
    await expect(host.start(project, [gated("first")])).rejects.toThrow("is being worked on in this window already");
    const orchestration = await starting;
    await begun("first");
    open("first");
    await ended(orchestration);
    expect(await backend.sessionsOf(project)).toHaveLength(1);
  });
});
