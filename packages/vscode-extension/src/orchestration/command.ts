/**
 * One task's command as a process: its output shown and kept, its end described. It runs under a guard (`guard.ts`),
 * which ends it when this extension host dies, so that a command never outlives whoever knows of it.
 */
import { fork } from "node:child_process";
import { createWriteStream, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Order, Report } from "../guard.js";
import type { Command, TaskDefinition } from "../plan/plan.js";
import { type ProcessIdentity, endGroup, identify, signalGroup } from "../processes.js";

export interface Exit {
  readonly code: number | null;
  readonly signal: string | null;
  readonly timedOut: boolean;
  readonly durationMs: number;
  /** The end of what it wrote to standard error, else to standard output. */
  readonly tail: string;
  /** Why it could not be started at all. */
  readonly startError?: string;
}

export interface RunningCommand {
  /** Undefined where it could not be started. */
  readonly started: Promise<ProcessIdentity | undefined>;
  readonly exit: Promise<Exit>;
  /** As Ctrl+C would: the command may clean up. */
  interrupt(): void;
  /** Ends it with everything that it started. */
  end(): Promise<void>;
}

export interface CommandSurroundings {
  readonly cwd: string;
  readonly logFile: string;
  /** What the command finds in its environment beside what the editor has. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  show(text: string): void;
}

const PROMPT_PLACEHOLDER = "{prompt}";
const TAIL_LENGTH = 4_000;
/** After the command's exit, how long output that is still in its pipes may take. */
const DRAIN_MS = 500;
/** After SIGINT, how long a command may clean up before it is ended. */
const INTERRUPT_GRACE_MS = 10_000;

/** Variables of the editor's own process that would mislead a program started from it, and the API's key. */
const WITHHELD = /^(ELECTRON_|VSCODE_|CLAUDE_PROJECTS_API_KEY$)/;

/** Beside the bundle: it is a program of its own. */
const GUARD = join(__dirname, "guard.cjs");

/**
 * What a definition amounts to. A prompt takes the place of `{prompt}`, and is the standard input of a command that
 * does not have it. In a line for the shell it is not put into the text, where it would be read as shell.
 */
export function commandLine({ command, prompt }: TaskDefinition): { command: Command; stdin: string } {
  if (prompt === undefined) {
    return { command, stdin: "" };
  }
  const words = typeof command === "string" ? [command] : command;
  if (!words.some((word) => word.includes(PROMPT_PLACEHOLDER))) {
    return { command, stdin: prompt };
  }
  return {
    command:
      typeof command === "string"
        ? command.replaceAll(PROMPT_PLACEHOLDER, '"$CLAUDE_PROJECTS_PROMPT"')
        : command.map((word) => word.replaceAll(PROMPT_PLACEHOLDER, () => prompt)),
    stdin: "",
  };
}

export function runCommand(definition: TaskDefinition, around: CommandSurroundings): RunningCommand {
  mkdirSync(dirname(around.logFile), { recursive: true });
  const log = createWriteStream(around.logFile, { flags: "a", mode: 0o600 });
  const startedAt = Date.now();
  const guard = fork(GUARD, [], {
    // A desktop VS Code is Electron, which is Node.js only when it is told so.
    env: { ...process.env, ELECTRON_RUN_AS_NODE: "1" },
    execArgv: [],
    // Not in the host's group: whoever kills all of that, as a service manager does, must leave the guard to its work.
    detached: true,
    stdio: ["ignore", "pipe", "pipe", "ipc"],
  });
  const prompt = defined({ CLAUDE_PROJECTS_PROMPT: definition.prompt });
  const order: Order = {
    ...commandLine(definition),
    cwd: around.cwd,
    environment: { ...inherited(), ...defined(around.environment), ...prompt },
  };

  const tails = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    const stream = guard[name];
    stream?.setEncoding("utf8");
    stream?.on("data", (text: string) => {
      tails[name] = (tails[name] + text).slice(-TAIL_LENGTH);
      log.write(text);
      around.show(text);
    });
  }

  let identity: ProcessIdentity | undefined;
  let ended: Extract<Report, { kind: "exit" | "error" }> | undefined;
  let timedOut = false;
  let interrupted: NodeJS.Timeout | undefined;
  let timeout: NodeJS.Timeout | undefined;
  const end = async (): Promise<void> => {
    await started;
    if (identity !== undefined && ended === undefined) {
      await endGroup(identity);
    }
  };

  const started = new Promise<ProcessIdentity | undefined>((resolve) => {
    guard.on("message", (report: Report) => {
      if (report.kind === "started") {
        identity = identify(report.pid);
      } else {
        ended = report;
      }
      resolve(identity);
    });
    guard.once("close", () => {
      resolve(identity);
    });
  });

  const exit = new Promise<Exit>((resolve) => {
    const finish = (startError?: string): void => {
      clearTimeout(timeout);
      clearTimeout(interrupted);
      log.end();
      const problem = startError ?? (ended === undefined ? "its guard was killed" : undefined);
      resolve({
        code: ended?.kind === "exit" ? ended.code : null,
        signal: ended?.kind === "exit" ? ended.signal : null,
        timedOut,
        durationMs: Date.now() - startedAt,
        tail: (plain(tails.stderr) || plain(tails.stdout)).slice(-TAIL_LENGTH),
        ...(ended?.kind === "error"
          ? { startError: ended.message }
          : problem === undefined
            ? {}
            : { startError: problem }),
      });
    };
    guard.once("error", (error) => {
      finish(error.message);
    });
    guard.once("close", () => {
      finish();
    });
    // A grandchild that keeps the pipes open must not keep the plan from going on.
    guard.once("exit", () => {
      setTimeout(finish, DRAIN_MS);
    });
  });

  if (definition.timeout_seconds !== undefined) {
    timeout = setTimeout(() => {
      timedOut = true;
      void end();
    }, definition.timeout_seconds * 1_000);
  }
  guard.send(order);

  return {
    started,
    exit,
    interrupt: () => {
      if (identity !== undefined) {
        signalGroup(identity.pid, "SIGINT");
      }
      interrupted ??= setTimeout(() => void end(), INTERRUPT_GRACE_MS);
    },
    end,
  };
}

function inherited(): Record<string, string> {
  return defined(Object.fromEntries(Object.entries(process.env).filter(([name]) => !WITHHELD.test(name))));
}

function defined(variables: Readonly<Record<string, string | undefined>>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(variables).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

/** Without terminal colours and other control characters: the text is stored and shown anywhere. */
function plain(text: string): string {
  return text.replace(/\u001b\[[0-9;?]*[ -/]*[@-~]|[\u0000-\u0008\u000b-\u001f\u007f]/g, "").trim();
}
