/**
 * A window of the editor in the rounds of `tests/faults`, with a person before it: the extension is activated, as in a
 * window that opens, and the person runs one of its commands: `window.cjs open`, `start PLAN` or `recover`. It stays for
 * as long as there is something to see. SIGTERM closes it as a person does; SIGKILL is a crash.
 *
 * The person goes on with what was left behind, and takes over what another living process has only where the API calls
 * it stalled.
 */
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { ExtensionContext } from "vscode";
import { Api, type Session } from "../../src/api/client.js";
import { activate, deactivate } from "../../src/extension.js";
import { EventEmitter, type Person, Uri, commands, sit } from "./editor.js";

/** For so long the person looks at a window in which nothing happens. */
const PATIENCE_MS = 5_000;
const LOOK_MS = 500;
/** Between two attempts at the same command. */
const AGAIN_MS = 1_500;
const YES = ["Continue", "Continue It", "Continue Here", "Try Again"];

const [verb = "open", argument = ""] = process.argv.slice(2);
const { FAULTS_PROJECT = "", FAULTS_STORAGE = "", FAULTS_LEFT_BEHIND, CLAUDE_PROJECTS_MACHINE_ID } = process.env;
const { CLAUDE_PROJECTS_API_KEY, CLAUDE_PROJECTS_URL = "" } = process.env;

/** The last session of the project, as the person sees it on the dashboard, over the same network. */
async function lastSession(): Promise<Session | undefined> {
  const dashboard = new Api({
    url: CLAUDE_PROJECTS_URL,
    timeoutMs: 2_000,
    key: () => Promise.resolve(CLAUDE_PROJECTS_API_KEY),
  });
  const sessions = await dashboard.sessions({ project_id: FAULTS_PROJECT }).catch(() => []);
  return sessions.find(({ recovered_by }) => recovered_by === null);
}

const person: Person = {
  folder: process.cwd(),
  settings: {
    heartbeatIntervalSeconds: 0.5,
    requestTimeoutSeconds: 4,
    machineId: CLAUDE_PROJECTS_MACHINE_ID,
    leftBehind: FAULTS_LEFT_BEHIND,
  },
  statusBar: "",
  answer: async (_, buttons) => {
    const yes = buttons.find((button) => YES.includes(button));
    if (yes !== undefined) {
      return yes;
    }
    const isSilent = buttons.includes("Take Over") && (await lastSession())?.status === "stalled";
    return isSilent ? "Take Over" : undefined;
  },
};

async function command(): Promise<void> {
  if (verb === "start") {
    await commands.executeCommand("claudeProjects.start", Uri.file(argument));
  } else if (verb === "recover") {
    const last = await lastSession();
    if (last !== undefined) {
      await commands.executeCommand("claudeProjects.recover", last.session_id);
    }
  }
}

/** Whether the status bar shows an orchestration at work, or one that has paused. */
const isAtWork = (): boolean => /\$\((sync|loading)~spin\)/.test(person.statusBar);
const isPaused = (): boolean => person.statusBar.startsWith("$(debug-pause)");

async function look(): Promise<void> {
  let hasWorked = false;
  let seenAt = performance.now();
  let askedAt = Number.NEGATIVE_INFINITY;
  for (;;) {
    if (isAtWork() || isPaused()) {
      hasWorked = true;
      seenAt = performance.now();
    } else if (performance.now() - seenAt >= PATIENCE_MS) {
      return;
    }
    if (performance.now() - askedAt >= AGAIN_MS) {
      if (isPaused()) {
        await commands.executeCommand("claudeProjects.resume");
        askedAt = performance.now();
      } else if (!hasWorked) {
        await command();
        askedAt = performance.now();
      }
    }
    await delay(LOOK_MS);
  }
}

async function close(): Promise<void> {
  await deactivate();
  process.exit(0);
}

function inThisWindow(): ExtensionContext {
  const secrets = { get: () => Promise.resolve(undefined), onDidChange: new EventEmitter<never>().event };
  const context = {
    subscriptions: [],
    globalStorageUri: Uri.file(FAULTS_STORAGE),
    secrets,
    extension: { packageJSON: { version: "0.0.0" } },
    asAbsolutePath: () => join(__dirname, "guard.cjs"),
  };
  return context as unknown as ExtensionContext;
}

process.once("SIGTERM", () => void close());
sit(person);
activate(inThisWindow());
void look().then(close);
