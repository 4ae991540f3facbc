/**
 * The process between the extension host and a task's command. A host that is killed can end nothing any more, and
 * somebody else will do its work again; so this program waits for the channel to its host to break, and then ends the
 * command with all that it has started. It is bundled by itself and imports nothing of VS Code.
 */
import { spawn } from "node:child_process";
import { endGroup, endLeftovers, identify } from "./processes.js";

export interface Order {
  /** A program and its arguments, or a line for the shell. */
  readonly command: string | readonly string[];
  readonly stdin: string;
  readonly cwd: string;
  readonly environment: Readonly<Record<string, string>>;
}

export type Report =
  | { readonly kind: "started"; readonly pid: number }
  | { readonly kind: "error"; readonly message: string }
  | { readonly kind: "exit"; readonly code: number | null; readonly signal: string | null };

function carryOut({ command, stdin, cwd, environment }: Order): void {
  const [program, args] = typeof command === "string" ? [command, []] : [command[0] ?? "", command.slice(1)];
  const child = spawn(program, args, {
    cwd,
    env: environment,
    shell: typeof command === "string",
    // A group of its own, so that it can be ended with all that it has started.
    detached: process.platform !== "win32",
    stdio: ["pipe", "inherit", "inherit"],
  });
  // A command may end without having read its input.
  child.stdin.on("error", () => undefined);
  child.stdin.end(stdin);

  const report = (news: Report, then?: () => void): void => {
    if (process.connected) {
      process.send?.(news, () => then?.());
    } else {
      then?.();
    }
  };
  const leave = (): void => {
    process.exit(0);
  };
  child.once("error", (error) => {
    report({ kind: "error", message: error.message }, leave);
  });
  child.once("exit", (code, signal) => {
    // First: the next task may build on what this one's stragglers are still writing.
    void endLeftovers(child.pid ?? 0).then(() => {
      report({ kind: "exit", code, signal }, leave);
    });
  });
  if (child.pid !== undefined) {
    const identity = identify(child.pid);
    report({ kind: "started", pid: child.pid });
    process.once("disconnect", () => {
      void (identity === undefined ? Promise.resolve() : endGroup(identity, 1_000)).finally(leave);
    });
  }
}

// The host ends the command, not whoever signals the group that both are in.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => undefined);
}
// Nobody is left to read what it writes.
process.stdout.on("error", () => undefined);
process.stderr.on("error", () => undefined);
process.once("message", carryOut);
process.once("disconnect", () => {
  // Nothing was ordered yet, or `carryOut` sees to it.
  setTimeout(() => process.exit(0), 5_000);
});
