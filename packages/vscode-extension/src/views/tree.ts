/** The tree of machines, sessions and tasks. */
import * as vscode from "vscode";
import type { Session, Task } from "../api/client.js";
import type { Orchestrations } from "../orchestration/orchestrations.js";
import type { Orchestration } from "../orchestration/orchestration.js";
import type { TaskRecord } from "../tracking/record.js";
import { titleOf } from "../orchestration/outline.js";
import type { Fleet, MachineView } from "./fleet.js";
import { since, statusWord } from "../words.js";
import { statusIcon } from "./icons.js";

export type Node =
  | { readonly kind: "machine"; readonly view: MachineView }
  | { readonly kind: "session"; readonly session: Session }
  | { readonly kind: "task"; readonly task: Task }
  /** An orchestration of this window that the API has not heard of, or that it was not yet asked about. */
  | { readonly kind: "local"; readonly orchestration: Orchestration }
  | { readonly kind: "local-task"; readonly task: TaskRecord; readonly orchestration: Orchestration }
  | { readonly kind: "note"; readonly text: string; readonly icon: string };

export class FleetTree implements vscode.TreeDataProvider<Node>, vscode.Disposable {
  private readonly changed = new vscode.EventEmitter<void>();
  private readonly view: vscode.TreeView<Node>;
  private readonly disposables: vscode.Disposable[] = [];
  private timer: NodeJS.Timeout | undefined;
  private pendingChange: NodeJS.Timeout | undefined;
  private refreshing: Promise<void> | undefined;

  readonly onDidChangeTreeData = this.changed.event;

  constructor(
    private readonly fleet: Fleet,
    private readonly orchestrations: Orchestrations,
    private readonly thisMachine: () => string,
    private readonly intervalMs: () => number,
  ) {
    this.view = vscode.window.createTreeView("claudeProjects.sessions", {
      treeDataProvider: this,
      showCollapseAll: true,
    });
    this.disposables.push(
      this.view,
      this.view.onDidChangeVisibility(({ visible }) => {
        this.poll(visible);
      }),
    );
    orchestrations.on("change", this.showLocalChange);
    orchestrations.on("ended", this.showEnd);
    // Until it is known, the view says nothing rather than something wrong.
    this.say("loading");
    this.poll(this.view.visible);
  }

  dispose(): void {
    clearTimeout(this.timer);
    clearTimeout(this.pendingChange);
    this.orchestrations.off("change", this.showLocalChange);
    this.orchestrations.off("ended", this.showEnd);
    this.disposables.forEach((disposable) => void disposable.dispose());
    this.changed.dispose();
  }

  async refresh(): Promise<void> {
    this.refreshing ??= this.fleet.refresh().finally(() => {
      this.refreshing = undefined;
    });
    await this.refreshing;
    this.describe();
    this.changed.fire();
  }

  getChildren(node?: Node): Node[] | Promise<Node[]> {
    if (node === undefined) {
      return this.roots();
    }
    switch (node.kind) {
      case "machine":
        return [
          ...this.untracked(node.view.machineId),
          ...node.view.sessions.map((session): Node => ({ kind: "session", session })),
        ];
      case "session": {
        // What this window does, it knows best, and without asking.
        const own = this.own(node.session);
        return own === undefined ? this.tasks(node.session.session_id) : localTasks(own);
      }
      case "local":
        return localTasks(node.orchestration);
      default:
        return [];
    }
  }

  getTreeItem(node: Node): vscode.TreeItem {
    switch (node.kind) {
      case "machine":
        return this.machineItem(node.view);
      case "session":
        return this.sessionItem(node.session);
      case "task":
        return taskItem(node.task);
      case "local":
        return localItem(node.orchestration);
      case "local-task":
        return localTaskItem(node);
      case "note": {
        const item = new vscode.TreeItem(node.text);
        item.iconPath = new vscode.ThemeIcon(node.icon);
        return item;
      }
    }
  }

  private roots(): Node[] {
    const machines = this.fleet.machines.map((view): Node => ({ kind: "machine", view }));
    const here = this.thisMachine();
    if (this.untracked(here).length > 0 && !this.fleet.machines.some(({ machineId }) => machineId === here)) {
      machines.unshift({ kind: "machine", view: { machineId: here, machine: undefined, sessions: [] } });
    }
    // An empty list makes VS Code show the welcome text, which says what to do.
    return machines;
  }

  private untracked(machineId: string): Node[] {
    return this.orchestrations.live
      .filter(({ run }) => run.machineId === machineId && !isListed(run.sessionId, this.fleet))
      .map((orchestration) => ({ kind: "local", orchestration }));
  }

  private async tasks(sessionId: string): Promise<Node[]> {
    try {
      const tasks = await this.fleet.tasks(sessionId);
      return tasks.length === 0
        ? [{ kind: "note", text: "No tasks yet", icon: "dash" }]
        : tasks.map((task) => ({ kind: "task", task }));
    } catch {
      return [{ kind: "note", text: "The tasks cannot be read at the moment", icon: "cloud" }];
    }
  }

  private machineItem({ machineId, machine, sessions }: MachineView): vscode.TreeItem {
    const live = sessions.filter(({ status }) => status !== "completed" && status !== "failed").length;
    const isOfInterest = live > 0 || sessions.some(({ status }) => status === "failed");
    const item = new vscode.TreeItem(
      machineId,
      sessions.length > 0 || this.untracked(machineId).length > 0
        ? machineId === this.thisMachine() || isOfInterest
          ? vscode.TreeItemCollapsibleState.Expanded
          : vscode.TreeItemCollapsibleState.Collapsed
        : vscode.TreeItemCollapsibleState.None,
    );
    const status = machine?.status ?? "not registered";
    item.id = `machine:${machineId}`;
    item.iconPath = statusIcon(machine?.status ?? "offline");
    item.description = [
      ...(machineId === this.thisMachine() ? ["this machine"] : []),
      ...(status === "online" ? [] : [status]),
      ...(live > 0 ? [`${String(live)} live`] : []),
    ].join(" · ");
    item.tooltip = `${machineId}: ${status}`;
    item.contextValue = "machine";
    item.accessibilityInformation = { label: `Machine ${machineId}, ${status}, ${String(live)} live sessions` };
    return item;
  }

  private sessionItem(session: Session): vscode.TreeItem {
    const own = this.own(session);
    const title = own?.run.title ?? titleOf(session);
    // Where this window knows how it ended, the API may still have to hear of it.
    const status = own?.isOver === true ? own.run.status : session.status;
    const ended = status === "completed" || status === "failed";
    const item = new vscode.TreeItem(
      title,
      own === undefined ? vscode.TreeItemCollapsibleState.Collapsed : vscode.TreeItemCollapsibleState.Expanded,
    );
    const heartbeat = own?.tracker.lastHeartbeat ?? session.last_heartbeat;
    const silence = since(ended ? (session.completed_at ?? session.updated_at) : heartbeat);
    const detail =
      session.recovered_by !== null
        ? "continued"
        : ended
          ? `${status} · ${silence}`
          : status === "active"
            ? `♥ ${silence}`
            : `${status} · ♥ ${silence}`;
    item.id = `session:${session.session_id}`;
    item.iconPath = statusIcon(status);
    item.description =
      own === undefined ? detail : `${String(own.finishedTasks)}/${String(own.run.tasks.length)} · ${detail}`;
    item.contextValue = sessionContext(session, own);
    item.tooltip = sessionTooltip(session);
    item.accessibilityInformation = { label: `${title}, ${status}, ${detail}` };
    return item;
  }

  /** The orchestration of this window that a session stands for, unless it goes on elsewhere. */
  private own(session: Session): Orchestration | undefined {
    return this.orchestrations.all.find(
      ({ run, state }) => run.sessionId === session.session_id && state !== "replaced" && state !== "suspended",
    );
  }

  private describe(): void {
    const { trouble, loaded } = this.fleet;
    // Without a key there is nothing to show at all: the welcome text says so better.
    this.say(trouble === undefined ? "none" : trouble.kind === "unauthorized" ? "key" : "offline");
    if (trouble !== undefined && loaded) {
      this.view.message = `${trouble.kind === "unauthorized" ? "The API refuses the key" : "The API does not answer"}: this picture is old.`;
    } else {
      // exactOptionalPropertyTypes: VS Code's own way to take a message away is undefined.
      (this.view as { message?: string | undefined }).message = undefined;
    }
  }

  /** Which welcome text the empty view shows: see `viewsWelcome` in package.json. */
  private say(trouble: "loading" | "none" | "key" | "offline"): void {
    void vscode.commands.executeCommand("setContext", "claudeProjects.trouble", trouble);
  }

  private poll(visible: boolean): void {
    clearTimeout(this.timer);
    if (!visible) {
      return;
    }
    void this.refresh().finally(() => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => {
        this.poll(this.view.visible);
      }, this.intervalMs());
    });
  }

  private readonly showEnd = (): void => {
    if (this.view.visible) {
      void this.refresh();
    }
  };

  /** At most once a second: a tree that is drawn anew all the time cannot be used. */
  private readonly showLocalChange = (): void => {
    this.pendingChange ??= setTimeout(() => {
      this.pendingChange = undefined;
      // A session that has come to be since the last look at the API is looked for at once.
      if (this.view.visible && this.orchestrations.live.some(({ run }) => isUnseen(run.sessionId, this.fleet))) {
        void this.refresh();
      } else {
        this.changed.fire();
      }
    }, 1_000);
  };
}

function isListed(sessionId: string | undefined, { machines }: Fleet): boolean {
  return machines.some(({ sessions }) => sessions.some((session) => session.session_id === sessionId));
}

/** Whether the API has a session that its last picture does not show, and answers. */
function isUnseen(sessionId: string | undefined, fleet: Fleet): boolean {
  return sessionId !== undefined && fleet.trouble === undefined && !isListed(sessionId, fleet);
}

/** Decides which actions a session offers: see `view/item/context` in package.json. */
function sessionContext(session: Session, own: Orchestration | undefined): string {
  if (own?.isOver === false) {
    return own.state === "paused" || own.state === "pausing" ? "session.own.paused" : "session.own.running";
  }
  const status = own?.run.status ?? session.status;
  return status === "completed" ? "session.completed" : `session.foreign.${status}`;
}

function sessionTooltip(session: Session): vscode.MarkdownString {
  const text = new vscode.MarkdownString(undefined, true);
  const row = (name: string, value: string | null): void => {
    if (value !== null) {
      text.appendMarkdown(`${name}: `);
      text.appendText(value);
      text.appendMarkdown("  \n");
    }
  };
  row("Session", session.session_id);
  row("Project", session.project_id);
  row("Status", session.status);
  row("Started", new Date(session.started_at).toLocaleString());
  row("Last heartbeat", new Date(session.last_heartbeat).toLocaleString());
  row("Continues", session.recovered_from);
  row("Continued by", session.recovered_by);
  const reason = session.metadata["error_message"];
  row("Reason", typeof reason === "string" ? (reason.split("\n", 1)[0] ?? null) : null);
  return text;
}

function localItem(orchestration: Orchestration): vscode.TreeItem {
  const { run, state, finishedTasks } = orchestration;
  const item = new vscode.TreeItem(run.title, vscode.TreeItemCollapsibleState.Expanded);
  item.id = `local:${run.runId}`;
  const isTracked = run.sessionId !== undefined;
  item.iconPath = isTracked
    ? statusIcon(state === "paused" ? "paused" : "active")
    : new vscode.ThemeIcon("sync-ignored", new vscode.ThemeColor("list.warningForeground"));
  item.description = [
    `${String(finishedTasks)}/${String(run.tasks.length)}`,
    ...(isTracked ? [] : ["not tracked yet"]),
  ].join(" · ");
  item.contextValue = state === "paused" || state === "pausing" ? "session.own.paused" : "session.own.running";
  item.tooltip = isTracked
    ? `Session ${run.sessionId ?? ""}`
    : "The API has not answered since this began. The work goes on; what it missed will be sent.";
  return item;
}

function localTasks(orchestration: Orchestration): Node[] {
  return orchestration.run.tasks.map((task) => ({ kind: "local-task", task, orchestration }));
}

function localTaskItem(node: Node & { readonly kind: "local-task" }): vscode.TreeItem {
  const { task } = node;
  const item = taskItem({ task_name: task.name, github_issue_id: task.githubIssueId ?? null, ...task });
  if (task.status !== "pending") {
    item.contextValue = "task.own";
    item.command = { command: "claudeProjects.showTaskOutput", title: "Show Task Output", arguments: [node] };
  }
  return item;
}

type ShownTask = Pick<Task, "task_name" | "status" | "github_issue_id"> &
  Partial<Pick<Task, "task_id" | "started_at" | "completed_at" | "error_message">> & { readonly errorMessage?: string };

function taskItem(task: ShownTask): vscode.TreeItem {
  const item = new vscode.TreeItem(task.task_name);
  const { status, started_at: started, completed_at: completed, github_issue_id: issue } = task;
  if (task.task_id !== undefined) {
    item.id = `task:${task.task_id}`;
  }
  item.iconPath = statusIcon(status);
  // The icon says the status; words only where it asks for attention.
  item.description = [
    ...(status === "failed" || status === "blocked" ? [status] : []),
    ...(started == null || (completed == null && status !== "in_progress")
      ? []
      : [since(started, completed == null ? undefined : new Date(completed).getTime())]),
    ...(issue === null ? [] : [`#${issue.replace(/^#/, "")}`]),
  ].join(" · ");
  item.contextValue = `task.${status}`;
  item.tooltip = task.error_message ?? task.errorMessage ?? `${task.task_name}: ${statusWord(status)}`;
  item.accessibilityInformation = { label: `Task ${task.task_name}, ${statusWord(status)}` };
  return item;
}
