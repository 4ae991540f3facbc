/** The commands: what a person asks for, put to the modules that do it, and their refusals put into words. */
import { existsSync } from "node:fs";
import * as vscode from "vscode";
import { type Api, ApiError } from "./api/client.js";
import type { Credentials } from "./credentials.js";
import type { Log } from "./log.js";
import type { Orchestration } from "./orchestration/orchestration.js";
import type { Orchestrations } from "./orchestration/orchestrations.js";
import { titleOf } from "./orchestration/outline.js";
import { Refusal } from "./orchestration/refusal.js";
import type { Recovery } from "./orchestration/recovery.js";
import type { Plan } from "./plan/plan.js";
import type { Plans } from "./plan/plans.js";
import { settings } from "./settings.js";
import type { TaskRecord } from "./tracking/record.js";
import type { FleetTree, Node } from "./views/tree.js";
import { since, statusWord } from "./words.js";

export interface CommandSurroundings {
  readonly orchestrations: Orchestrations;
  readonly recovery: Recovery;
  readonly plans: Plans;
  readonly credentials: Credentials;
  readonly tree: FleetTree;
  readonly log: Log;
  readonly channel: vscode.LogOutputChannel;
  readonly api: () => Api;
  readonly reconnect: () => void;
}

/** What a command is about where it was given in the tree. */
type Subject = Node | undefined;

const EXAMPLE_PLAN = `# The tasks of this plan are done one after another, and tracked: run “Claude Projects: Start Orchestration”.
project_id = "my-project"
name = "A first plan"

# What a prompt is given to; this is the default.
# command = ["claude", "-p", "--output-format", "json"]

[[tasks]]
name = "Say hello"
command = ["echo", "Hello from the first task"]

[[tasks]]
name = "Count the files"
command = "ls | wc -l"

# [[tasks]]
# name = "Write the release notes"
# prompt = "Write release notes for the commits since the last tag into NOTES.md."
# timeout_seconds = 1800
`;

export function registerCommands(around: CommandSurroundings): vscode.Disposable[] {
  const { orchestrations, recovery, plans, credentials, tree, log, channel } = around;

  const actions: Readonly<Record<string, (...args: never[]) => unknown>> = {
    start: (uri?: vscode.Uri) => start(around, uri),
    pause: async (subject: Subject) => {
      const orchestration = await choose(orchestrations, "Pause", ({ state }) => state === "running", subject);
      if (orchestration !== undefined) {
        await pause(orchestration);
      }
    },
    resume: async (subject: Subject) => {
      const isResting = ({ state }: Orchestration): boolean => state === "paused" || state === "pausing";
      const left = orchestrations.leftBehind(workspaceFolders())[0];
      if (left !== undefined && !orchestrations.live.some(isResting)) {
        await recovery.continue(left);
        return;
      }
      const orchestration = await choose(orchestrations, "Resume", isResting, subject);
      if (orchestration !== undefined) {
        orchestration.resume();
        orchestrations.showTerminal(orchestration);
      }
    },
    stop: async (subject: Subject) => {
      const orchestration = await choose(orchestrations, "Stop", () => true, subject);
      if (orchestration !== undefined) {
        await stop(orchestration);
      }
    },
    recover: (argument: Subject | string) => recover(around, argument),
    openDashboard: () =>
      vscode.env.openExternal(vscode.Uri.parse(`${settings().apiUrl.replace(/\/+$/, "")}/dashboard`)),
    showLog: () => {
      channel.show();
    },
    showTerminal: async (subject: Subject) => {
      const orchestration = await choose(orchestrations, "Watch", () => true, subject);
      if (orchestration !== undefined) {
        orchestrations.showTerminal(orchestration);
      }
    },
    showTaskOutput: async (subject: Subject) => {
      const orchestration = await choose(orchestrations, "Read", () => true, subject, orchestrations.all);
      if (orchestration !== undefined) {
        await showTaskOutput(orchestration, subject?.kind === "local-task" ? subject.task : undefined);
      }
    },
    setApiKey: async () => {
      if (await credentials.ask()) {
        around.reconnect();
        await tree.refresh();
      }
    },
    createPlan: () => createPlan(),
    refresh: () => tree.refresh(),
    openSettings: () => openSettings(),
    copySessionId: async (subject: Subject) => {
      if (subject?.kind === "session") {
        await vscode.env.clipboard.writeText(subject.session.session_id);
      }
    },
    markFailed: async (subject: Subject) => {
      if (subject?.kind === "session") {
        await markFailed(around, subject.session.session_id);
      }
    },
    menu: () => menu(orchestrations),
  };

  plans.recheck();
  return Object.entries(actions).map(([name, action]) =>
    vscode.commands.registerCommand(`claudeProjects.${name}`, async (...args: never[]) => {
      try {
        return await action(...args);
      } catch (error) {
        report(error, log);
        return undefined;
      }
    }),
  );
}

export function workspaceFolders(): string[] {
  return (vscode.workspace.workspaceFolders ?? []).map(({ uri }) => uri.fsPath);
}

async function start(around: CommandSurroundings, uri: vscode.Uri | undefined): Promise<void> {
  if (!vscode.workspace.isTrusted) {
    const answer = await vscode.window.showWarningMessage(
      "A plan runs commands on this machine: trust the workspace first.",
      "Manage Workspace Trust",
    );
    if (answer !== undefined) {
      await vscode.commands.executeCommand("workbench.trust.manage");
    }
    return;
  }
  const chosen = uri ?? (await pickPlan(around));
  if (chosen === undefined) {
    return;
  }
  const reading = await around.plans.read(chosen);
  if ("problems" in reading) {
    await around.plans.reveal(chosen, reading.problems);
    const [first] = reading.problems;
    const more = reading.problems.length - 1;
    void vscode.window.showErrorMessage(
      `${vscode.workspace.asRelativePath(chosen)}:${String((first?.span.start.line ?? 0) + 1)}: ${first?.message ?? ""}` +
        (more > 0 ? ` And ${String(more)} more.` : ""),
    );
    return;
  }
  const workspace = vscode.workspace.getWorkspaceFolder(chosen)?.uri.fsPath ?? vscode.Uri.joinPath(chosen, "..").fsPath;
  if (!(await settleLeftovers(around, reading.plan))) {
    return;
  }
  await begin(around, reading.plan, workspace);
}

async function begin(around: CommandSurroundings, plan: Plan, workspace: string, force = false): Promise<void> {
  try {
    const orchestration = await vscode.window.withProgress(
      { location: vscode.ProgressLocation.Window, title: `Starting “${plan.name}”` },
      () => around.orchestrations.start(plan, workspace, force),
    );
    around.orchestrations.showTerminal(orchestration);
  } catch (error) {
    if (error instanceof Refusal && error.existing === undefined && error.canOverrule) {
      // The API, which would know, is away.
      if ((await vscode.window.showWarningMessage(error.message, "Begin Anyway")) !== undefined) {
        await begin(around, plan, workspace, true);
      }
      return;
    }
    if (!(error instanceof Refusal) || error.existing === undefined) {
      throw error;
    }
    const { existing } = error;
    const takeOver = error.canOverrule ? "Take Over" : "Continue It";
    const answer = await vscode.window.showWarningMessage(error.message, takeOver, "Begin Anew");
    if (answer === takeOver) {
      await recover(around, existing.session_id, error.canOverrule);
    } else if (answer === "Begin Anew") {
      await around.api().markFailed(existing.session_id, "given up: the plan was begun anew");
      await begin(around, plan, workspace);
    }
  }
}

/** Whether the way is free for a new run of this plan: what an earlier one left behind is asked about first. */
async function settleLeftovers(around: CommandSurroundings, plan: Plan): Promise<boolean> {
  const left = around.orchestrations
    .leftBehind(workspaceFolders())
    .find(({ projectId }) => projectId === plan.projectId);
  if (left === undefined) {
    return true;
  }
  const answer = await vscode.window.showInformationMessage(
    `An earlier run of “${left.title}” was left behind. Continue it, or give it up and begin anew?`,
    "Continue It",
    "Begin Anew",
  );
  if (answer === "Continue It") {
    await around.recovery.continue(left);
  } else if (answer === "Begin Anew") {
    await around.orchestrations.abandon(left.runId, "given up: the plan was begun anew");
    return true;
  }
  return false;
}

async function pickPlan({ plans }: CommandSurroundings): Promise<vscode.Uri | undefined> {
  const found = await plans.find();
  if (found.length === 0) {
    const answer = await vscode.window.showInformationMessage(
      `No plan file matches ${settings().planFiles}.`,
      "Create a Plan",
    );
    if (answer !== undefined) {
      await createPlan();
    }
    return undefined;
  }
  const items = await Promise.all(
    found.map(async (uri) => {
      const reading = await plans.read(uri);
      const path = vscode.workspace.asRelativePath(uri);
      return "plan" in reading
        ? {
            uri,
            label: `$(list-ordered) ${reading.plan.name}`,
            description: path,
            detail: `${String(reading.plan.tasks.length)} tasks for ${reading.plan.projectId}`,
          }
        : { uri, label: `$(error) ${path}`, description: "", detail: reading.problems[0]?.message ?? "" };
    }),
  );
  const picked = await vscode.window.showQuickPick(items, {
    title: "Start an Orchestration",
    placeHolder: "The plan to carry out",
    matchOnDescription: true,
  });
  return picked?.uri;
}

async function pause(orchestration: Orchestration): Promise<void> {
  if (orchestration.currentTask === undefined) {
    orchestration.pause(false);
    return;
  }
  const after = {
    label: "$(debug-step-over) After this task",
    detail: `“${orchestration.currentTask.name}” is finished first.`,
  };
  const now = {
    label: "$(debug-pause) Now",
    detail: "The task is interrupted, and starts anew when the plan goes on.",
  };
  const picked = await vscode.window.showQuickPick([after, now], { title: `Pause “${orchestration.run.title}”` });
  if (picked !== undefined) {
    orchestration.pause(picked === now);
  }
}

async function stop(orchestration: Orchestration): Promise<void> {
  const completed = {
    label: "$(pass) As completed",
    detail: "What was wanted is done; the rest is not needed any more.",
  };
  const failed = { label: "$(error) As failed", detail: "It can be recovered later, and goes on with what is left." };
  const picked = await vscode.window.showQuickPick([completed, failed], { title: `Stop “${orchestration.run.title}”` });
  if (picked === completed) {
    orchestration.stop("complete", "stopped by a person as completed");
  } else if (picked === failed) {
    const reason = await vscode.window.showInputBox({
      title: "Why does it fail?",
      prompt: "The session's error message",
      value: "stopped by a person",
    });
    if (reason !== undefined) {
      orchestration.stop("fail", reason.trim() || "stopped by a person");
    }
  }
}

async function recover(around: CommandSurroundings, argument: Subject | string, force = false): Promise<void> {
  if (workspaceFolders().length === 0) {
    throw new Refusal("Open the folder in which the tasks are to run first.");
  }
  if (!vscode.workspace.isTrusted) {
    throw new Refusal("The tasks run commands on this machine: trust the workspace first.");
  }
  const sessionId =
    typeof argument === "string"
      ? argument
      : argument?.kind === "session"
        ? argument.session.session_id
        : await pickAbandoned(around);
  const workspace = sessionId === undefined ? undefined : await folderFor(around, sessionId);
  if (sessionId === undefined || workspace === undefined) {
    return;
  }
  try {
    const orchestration = await around.orchestrations.recover(sessionId, workspace, force);
    around.orchestrations.showTerminal(orchestration);
    await around.tree.refresh();
  } catch (error) {
    if (!(error instanceof Refusal) || !error.canOverrule || force) {
      throw error;
    }
    const answer = await vscode.window.showWarningMessage(
      error.message,
      { modal: true, detail: "If you take it over, the other one stops, and the task in progress starts anew here." },
      "Take Over",
    );
    if (answer !== undefined) {
      await recover(around, sessionId, true);
    }
  }
}

/** The folder of this window in which a session's tasks are to run: the one where they ran, else what a person says. */
async function folderFor({ api }: CommandSurroundings, sessionId: string): Promise<string | undefined> {
  const [first, ...others] = workspaceFolders();
  if (others.length === 0) {
    return first;
  }
  const { workspace } = (await api().session(sessionId)).metadata;
  if (typeof workspace === "string" && workspaceFolders().includes(workspace)) {
    return workspace;
  }
  const picked = await vscode.window.showWorkspaceFolderPick({
    placeHolder: "The folder in which its tasks are to run",
  });
  return picked?.uri.fsPath;
}

async function pickAbandoned({ api, orchestrations }: CommandSurroundings): Promise<string | undefined> {
  const sessions = (
    await Promise.all((["stalled", "failed", "paused", "active"] as const).map((status) => api().sessions({ status })))
  )
    .flat()
    .filter(({ session_id }) => !orchestrations.live.some(({ run }) => run.sessionId === session_id));
  if (sessions.length === 0) {
    void vscode.window.showInformationMessage("There is no session to recover.");
    return undefined;
  }
  const picked = await vscode.window.showQuickPick(
    sessions.map((session) => ({
      id: session.session_id,
      label: titleOf(session),
      description: `${statusWord(session.status)} on ${session.machine_id}`,
      detail: `${session.project_id} · last heartbeat ${since(session.last_heartbeat)} ago · ${session.session_id}`,
    })),
    { title: "Recover a Session", placeHolder: "The session to continue in this window", matchOnDetail: true },
  );
  return picked?.id;
}

async function markFailed({ api, tree }: CommandSurroundings, sessionId: string): Promise<void> {
  const reason = await vscode.window.showInputBox({ title: "Why did it fail?", prompt: "The session's error message" });
  if (reason !== undefined && reason.trim() !== "") {
    await api().markFailed(sessionId, reason.trim());
    await tree.refresh();
  }
}

async function showTaskOutput(orchestration: Orchestration, chosen?: TaskRecord): Promise<void> {
  const started = orchestration.run.tasks.filter((task) => existsSync(orchestration.logFile(task)));
  if (started.length === 0 || (chosen !== undefined && !started.includes(chosen))) {
    void vscode.window.showInformationMessage("There is no output: it has not begun on this machine yet.");
    return;
  }
  // Of one that has failed, it is the failed task that is asked for.
  const failed = started.filter(({ status }) => status === "failed");
  const task =
    chosen ??
    (started.length === 1 || failed.length === 1
      ? (failed[0] ?? started[0])
      : (
          await vscode.window.showQuickPick(
            started.map((one) => ({ task: one, label: one.name, description: statusWord(one.status) })),
            { title: "Show a Task's Output" },
          )
        )?.task);
  if (task !== undefined) {
    await vscode.window.showTextDocument(vscode.Uri.file(orchestration.logFile(task)), { preview: true });
  }
}

/** Where most of the settings can be set: those of the machine that the extension runs on. */
async function openSettings(): Promise<void> {
  const query = "@ext:claude-projects.claude-projects";
  const where = vscode.env.remoteName === undefined ? "openSettings" : "openRemoteSettings";
  await vscode.commands.executeCommand(`workbench.action.${where}`, { query });
}

async function createPlan(): Promise<void> {
  const folder = vscode.workspace.workspaceFolders?.[0];
  if (folder === undefined) {
    throw new Refusal("Open a folder first: the plan is a file in it.");
  }
  const uri = vscode.Uri.joinPath(folder.uri, "plan.toml");
  const exists = await vscode.workspace.fs.stat(uri).then(
    () => true,
    () => false,
  );
  if (!exists) {
    await vscode.workspace.fs.writeFile(uri, new TextEncoder().encode(EXAMPLE_PLAN));
  }
  await vscode.window.showTextDocument(uri);
}

async function menu(orchestrations: Orchestrations): Promise<void> {
  const item = (icon: string, label: string, command: string): vscode.QuickPickItem & { command: string } => ({
    label: `$(${icon}) ${label}`,
    command: `claudeProjects.${command}`,
  });
  const states = new Set(orchestrations.live.map(({ state }) => state));
  const picked = await vscode.window.showQuickPick(
    [
      ...(states.size > 0 ? [item("terminal", "Show the Terminal", "showTerminal")] : []),
      ...(states.has("running") ? [item("debug-pause", "Pause", "pause")] : []),
      ...(states.has("paused") || states.has("pausing") ? [item("play", "Resume", "resume")] : []),
      ...(states.size > 0 ? [item("debug-stop", "Stop", "stop")] : []),
      ...(orchestrations.all.length > 0 ? [item("file", "Show a Task's Output", "showTaskOutput")] : []),
      item("run-all", "Start an Orchestration", "start"),
      item("history", "Recover a Session", "recover"),
      item("output", "Show the Log", "showLog"),
      item("globe", "Open the Dashboard", "openDashboard"),
    ],
    { title: "Claude Projects" },
  );
  if (picked !== undefined) {
    await vscode.commands.executeCommand(picked.command);
  }
}

async function choose(
  orchestrations: Orchestrations,
  verb: string,
  fits: (orchestration: Orchestration) => boolean,
  subject: Subject,
  among = orchestrations.live,
): Promise<Orchestration | undefined> {
  const candidates = among.filter((one) => fits(one) && isAbout(subject, one));
  if (candidates.length === 0) {
    void vscode.window.showInformationMessage(`There is no orchestration to ${verb.toLowerCase()} in this window.`);
  }
  if (candidates.length <= 1) {
    return candidates[0];
  }
  const picked = await vscode.window.showQuickPick(
    candidates.map((orchestration) => ({
      orchestration,
      label: orchestration.run.title,
      description: orchestration.state,
    })),
    { title: `${verb} an Orchestration` },
  );
  return picked?.orchestration;
}

/** Whether a command that was given in the tree is about this orchestration; one from the palette is about any. */
function isAbout(subject: Subject, orchestration: Orchestration): boolean {
  switch (subject?.kind) {
    case "session":
      return orchestration.run.sessionId === subject.session.session_id;
    case "local":
    case "local-task":
      return orchestration === subject.orchestration;
    default:
      return true;
  }
}

function report(error: unknown, log: Log): void {
  if (error instanceof Refusal) {
    log.warn(error.message);
    void vscode.window.showWarningMessage(error.message);
    return;
  }
  const { kind, message } = error instanceof ApiError ? error : { kind: "other", message: String(error) };
  log.error(message);
  if (kind === "unauthorized") {
    void offerKey(message);
  } else {
    void vscode.window.showErrorMessage(`Claude Projects: ${message}`);
  }
}

/** AC-4.3.e: what is wrong, what it means, and a button that puts it right. */
export async function offerKey(message: string): Promise<void> {
  const answer = await vscode.window.showErrorMessage(
    `The State Tracking API refuses access (${message}). The work goes on untracked until a valid API key is set.`,
    "Set API Key",
    "Open Settings",
  );
  if (answer === "Set API Key") {
    await vscode.commands.executeCommand("claudeProjects.setApiKey");
  } else if (answer === "Open Settings") {
    await vscode.commands.executeCommand("claudeProjects.openSettings");
  }
}
