/** What people see, in a dark and a light theme. The pictures go to `dist/pictures`, to be looked at. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { Backend } from "../rig/backend.js";
import { Editor } from "../rig/editor.js";
import { explain } from "../rig/explain.js";
import { Gates, gatedPlan } from "../rig/plans.js";
import { until } from "../rig/until.js";
import type { Window } from "../rig/window.js";

const PICTURES = join(import.meta.dirname, "../../dist/pictures");

const PLAN = `project_id = "acme/webshop"
name = "Release 2.4"

[[tasks]]
name = "Run the test suite"
command = "sh scripts-test.sh"
github_issue_id = "118"

[[tasks]]
name = "Write the release notes"
command = "sh scripts-notes.sh"
github_issue_id = "121"

[[tasks]]
name = "Update the changelog"
command = "until [ -e .open-changelog ]; do sleep 0.1; done"

[[tasks]]
name = "Tag the release"
command = ["git", "tag", "v2.4.0"]
`;

const FILES = {
  "plan.toml": PLAN,
  "scripts-test.sh": `echo "collected 214 items"
echo
echo "214 passed in 9.41 s"
until [ -e .open-tests ]; do sleep 0.1; done
echo tests >> .done
`,
  "scripts-notes.sh": `echo $$ notes >> .begun
echo "Reading the commits since v2.3.0 ..."
echo "31 commits by 6 people"
until [ -e .open-notes ]; do sleep 0.1; done
`,
};

let backend: Backend;
let editor: Editor;
let window: Window | undefined;

beforeAll(async () => {
  mkdirSync(PICTURES, { recursive: true });
  backend = await Backend.start({ STALL_THRESHOLD_MS: "600000" });
  editor = await Editor.start({
    settings: { apiUrl: backend.url, heartbeatIntervalSeconds: 2, refreshIntervalSeconds: 2, machineId: "ada-laptop" },
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

/** Moves the pointer away from anything that shows something when it is hovered over. */
async function moveAside(shown: Window): Promise<void> {
  await shown.page.mouse.move(700, 789);
}

async function picture(shown: Window, name: string): Promise<void> {
  await moveAside(shown);
  // A colour that is on its way from one theme to the other is of neither.
  await shown.page.evaluate(
    "Promise.allSettled(document.getAnimations().filter((one) => one instanceof CSSTransition).map((one) => one.finished)).then(() => null)",
  );
  await shown.screenshot(join(PICTURES, `${name}.png`));
}

const THEMES = { dark: "Default Dark Modern", light: "Default Light Modern" } as const;

/** What is shown in a dark window, in a light one as well; the window is dark again afterwards. */
async function pictures(shown: Window, name: string): Promise<void> {
  await picture(shown, `${name}-dark`);
  await wear(shown, "light");
  await picture(shown, `${name}-light`);
  await wear(shown, "dark");
}

async function wear(shown: Window, theme: keyof typeof THEMES): Promise<void> {
  await editor.configure({}, { "workbench.colorTheme": THEMES[theme] });
  await shown.page.locator(theme === "dark" ? ".monaco-workbench.vs-dark" : ".monaco-workbench.vs").waitFor();
}

/** Machines and sessions of others, in every state. */
async function populate(): Promise<void> {
  const api = backend.api();
  const session = async (
    machine: string,
    title: string,
    tasks: readonly (readonly [name: string, status: "pending" | "in_progress" | "completed" | "failed" | "blocked"])[],
  ): Promise<string> => {
    const { session_id } = await api.createSession({
      project_id: `acme/${title}`,
      machine_id: machine,
      metadata: { title },
    });
    for (const [index, [name, status]] of tasks.entries()) {
      const { task_id } = await api.createTask({
        session_id,
        project_id: `acme/${title}`,
        task_name: name,
        metadata: { plan: { index, of: tasks.length, definition: { name, command: "true" } } },
      });
      if (status !== "pending" && status !== "blocked") {
        await api.patchTask(task_id, { status: "in_progress" });
      }
      if (status === "failed" || status === "completed" || status === "blocked") {
        await api.patchTask(task_id, { status, ...(status === "failed" ? { error_message: "exit code 2" } : {}) });
      }
    }
    return session_id;
  };
  await api.registerMachine("build-01", "build-01", {});
  await api.registerMachine("build-02", "build-02", {});
  await session("build-01", "search-index", [
    ["Collect the documents", "completed"],
    ["Build the index", "in_progress"],
    ["Compare with the last one", "pending"],
  ]);
  const stalled = await session("build-01", "translations", [
    ["Extract the messages", "completed"],
    ["Translate to French", "in_progress"],
    ["Ask about the glossary", "blocked"],
  ]);
  await api.markStalled(stalled);
  const failed = await session("build-02", "dependency-updates", [
    ["Update the lock", "completed"],
    ["Run the tests", "failed"],
  ]);
  await api.markFailed(failed, "task “Run the tests” failed: exit code 2");
  const completed = await session("build-02", "nightly-report", [["Write the report", "completed"]]);
  await api.patchSession(completed, { status: "completed" });
}

test("the first start says what to do: set a key, then begin", async () => {
  const folder = await editor.folder(FILES);
  window = await editor.open(folder);
  await window.showView();
  await window.page.locator(".welcome-view-content", { hasText: "without a valid key" }).waitFor();
  await pictures(window, "welcome-without-key");
  await window.setKey(backend.key);
  await window.page.locator(".welcome-view-content", { hasText: "No session has been tracked yet" }).waitFor();
  await pictures(window, "welcome-empty");
  await window.command("Welcome: Open Walkthrough");
  await window.pick("First Steps with Claude Projects");
  await window.page
    .locator(".getting-started-category", { hasText: "First Steps" })
    .or(window.page.locator(".gettingStartedContainer", { hasText: "Connect to the API" }))
    .first()
    .waitFor();
  await until("the walkthrough is drawn", async () => (await window?.page.locator(".step-title").count()) === 4);
  await pictures(window, "walkthrough");
});

test("an orchestration at work among those of others, in a dark and in a light theme", async () => {
  await populate();
  const folder = await editor.folder(FILES);
  const gates = new Gates(folder, ".");
  window = await editor.open(folder);
  await window.setKey(backend.key);
  await window.showView();
  await window.start("Release 2.4");
  await window.page.locator(".xterm-screen").first().waitFor();
  gates.open("tests");
  await until("the first task is done", () => gates.done.length === 1);
  await window.treeRow("Write the release notes").waitFor();
  await window.treeRow("translations").click();
  await until("its tasks are shown", async () => {
    if (await window?.treeRow("Translate to French").isVisible()) {
      return true;
    }
    await window?.page.keyboard.press("ArrowRight");
    return false;
  });
  await window.treeRow("dependency-updates").waitFor();
  await until("the tree shows the task at work", async () =>
    (await window?.treeRow("Write the release notes").getAttribute("aria-label"))?.includes("in progress"),
  );
  // The session is looked for as soon as it exists, and the machine is registered with it.
  await until("the tree shows the session itself", async () => {
    const [machine, session] = await Promise.all(
      ["ada-laptop", "Release 2.4"].map(async (row) => (await window?.treeRow(row).textContent()) ?? ""),
    );
    return machine?.includes("this machine · 1 live") === true && session?.includes("♥") === true;
  });
  expect(await window.treeRow("translations").textContent()).toContain("stalled");
  expect(await window.treeRow("dependency-updates").textContent()).toContain("failed");
  await until("the status bar says so", async () => /Release 2\.4\s+task 2\/4/.test((await window?.status()) ?? ""));
  await pictures(window, "running");

  const recover = window.page.getByRole("menuitem", { name: "Recover Session" });
  // A tree that is filled again between the click and the key has nothing in focus.
  await until("the menu is open", async () => {
    await window?.treeRow("translations").click();
    await window?.page.keyboard.press("Shift+F10");
    await recover.waitFor({ timeout: 5_000 });
    return true;
  });
  await pictures(window, "menu");
  await window.page.keyboard.press("Escape");
  await recover.waitFor({ state: "detached" });
  await window.command("Claude Projects: Show Actions");
  await window.quickInput("Claude Projects");
  await pictures(window, "actions");
  await window.page.keyboard.press("Escape");
  const [dashboard] = await Promise.all([
    window.page.waitForEvent("popup"),
    window.command("Claude Projects: Open Dashboard"),
  ]);
  // This editor reaches what is on its own machine through a proxy, by the port.
  expect(dashboard.url()).toContain(`/proxy/${String(backend.port)}/`);
  await dashboard.close();
  await window.command("Claude Projects: Open Settings");
  // Most of them belong to the machine, which is a remote one here.
  await window.page.getByText(/^Remote \[/).click();
  await window.page.getByText("Heartbeat Interval Seconds").first().waitFor();
  await pictures(window, "settings");
  await window.command("View: Close All Editors");
  await window.command("Claude Projects: Show Log");
  await window.page.getByText("tracks “Release 2.4”").first().waitFor();
  await pictures(window, "log");
  await window.command("Claude Projects: Show Terminal");
  await window.page.locator(".terminal-wrapper.active").waitFor();

  for (const name of ["light", "dark"] as const) {
    await wear(window, name);
    const { length } = gates.begun;
    editor.hosts().forEach((host) => process.kill(host, "SIGKILL"));
    await window.notification("was left behind at task 2 of 4").waitFor();
    // The view is filled again, and the notification has come to rest.
    await window.treeRow("build-01").waitFor();
    await window.page.locator(".notification-fade-in-done", { hasText: "was left behind" }).waitFor();
    await picture(window, `left-behind-${name}`);
    await window.press("was left behind", "Continue");
    await moveAside(window);
    await until("it is at work again", () => gates.begun.length > length);
  }
  gates.open("notes", "changelog");
  // There is no repository here: the last task fails, and its notification says why.
  await window.notification("Tag the release").waitFor();
  await window.treeRow("3/4 · failed").waitFor();
  await pictures(window, "failed");
});

test("4.3.e: a wrong key is a notification with a button that puts it right, and the work goes on", async () => {
  const folder = await editor.folder({ "plan.toml": gatedPlan("key", "Wrong Key", ["first", "second"]) });
  const gates = new Gates(folder);
  const shown = (window = await editor.open(folder));
  await shown.setKey("00000000-0000-4000-8000-000000000000");
  await shown.start("Wrong Key");
  await shown.notification("Invalid API key").waitFor();
  await until("the first task has begun all the same", () => gates.begun.length === 1);
  await until("the status bar says so", async () => (await shown.status()).includes("key refused"));
  gates.open("first");
  await until("the second task has begun", () => gates.begun.length === 2);
  expect(await backend.sessionsOf("key")).toHaveLength(0);

  await shown.press("Invalid API key", "Set API Key");
  await shown.quickInput("API Key of the State Tracking API");
  await shown.answer(backend.key);
  const session = await until("there is a session", async () => (await backend.sessionsOf("key"))[0]);
  await until("what was missed is reported", async () => {
    const statuses = (await backend.tasksOf(session.session_id)).map(({ status }) => status);
    return JSON.stringify(statuses) === '["completed","in_progress"]';
  });
  gates.open("second");
  await until("the session is completed", async () => (await backend.sessionsOf("key"))[0]?.status === "completed");
  expect(await editor.log()).not.toContain(backend.key);
});

test("an API that is away is said, with the last picture of the sessions and the time of the last heartbeat", async () => {
  const folder = await editor.folder({ ...FILES, "plan.toml": PLAN.replace("acme/webshop", "acme/offline") });
  window = await editor.open(folder);
  await window.setKey(backend.key);
  await window.showView();
  await window.start("Release 2.4");
  await window.treeRow("Run the test suite").waitFor();
  await backend.kill();
  try {
    await window.page
      .locator(".tree-explorer-viewlet-tree-view .message", { hasText: "does not answer" })
      .first()
      .waitFor();
    await until("the status bar says so", async () => /API away\s+\d+ s/.test((await window?.status()) ?? ""));
    await pictures(window, "offline");
  } finally {
    await backend.up();
  }
  await until(
    "the status bar is calm again",
    async () => !((await window?.status()) ?? "API away").includes("API away"),
  );
});

test("in a workspace that is not trusted nothing begins and nothing goes on, until it is trusted", async () => {
  const trust = { "security.workspace.trust.enabled": true, "security.workspace.trust.startupPrompt": "never" };
  const folder = await editor.folder({ "plan.toml": gatedPlan("stranger", "From a Stranger", ["first"]) });
  const gates = new Gates(folder);
  await backend.api().createSession({ project_id: "stranger", machine_id: "elsewhere" });
  await editor.configure({}, trust);
  try {
    const shown = (window = await editor.open(folder));
    await shown.setKey(backend.key);
    await shown.command("Claude Projects: Start Orchestration");
    await shown.notification("trust the workspace first").waitFor();
    await shown.command("Claude Projects: Recover Session");
    await shown.notification("The tasks run commands on this machine").waitFor();
    expect(await backend.sessionsOf("stranger")).toHaveLength(1);
    expect(gates.begun).toEqual([]);

    await shown.press("A plan runs commands on this machine", "Manage Workspace Trust");
    await shown.page
      .locator(".workspace-trust-editor .monaco-button", { hasText: /^Trust$/ })
      .first()
      .click();
    await shown.start("From a Stranger");
    gates.open("first");
    await until("the plan is done", async () =>
      (await backend.sessionsOf("stranger")).some(({ status }) => status === "completed"),
    );
  } finally {
    await editor.configure({});
  }
});
