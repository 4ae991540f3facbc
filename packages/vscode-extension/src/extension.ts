/** Puts the parts together and nothing else. */
import { hostname } from "node:os";
import { join } from "node:path";
import * as vscode from "vscode";
import { Api } from "./api/client.js";
import { offerKey, registerCommands, workspaceFolders } from "./commands.js";
import { Credentials } from "./credentials.js";
import { lasting } from "./log.js";
import { announce, machineId } from "./machine.js";
import { announceNews } from "./news.js";
import type { OrchestrationRecord } from "./orchestration/orchestration.js";
import { Orchestrations } from "./orchestration/orchestrations.js";
import { pruneOutput } from "./orchestration/output.js";
import { Recovery } from "./orchestration/recovery.js";
import { OrchestrationTerminal } from "./orchestration/terminal.js";
import { Plans } from "./plan/plans.js";
import { type ClaudeProjects, trackedSession } from "./publicApi.js";
import { SECTION, settings } from "./settings.js";
import { RunStore } from "./tracking/store.js";
import { Fleet } from "./views/fleet.js";
import { StatusBar } from "./views/statusBar.js";
import { FleetTree } from "./views/tree.js";

/** VS Code gives a closing extension host five seconds. */
const SUSPEND_PATIENCE_MS = 3_000;

let running: Orchestrations | undefined;

export function activate(context: vscode.ExtensionContext): ClaudeProjects {
  const channel = vscode.window.createOutputChannel("Claude Projects", { log: true });
  const log = lasting(channel);
  const storage = context.globalStorageUri.fsPath;
  const output = join(storage, "output");
  pruneOutput(output);
  const credentials = new Credentials(context.secrets);
  const thisMachine = (): string => settings().machineId || machineId(storage);

  let api: Api | undefined;
  const currentApi = (): Api => {
    api ??= new Api({
      url: settings().apiUrl,
      timeoutMs: settings().requestTimeoutMs,
      key: () => credentials.key(),
    });
    return api;
  };

  const orchestrations = new Orchestrations(new RunStore<OrchestrationRecord>(join(storage, "runs")), {
    api: currentApi,
    machineId: thisMachine,
    heartbeatMs: () => settings().heartbeatMs,
    places: { output, guard: context.asAbsolutePath("dist/guard.cjs") },
    extensionVersion: (context.extension.packageJSON as { version: string }).version,
    editorVersion: vscode.version,
    log,
    screen: (title, interrupted, closed) => {
      const terminal = new OrchestrationTerminal(title);
      terminal.onDidInterrupt(interrupted);
      terminal.onDidClose(closed);
      return terminal;
    },
  });
  running = orchestrations;

  const plans = new Plans(() => settings().planFiles);
  const recovery = new Recovery(orchestrations, {
    api: currentApi,
    hasKey: async () => (await credentials.key()) !== undefined,
    machineId: thisMachine,
    wish: () => (vscode.workspace.isTrusted ? settings().leftBehind : "leave"),
    workspaces: workspaceFolders,
    projects: async () => new Set((await plans.valid()).map(({ projectId }) => projectId)),
    log,
  });
  const tree = new FleetTree(
    new Fleet(currentApi, thisMachine),
    orchestrations,
    thisMachine,
    () => settings().refreshMs,
  );
  const reconnect = (): void => {
    api = undefined;
    orchestrations.reconnect();
    void recovery.look();
  };

  context.subscriptions.push(
    channel,
    plans,
    recovery,
    tree,
    new StatusBar(orchestrations),
    announceNews(orchestrations, (error) => void offerKey(error.message)),
    // A machine that nobody hears of goes offline, and an offline one gets no recovered sessions.
    heartbeatOfMachine(orchestrations, () => announce(currentApi(), thisMachine(), log)),
    credentials.onDidChange(reconnect),
    vscode.workspace.onDidGrantWorkspaceTrust(() => void recovery.look()),
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (event.affectsConfiguration(SECTION)) {
        plans.recheck();
        reconnect();
        void tree.refresh();
      }
    }),
    ...registerCommands({
      orchestrations,
      recovery,
      plans,
      credentials,
      tree,
      log,
      channel,
      api: currentApi,
      reconnect,
    }),
  );

  log.info(`Machine ${thisMachine()} (host ${hostname()}), API ${settings().apiUrl}, process ${String(process.pid)}.`);
  void recovery.look();

  return {
    version: 1,
    startSession: async ({ projectId, title = projectId, metadata = {} }) => {
      const tracker = await orchestrations.trackOnly(projectId, title, metadata);
      const replaced = new vscode.EventEmitter<string>();
      context.subscriptions.push(replaced);
      tracker.on("replaced", ({ message }) => {
        replaced.fire(message);
      });
      tracker.on("endedFor", (_, reason) => {
        replaced.fire(reason);
      });
      return trackedSession(tracker, replaced.event);
    },
  };
}

/** The window closes: what is at work is put down in a way in which the next window can pick it up. */
export async function deactivate(): Promise<void> {
  await running?.suspend(SUSPEND_PATIENCE_MS);
}

function heartbeatOfMachine(orchestrations: Orchestrations, beat: () => Promise<void>): vscode.Disposable {
  let wasLive = false;
  const onChange = (): void => {
    const isLive = orchestrations.live.length > 0;
    if (isLive && !wasLive) {
      void beat();
    }
    wasLive = isLive;
  };
  orchestrations.on("change", onChange);
  const timer = setInterval(() => {
    if (orchestrations.live.length > 0) {
      void beat();
    }
  }, 60_000);
  return new vscode.Disposable(() => {
    clearInterval(timer);
    orchestrations.off("change", onChange);
  });
}
