/** The status bar item: state, task n of m, time since the last heartbeat. */
import * as vscode from "vscode";
import type { Orchestration, State } from "../orchestration/orchestration.js";
import type { Orchestrations } from "../orchestration/orchestrations.js";
import { since } from "../words.js";

const ICONS: Readonly<Record<State, string>> = {
  running: "sync~spin",
  pausing: "loading~spin",
  paused: "debug-pause",
  completed: "pass",
  failed: "error",
  replaced: "arrow-swap",
  suspended: "debug-pause",
};

export class StatusBar implements vscode.Disposable {
  private readonly item = vscode.window.createStatusBarItem(
    "claudeProjects.status",
    vscode.StatusBarAlignment.Left,
    50,
  );
  /** The heartbeat's age grows without any event. */
  private readonly clock = setInterval(() => {
    if (this.orchestrations.live.length > 0) {
      this.render();
    }
  }, 1_000);

  constructor(private readonly orchestrations: Orchestrations) {
    this.item.name = "Claude Projects";
    this.item.command = "claudeProjects.menu";
    orchestrations.on("change", this.render);
    this.render();
  }

  dispose(): void {
    clearInterval(this.clock);
    this.orchestrations.off("change", this.render);
    this.item.dispose();
  }

  private readonly render = (): void => {
    const shown = this.orchestrations.live[0] ?? this.orchestrations.all.at(-1);
    if (shown === undefined) {
      this.item.hide();
      return;
    }
    const { connection } = shown.tracker;
    const trouble = shown.isOver ? undefined : troubleOf(connection);
    const others = this.orchestrations.live.length - 1;
    this.item.text = [
      `$(${ICONS[shown.state]}) ${shown.run.title}`,
      progress(shown),
      ...(trouble === undefined ? [] : [trouble]),
      // The longer the API is away, the more this says.
      ...(shown.isOver || (trouble !== undefined && shown.tracker.lastHeartbeat === undefined)
        ? []
        : [heartbeat(shown)]),
      ...(others > 0 ? [`+${String(others)}`] : []),
    ].join("  ");
    this.item.backgroundColor =
      shown.state === "failed" || connection === "unauthorized"
        ? new vscode.ThemeColor("statusBarItem.errorBackground")
        : trouble !== undefined || shown.state === "replaced"
          ? new vscode.ThemeColor("statusBarItem.warningBackground")
          : undefined;
    this.item.tooltip = tooltip(shown);
    this.item.accessibilityInformation = {
      label: `Orchestration ${shown.run.title}: ${shown.state}, ${progress(shown)}${trouble === undefined ? "" : `, ${trouble}`}`,
    };
    this.item.show();
  };
}

function progress({ run, finishedTasks, isOver, currentTask }: Orchestration): string {
  const total = String(run.tasks.length);
  return isOver || currentTask === undefined
    ? `${String(finishedTasks)}/${total}`
    : `task ${String(run.tasks.indexOf(currentTask) + 1)}/${total}`;
}

function heartbeat({ tracker }: Orchestration): string {
  return tracker.lastHeartbeat === undefined ? "$(heart) —" : `$(heart-filled) ${since(tracker.lastHeartbeat)}`;
}

function troubleOf(connection: Orchestration["tracker"]["connection"]): string | undefined {
  return connection === "unauthorized"
    ? "$(key) key refused"
    : connection === "offline"
      ? "$(cloud) API away"
      : undefined;
}

function tooltip(orchestration: Orchestration): vscode.MarkdownString {
  const { run, state, currentTask, reason, tracker } = orchestration;
  const text = new vscode.MarkdownString(undefined, true);
  text.appendMarkdown("**");
  text.appendText(run.title);
  text.appendMarkdown(`** — ${state}`);
  const line = (icon: string, content: string): void => {
    text.appendMarkdown(`\n\n$(${icon}) `);
    text.appendText(content);
  };
  if (currentTask !== undefined) {
    line("play", currentTask.name);
  }
  if (reason !== "" && state !== "running") {
    line("info", reason.split("\n", 1)[0] ?? "");
  }
  line("project", `Project ${run.projectId} on ${run.machineId}`);
  if (run.sessionId !== undefined) {
    line("broadcast", `Session ${run.sessionId}`);
  }
  if (tracker.lastHeartbeat !== undefined) {
    line("heart", `Last heartbeat at ${tracker.lastHeartbeat.toLocaleTimeString()}`);
  }
  if (tracker.connection === "offline") {
    line("cloud", "The API does not answer: the work goes on, and what it misses will be sent.");
  }
  return text;
}
