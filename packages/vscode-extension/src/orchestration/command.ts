/**
 * One task's command as a process: its output shown and kept, its end described. It runs under a guard (`guard.ts`),
 * which ends it when this extension host dies, so that a command never outlives whoever knows of it.
 */
import { fork } from "node:child_process";
import { createWriteStream, mkdirSync } from "node:fs";
import { dirname } from "node:path";
import type { Order, Report } from "../guard.js";
import type { Command, TaskDefinition } from "../plan/plan.js";
import { type ProcessIdentity, endGroup, identify, signalGroup } from "../processes.js";

export interface Exit {
  readonly code: number | null;
  readonly signal: string | null;
  readonly timedOut: boolean;
  /** It was interrupted or ended from here, and so did not end by itself, whatever its exit code. */
  readonly interrupted: boolean;
  readonly durationMs: number;
  /** The end of what it wrote to standard error, else to standard output. */
  readonly tail: string;
  /** Why it could not be started at all. */
  readonly startError?: string;
  /** Its guard was killed, so that nobody saw how it ended; it has been ended since. */
  readonly isUnguarded: boolean;
  /** What `claude -p --output-format json` says of its work; undefined where the output is something else. */
  readonly claude: ClaudeResult | undefined;
}

export interface ClaudeResult {
  readonly is_error?: unknown;
  readonly result?: unknown;
  readonly [field: string]: unknown;
}

export interface RunningCommand {
  /** Undefined where it could not be started. */
  readonly started: Promise<ProcessIdentity | undefined>;
  readonly exit: Promise<Exit>;
  /** As Ctrl+C would: the command may clean up. The second time it is ended. */
  interrupt(): void;
  /** Ends it with everything that it started. */
  end(): Promise<void>;
}

export interface CommandSurroundings {
  readonly cwd: string;
  /** The bundle of `guard.ts`: a program of its own. */
  readonly guard: string;
  readonly logFile: string;
  /** What the command finds in its environment beside what the editor has. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  show(text: string): void;
}

const PROMPT_PLACEHOLDER = "{prompt}";
const TAIL_LENGTH = 4_000;
/** Of standard output: enough for a report of Claude's. */
const HEAD_LENGTH = 4 * 1024 * 1024;
/** After the command's exit, how long output that is still in its pipes may take. */
const DRAIN_MS = 500;
/** After SIGINT, how long a command may clean up before it is ended. */
const INTERRUPT_GRACE_MS = 10_000;

/** Variables of the editor's own process that would mislead a program started from it, and the API's key. */
const WITHHELD = /^(ELECTRON_|VSCODE_|CLAUDE_PROJECTS_API_KEY$)/;

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
  mkdirSync(dirname(around.logFile), { recursive: true, mode: 0o700 });
  const log = createWriteStream(around.logFile, { flags: "a", mode: 0o600 });
  log.once("error", (error) => {
    around.show(`The output is not kept any more: ${error.message}\n`);
  });
  // Not the clock's time, which may be set while the command runs.
  const startedAt = performance.now();
  const guard = fork(around.guard, [], {
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

  let head = "";
  const tails = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    const stream = guard[name];
    stream?.setEncoding("utf8");
    stream?.on("data", (text: string) => {
      tails[name] = (tails[name] + text).slice(-TAIL_LENGTH);
      if (name === "stdout" && head.length < HEAD_LENGTH) {
        head += text;
      }
      log.write(text);
      around.show(text);
    });
  }

  let identity: ProcessIdentity | undefined;
  let ended: Extract<Report, { kind: "exit" | "error" }> | undefined;
  let timedOut = false;
  let interrupted = false;
  let lastResort: NodeJS.Timeout | undefined;
  let timeout: NodeJS.Timeout | undefined;
  /** The command's process, once it has one and for as long as it has. */
  const living = async (): Promise<ProcessIdentity | undefined> => {
    await started;
    return ended === undefined ? identity : undefined;
  };
  const endNow = async (): Promise<void> => {
    const command = await living();
    if (command !== undefined) {
      await endGroup(command);
    }
  };
  const end = async (): Promise<void> => {
    if ((await living()) !== undefined) {
      interrupted = true;
      await endNow();
    }
  };
  const interrupt = async (): Promise<void> => {
    const command = await living();
    if (command === undefined) {
      return;
    }
    if (interrupted) {
      await endNow();
      return;
    }
    interrupted = true;
    signalGroup(command.pid, "SIGINT");
    lastResort = setTimeout(() => void endNow(), INTERRUPT_GRACE_MS);
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
    let isFinished = false;
    const finish = async (problem?: string): Promise<void> => {
      if (isFinished) {
        return;
      }
      isFinished = true;
      clearTimeout(timeout);
      clearTimeout(lastResort);
      const isUnguarded = ended === undefined && identity !== undefined;
      if (identity !== undefined && isUnguarded) {
        // It would work on beside whoever tries the task again.
        await endGroup(identity);
      }
      log.end();
      let startError: string | undefined;
      if (ended?.kind === "error") {
        startError = ended.message;
      } else if (ended === undefined && identity === undefined) {
        startError = problem ?? "its guard was killed";
      }
      resolve({
        code: ended?.kind === "exit" ? ended.code : null,
        signal: ended?.kind === "exit" ? ended.signal : null,
        timedOut,
        interrupted,
        claude: claudeResult(head),
        durationMs: Math.round(performance.now() - startedAt),
        tail: (plain(tails.stderr) || plain(tails.stdout)).slice(-TAIL_LENGTH),
        isUnguarded,
        ...(startError === undefined ? {} : { startError }),
      });
    };
    guard.once("error", (error) => {
      void finish(error.message);
    });
    guard.once("close", () => {
      void finish();
    });
    // A grandchild that keeps the pipes open must not keep the plan from going on.
    guard.once("exit", () => {
      setTimeout(() => void finish(), DRAIN_MS);
    });
  });

  if (definition.timeout_seconds !== undefined) {
    timeout = setTimeout(() => {
      // Not where it has ended by itself, and only the last of its output is still to come.
      timedOut = ended === undefined;
      void endNow();
    }, definition.timeout_seconds * 1_000);
  }
  guard.send(order);

  return {
    started,
    exit,
    interrupt: () => void interrupt(),
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

function claudeResult(output: string): ClaudeResult | undefined {
  try {
    const said = JSON.parse(output) as ClaudeResult | null;
    return said?.["type"] === "result" ? said : undefined;
  } catch {
    return undefined;
  }
}

/** Without terminal colours and other control characters: the text is stored and shown anywhere. */
function plain(text: string): string {
  return text
    .toWellFormed()
    .replace(/\u001b\[[0-9;?]*[ -/]*[@-~]|[\u0000-\u0008\u000b-\u001f\u007f]/g, "")
    .trim();
}
