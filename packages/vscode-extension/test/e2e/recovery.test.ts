/** What is left behind, found and taken up again in a real VS Code: after crashes, closed windows, and elsewhere. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { isAlive, identify, type ProcessIdentity } from "../../src/processes.js";
import { Backend } from "../rig/backend.js";
import { CommandLine } from "../rig/commandLine.js";
import { Editor } from "../rig/editor.js";
import { explain } from "../rig/explain.js";
import { Gates, gatedPlan } from "../rig/plans.js";
import { until } from "../rig/until.js";
import type { Window } from "../rig/window.js";

let backend: Backend;
let editor: Editor;
const windows: Window[] = [];

beforeAll(async () => {
  // Long enough for nothing here to count as silent by itself: what is dead is found out by other means.
  backend = await Backend.start({ STALL_THRESHOLD_MS: "600000" });
  editor = await Editor.start({
    settings: { apiUrl: backend.url, heartbeatIntervalSeconds: 1 },
    environment: { CLAUDE_PROJECTS_API_KEY: backend.key },
  });
});

afterAll(async () => {
  await editor.stop();
  await backend.stop();
});

afterEach(async ({ task }) => {
  const open = windows.splice(0);
  if (task.result?.state === "fail") {
    for (const window of open) {
      await explain(window, editor, task.name);
    }
  }
  for (const window of open) {
    await window.close().catch(() => undefined);
  }
});

const TASKS = ["first", "second", "third"];

interface Scene {
  readonly folder: string;
  readonly gates: Gates;
  readonly window: Window;
  readonly sessionId: string;
  /** The command of the second task, which is in progress. */
  readonly child: ProcessIdentity;
}

async function open(folder: string): Promise<Window> {
  const window = await editor.open(folder);
  windows.push(window);
  return window;
}

/** A plan of three tasks in the middle of its second, as the API knows too. */
async function inTheMiddle(projectId: string): Promise<Scene> {
  const folder = await editor.folder({ "plan.toml": gatedPlan(projectId, `Plan ${projectId}`, TASKS) });
  const gates = new Gates(folder);
  const window = await open(folder);
  gates.open("first");
  await window.start(`Plan ${projectId}`);
  const { session_id: sessionId } = await until(
    "there is a session",
    async () => (await backend.sessionsOf(projectId))[0],
  );
  await until("the API knows all tasks", async () => {
    const tasks = await backend.tasksOf(sessionId);
    return tasks.length === 3 && tasks[1]?.status === "in_progress";
  });
  const child = await until("the second task has begun", () => identify(gates.begun[1]?.pid ?? 0));
  return { folder, gates, window, sessionId, child };
}

/** The plan ends with every task completed, each done once, and only the interrupted one begun twice. */
async function expectCompletion({ gates, sessionId }: Scene, projectId: string, isRecovered: boolean): Promise<void> {
  gates.open(...TASKS);
  const last = await until("the plan's last session is completed", async () =>
    (await backend.sessionsOf(projectId)).find(
      ({ status, recovered_by }) => status === "completed" && recovered_by === null,
    ),
  );
  expect(last.recovered_from).toBe(isRecovered ? sessionId : null);
  const tasks = await backend.tasksOf(last.session_id);
  expect(tasks.map(({ task_name, status }) => [task_name, status])).toEqual(
    (isRecovered ? TASKS.slice(1) : TASKS).map((name) => [name, "completed"]),
  );
  expect(gates.done).toEqual(TASKS);
  expect(gates.begun.map(({ task }) => task)).toEqual(["first", "second", "second", "third"]);
  if (isRecovered) {
    const original = await backend.api().session(sessionId);
    expect(original).toMatchObject({ status: "completed", recovered_by: last.session_id });
    expect((await backend.tasksOf(sessionId))[0]).toMatchObject({ task_name: "first", status: "completed" });
  }
}

describe("after a crash", () => {
  test("the extension host killed in the middle of a task: the session is found, recovered, and finished", async () => {
    const scene = await inTheMiddle("host-crash");
    process.kill(scene.window.host, "SIGKILL");
    await until("the command has not outlived its host", () => !isAlive(scene.child));
    await scene.window.press("was left behind at task 2 of 3", "Continue");
    await expectCompletion(scene, "host-crash", true);
  });

  test("the whole server killed and started again: the plan goes on by itself where the setting says so", async () => {
    const scene = await inTheMiddle("server-crash");
    await editor.kill();
    await editor.configure({ leftBehind: "continue" });
    try {
      await editor.up();
      await until("the command has not outlived its host", () => !isAlive(scene.child));
      await scene.window.page.reload();
      await expectCompletion(scene, "server-crash", true);
    } finally {
      await editor.configure({});
    }
  });

  test("what was done while the API was away is not done again after a crash", async () => {
    const scene = await inTheMiddle("double-crash");
    await backend.kill();
    scene.gates.open("second");
    await until("the third task has begun", () => scene.gates.begun[2]);
    process.kill(scene.window.host, "SIGKILL");
    await scene.window.press("was left behind at task 3 of 3", "Continue");
    try {
      await scene.window.notification("as soon as the API has confirmed").waitFor();
      expect(scene.gates.begun).toHaveLength(3);
    } finally {
      await backend.up();
    }
    scene.gates.open("third");
    await until("the plan is done", () => scene.gates.done.length === 3);
    await until("the API knows", async () =>
      (await backend.sessionsOf("double-crash")).some(
        ({ status, recovered_by }) => status === "completed" && recovered_by === null,
      ),
    );
    expect((await backend.tasksOf(scene.sessionId)).map(({ status }) => status)).toEqual([
      "completed",
      "completed",
      "failed",
    ]);
    expect(scene.gates.begun.map(({ task }) => task)).toEqual(["first", "second", "third", "third"]);
  });
});

describe("when a window is closed", () => {
  test("its orchestration is paused, and the next window goes on with the same session", async () => {
    const scene = await inTheMiddle("closed");
    await scene.window.close();
    windows.length = 0;
    expect(isAlive(scene.child)).toBe(false);
    expect(await backend.api().session(scene.sessionId)).toMatchObject({ status: "paused" });
    expect((await backend.tasksOf(scene.sessionId))[1]?.metadata).toMatchObject({
      blocked_because: "the window was closed",
    });
    const next = await open(scene.folder);
    await next.press("was left behind at task 2 of 3", "Continue");
    await expectCompletion(scene, "closed", false);
  });

  test("what a person had paused is asked about, also where the rest goes on by itself", async () => {
    const scene = await inTheMiddle("by-person");
    await scene.window.command("Claude Projects: Pause Orchestration");
    await scene.window.quickInput("Pause “Plan by-person”");
    await scene.window.pick("Now");
    await until("it is paused", async () => (await backend.api().session(scene.sessionId)).status === "paused");
    await scene.window.close();
    windows.length = 0;
    await editor.configure({ leftBehind: "continue" });
    try {
      const next = await open(scene.folder);
      await next.notification("was left behind at task 2 of 3").waitFor();
      expect(await backend.api().session(scene.sessionId)).toMatchObject({ status: "paused" });
      await next.press("was left behind at task 2 of 3", "Continue");
      await expectCompletion(scene, "by-person", false);
    } finally {
      await editor.configure({});
    }
  });

  test("but its host lives on: a second window is told, and takes over only when asked; the first one stops", async () => {
    const scene = await inTheMiddle("lives-on");
    await scene.window.abandon();
    windows.length = 0;
    const second = await open(scene.folder);
    await second.notification("is at work in another window").waitFor();
    expect(editor.hosts()).toEqual(expect.arrayContaining([scene.window.host, second.host]));
    expect(isAlive(scene.child)).toBe(true);
    expect(await backend.api().session(scene.sessionId)).toMatchObject({ status: "active" });

    await second.press("is at work in another window", "Take Over");
    await until("the second window works on it", () => scene.gates.begun.length === 3);
    await until("the first one's command has ended", () => !isAlive(scene.child));
    await until("the first one says why it stopped", async () =>
      (await editor.log()).includes("Plan lives-on: replaced ("),
    );
    // It is alive, and would have reported this task as failed or begun the next one.
    expect(editor.hosts()).toContain(scene.window.host);
    await expectCompletion(scene, "lives-on", true);
    process.kill(scene.window.host, "SIGKILL");
  });
});

describe("sessions of others", () => {
  test("one that the command line left behind on this machine is offered, and finished here", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("from-cli", "From the Command Line", TASKS) });
    const gates = new Gates(folder);
    gates.open("first");
    const run = new CommandLine(backend, folder, ["run", "plan.toml"]);
    const session = await until("it is in its second task", async () => {
      const [found] = await backend.sessionsOf("from-cli");
      return found !== undefined && gates.begun.length === 2 && (await backend.tasksOf(found.session_id)).length === 3
        ? found
        : undefined;
    });
    await run.kill();
    const window = await open(folder);
    await window.press("has been silent on this machine", "Continue Here");
    const scene = { folder, gates, window, sessionId: session.session_id, child: { pid: 0, started: "", place: "" } };
    await expectCompletion(scene, "from-cli", true);
  });

  test("the command line resumes what a window left behind", async () => {
    const scene = await inTheMiddle("to-cli");
    await editor.configure({ leftBehind: "leave" });
    try {
      process.kill(scene.window.host, "SIGKILL");
      await until("the command has not outlived its host", () => !isAlive(scene.child));
      scene.gates.open(...TASKS);
      const resume = new CommandLine(backend, scene.folder, ["resume", scene.sessionId]);
      const code = await resume.exit;
      expect(code, resume.said).toBe(0);
      await expectCompletion(scene, "to-cli", true);
    } finally {
      await editor.configure({});
    }
  });

  test("a stalled one of this project on another machine is offered, never taken by itself", async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("elsewhere", "Elsewhere", ["first", "second"]) });
    const gates = new Gates(folder);
    gates.open("first", "second");
    const api = backend.api();
    const definition = (name: string): object => ({ name, command: `echo ${name} >> done` });
    const session = await api.createSession({
      project_id: "elsewhere",
      machine_id: "another-machine",
      metadata: { title: "Elsewhere" },
    });
    for (const [index, name] of ["first", "second"].entries()) {
      await api.createTask({
        session_id: session.session_id,
        project_id: "elsewhere",
        task_name: name,
        metadata: { plan: { index, of: 2, definition: definition(name) } },
      });
    }
    await api.markStalled(session.session_id);
    await editor.configure({ leftBehind: "continue" });
    try {
      const window = await open(folder);
      await window.press("has been silent on another-machine", "Continue Here");
      const successor = await until("it is finished here", async () =>
        (await backend.sessionsOf("elsewhere")).find(
          ({ status, recovered_from }) => status === "completed" && recovered_from !== null,
        ),
      );
      expect(successor).toMatchObject({ recovered_from: session.session_id });
      expect(successor.machine_id).not.toBe("another-machine");
      expect(gates.done).toEqual(["first", "second"]);
    } finally {
      await editor.configure({});
    }
  });
});
