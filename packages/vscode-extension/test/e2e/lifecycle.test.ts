/** PRD 4.3 in a real VS Code against the real API: the lifecycle of an orchestration, with and without trouble. */
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Session } from "../../src/api/client.js";
import { identify } from "../../src/processes.js";
import { Backend } from "../rig/backend.js";
import { Editor } from "../rig/editor.js";
import { explain } from "../rig/explain.js";
import { Gates, gatedPlan } from "../rig/plans.js";
import { until } from "../rig/until.js";
import type { Window } from "../rig/window.js";

let backend: Backend;
let editor: Editor;
let window: Window | undefined;

beforeAll(async () => {
  backend = await Backend.start({ STALL_THRESHOLD_MS: "600000" });
  editor = await Editor.start({
    settings: { apiUrl: backend.url, heartbeatIntervalSeconds: 1 },
    environment: { CLAUDE_PROJECTS_API_KEY: backend.key },
    extensions: [join(import.meta.dirname, "../fixtures/orchestrator")],
  });
});

afterAll(async () => {
  await editor.stop();
  await backend.stop();
});

afterEach(async ({ task }) => {
  if (task.result?.state === "fail" && window !== undefined) {
    await explain(window, editor, task.name);
  }
  await window?.close();
  window = undefined;
});

async function open(folder: string): Promise<Window> {
  window = await editor.open(folder);
  return window;
}

async function only(projectId: string): Promise<Session> {
  return await until(`project ${projectId} has a session`, async () => (await backend.sessionsOf(projectId))[0]);
}

/** What another machine makes of a session; a heartbeat that comes in between makes it active again. */
async function takenOver(sessionId: string): Promise<Session> {
  return await until("another machine has it", async () => {
    await backend.api().markStalled(sessionId);
    return await backend.api().recover(sessionId, "another-machine");
  });
}

describe("an orchestration that goes well", () => {
  test("4.3.a, c, d: creates a session, tracks each task, and ends completed", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("well", "All Is Well", ["first", "second"]) });
    const gates = new Gates(folder);
    const shown = await open(folder);
    const before = Date.now();
    await shown.start("All Is Well");

    const session = await only("well");
    expect(session).toMatchObject({ status: "active", project_id: "well" });
    expect(session.metadata).toMatchObject({ client: { name: "vscode-extension", editor: "1.100.3" } });
    const [record = ""] = readdirSync(join(editor.storage, "runs")).filter((name) => name.endsWith(".json"));
    await until("the extension has kept the session's id", () =>
      readFileSync(join(editor.storage, "runs", record), "utf8").includes(session.session_id),
    );

    const [first, second] = await until("both tasks are known", async () => {
      const tasks = await backend.tasksOf(session.session_id);
      return tasks.length === 2 && tasks[0]?.status === "in_progress" ? tasks : undefined;
    });
    expect(first).toMatchObject({ task_name: "first", session_id: session.session_id, project_id: "well" });
    expect(second).toMatchObject({ task_name: "second", status: "pending" });
    const heartbeats = (): number => backend.requests("POST", /heartbeat/).length;
    const beforeBeats = heartbeats();
    await until("heartbeats come", () => heartbeats() >= beforeBeats + 2);
    expect(await backend.api().session(session.session_id)).toMatchObject({ current_task_id: first?.task_id });
    await until("the status bar says so", async () => /All Is Well\s+task 1\/2/.test(await shown.status()));

    gates.open("first", "second");
    await until(
      "the session is completed",
      async () => (await backend.api().session(session.session_id)).status === "completed",
    );
    expect((await backend.tasksOf(session.session_id)).map(({ status }) => status)).toEqual(["completed", "completed"]);
    expect(gates.done).toEqual(["first", "second"]);
    await until("the status bar says so", async () => (await shown.status()).includes("2/2"));
    await until("nothing is kept of a run that is over", () => !existsSync(join(editor.storage, "runs", record)));
    expect(backend.requests("POST", /"\/api\/sessions"/).filter((at) => at >= before)).toHaveLength(1);
  });

  test("is paused by Ctrl+C in its terminal and by closing it, resumed, and told to stop as completed", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("pause", "Pausing", ["first", "second", "third"]) });
    const gates = new Gates(folder);
    const shown = await open(folder);
    await shown.start("Pausing");
    const session = await only("pause");
    const statusOf = async (): Promise<string> => (await backend.api().session(session.session_id)).status;
    await until("the first task has begun", () => gates.begun.length === 1);

    await shown.command("Claude Projects: Show Terminal");
    await shown.page.locator(".terminal-wrapper.active .xterm-helper-textarea").focus();
    await shown.page.keyboard.press("Control+C");
    await until("the session is paused", async () => (await statusOf()) === "paused");
    expect((await backend.tasksOf(session.session_id))[0]).toMatchObject({ status: "blocked" });
    expect(identify(gates.begun[0]?.pid ?? 0)).toBeUndefined();

    gates.open("first");
    await shown.command("Claude Projects: Resume Orchestration");
    await until("the second task is at work", () => gates.begun.at(-1)?.task === "second");
    expect(await statusOf()).toBe("active");

    await shown.command("Terminal: Kill the Active Terminal Instance");
    await until("the session is paused again", async () => (await statusOf()) === "paused");
    await shown.page.locator(".terminal-wrapper").waitFor({ state: "detached" });
    await shown.command("Claude Projects: Resume Orchestration");
    await until("the second task has started anew", () => gates.begun.length === 4);
    await shown.page.locator(".terminal-wrapper.active").waitFor();

    await shown.command("Claude Projects: Stop Orchestration");
    await shown.quickInput("Stop “Pausing”");
    await shown.pick("As completed");
    await until("the session is completed", async () => (await statusOf()) === "completed");
    expect(identify(gates.begun.at(-1)?.pid ?? 0)).toBeUndefined();
    expect(gates.done).toEqual(["first"]);
  });

  test("is told to stop as failed, and why, and goes on when it is picked among the sessions to recover", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("stop", "Stopping", ["first", "second"]) });
    const gates = new Gates(folder);
    const shown = await open(folder);
    await shown.start("Stopping");
    gates.open("first");
    const session = await only("stop");
    const second = await until("the second task has begun", () => gates.begun[1]);

    await shown.command("Claude Projects: Stop Orchestration");
    await shown.quickInput("Stop “Stopping”");
    await shown.pick("As failed");
    await shown.quickInput("Why does it fail?");
    await shown.answer("not needed tonight");
    await until("the session has failed", async () => (await only("stop")).status === "failed");
    expect((await only("stop")).metadata).toMatchObject({ error_message: "not needed tonight" });
    expect(identify(second.pid)).toBeUndefined();

    await shown.command("Claude Projects: Recover Session");
    await shown.quickInput("Recover a Session");
    await shown.pick("Stopping");
    await until("the second task has begun anew", () => gates.begun.length === 3);
    gates.open("second");
    await until("the rest is done", async () =>
      (await backend.sessionsOf("stop")).some(
        ({ status, recovered_from }) => status === "completed" && recovered_from === session.session_id,
      ),
    );
    expect(gates.done).toEqual(["first", "second"]);
  });
});

describe("an orchestration in trouble", () => {
  test("a failing task fails the session with its exit code and error output, and can be tried again", async () => {
    const folder = await editor.folder({
      "plan.toml": `project_id = "fails"
[[tasks]]
name = "fine"
command = "echo fine >> done"
[[tasks]]
name = "fragile"
command = "[ -e repaired ] || { echo the disk is full >&2; exit 7; }"
[[tasks]]
name = "last"
command = "echo last >> done; touch ended"
`,
    });
    const shown = await open(folder);
    await shown.start("plan");
    const session = await until("the session has failed", async () =>
      (await backend.sessionsOf("fails")).find(({ status }) => status === "failed"),
    );
    expect(session.metadata["error_message"]).toContain("exit code 7");
    const fragile = (await backend.tasksOf(session.session_id)).find(({ task_name }) => task_name === "fragile");
    expect(fragile).toMatchObject({ status: "failed", error_message: "exit code 7\nthe disk is full" });

    writeFileSync(join(folder, "repaired"), "");
    await shown.press("exit code 7", "Try Again");
    await until("the rest is done", async () =>
      (await backend.sessionsOf("fails")).some(
        ({ status, recovered_from }) => status === "completed" && recovered_from === session.session_id,
      ),
    );
    expect(new Gates(folder).done).toEqual(["fine", "last"]);
  });

  test("4.3.f: with the API offline it works and logs, and the API learns of everything when it is back", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("offline", "Offline", ["first", "second"]) });
    const gates = new Gates(folder);
    const shown = await open(folder);
    await backend.kill();
    try {
      await shown.start("Offline");
      await until("the first task has begun", () => gates.begun.length === 1, 60_000);
      // One attempt and three more (PRD 4.3), and then the work begins.
      const [log = ""] = (await editor.log()).split("“Offline” begins untracked");
      expect(log.match(/\[error\] Could not create the session: .*connection refused/g)).toHaveLength(4);
      const waits = [...log.matchAll(/next attempt follows in ([\d.]+) s/g)]
        .slice(0, 3)
        .map(([, wait]) => Number(wait));
      expect(waits.map((wait, index) => Math.round(wait / 2 ** index))).toEqual([1, 1, 1]);
      await until("the status bar says so", async () => (await shown.status()).includes("API away"));
      gates.open("first", "second");
      await until("the plan is done", () => gates.done.length === 2);
      await until("the status bar says so", async () => (await shown.status()).includes("2/2"));
    } finally {
      await backend.up();
    }
    const session = await until(
      "the API knows that it is completed",
      async () => (await backend.sessionsOf("offline")).find(({ status }) => status === "completed"),
      60_000,
    );
    expect((await backend.tasksOf(session.session_id)).map(({ task_name, status }) => [task_name, status])).toEqual([
      ["first", "completed"],
      ["second", "completed"],
    ]);
  });

  test("the API killed and restarted in the middle of a plan knows the true end of every task", async () => {
    const tasks = ["first", "second", "third", "fourth"];
    const folder = await editor.folder({ "plan.toml": gatedPlan("restart", "Restart", tasks) });
    const gates = new Gates(folder);
    const shown = await open(folder);
    await shown.start("Restart");
    const session = await only("restart");
    gates.open("first");
    await until(
      "the second task is reported",
      async () => (await backend.tasksOf(session.session_id))[1]?.status === "in_progress",
    );
    await backend.kill();
    gates.open("second", "third");
    await until("the fourth task has begun", () => gates.begun.at(-1)?.task === "fourth");
    await until("the window knows that the API is away", async () => (await shown.status()).includes("API away"));
    await backend.up();
    await until("the missed reports arrive", async () => {
      const statuses = (await backend.tasksOf(session.session_id)).map(({ status }) => status);
      return JSON.stringify(statuses) === '["completed","completed","completed","in_progress"]';
    });
    gates.open("fourth");
    await until(
      "the session is completed",
      async () => (await backend.api().session(session.session_id)).status === "completed",
    );
    expect(
      (await backend.tasksOf(session.session_id)).map(({ task_name, status }) => `${task_name} ${status}`),
    ).toEqual(tasks.map((task) => `${task} completed`));
    expect(gates.begun.map(({ task }) => task)).toEqual(tasks);
    expect(await backend.sessionsOf("restart")).toHaveLength(1);
  });

  test("a session that another machine took over stops here, with its command, and says why", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("robbed", "Robbed", ["first", "second"]) });
    const gates = new Gates(folder);
    const shown = await open(folder);
    await shown.start("Robbed");
    const session = await only("robbed");
    const { pid } = await until("the first task has begun", () => gates.begun[0]);
    const successor = await takenOver(session.session_id);
    await shown.notification(`session ${successor.session_id} goes on with it`).waitFor();
    await until("the command is gone", () => identify(pid) === undefined);
    gates.open("first", "second");
    await until("the status bar says so", async () => !(await shown.status()).includes("task 1/2"));
    expect(await backend.api().session(successor.session_id)).toMatchObject({ status: "active", recovered_by: null });
    expect(gates.done).toEqual([]);
  });

  test("a plan with a mistake is not begun, and the mistake is marked where it stands", async () => {
    const folder = await editor.folder({
      "plan.toml": 'project_id = "mistaken"\n\n[[tasks]]\nname = "first"\npromt = "Do it."\n',
    });
    const shown = await open(folder);
    await shown.start("plan.toml");
    await shown.notification("plan.toml:5").waitFor();
    expect(await shown.notification("plan.toml:5").textContent()).toContain("promt");
    await shown.page.locator(".squiggly-error").first().waitFor();
    await until("the cursor stands at the mistake", async () =>
      (await shown.page.locator(".statusbar").textContent())?.includes("Ln 5"),
    );
    expect(await backend.sessionsOf("mistaken")).toHaveLength(0);
  });
});

describe("for other extensions", () => {
  test("the exported API tracks the session, tasks and end of an orchestrator that exists already", async () => {
    const shown = await open(await editor.folder({}));
    await shown.command("Fixture: Run an Orchestration of Another Extension");
    await shown.notification("reported: true").waitFor();
    const session = await only("fixture");
    expect(await shown.notification("reported: true").textContent()).toContain(session.session_id);
    expect(session).toMatchObject({ status: "failed", metadata: { colour: "blue", title: "Fixture" } });
    expect(session.metadata["error_message"]).toBe("the second task broke");
    const tasks = await backend.tasksOf(session.session_id);
    expect(tasks.map(({ task_name, status, github_issue_id }) => [task_name, status, github_issue_id])).toEqual([
      ["first", "completed", "7"],
      ["second", "failed", null],
      ["third", "blocked", null],
    ]);
    expect(tasks[1]).toMatchObject({ error_message: "it broke", metadata: { size: 3 } });

    await shown.command("Fixture: Wait to Be Replaced");
    const { session_id: id } = await only("fixture-waits");
    const successor = await takenOver(id);
    await shown.notification(`Fixture replaced: session ${successor.session_id} goes on with it`).waitFor();
  });
});
