/** The command line, as a person runs it in a folder: with the tests' API, and nothing of the user's. */
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { BIN, type Backend } from "./backend.js";

export class CommandLine {
  /** What it has written so far. */
  said = "";
  /** Its exit code, once it has ended. */
  readonly exit: Promise<number | null>;
  private readonly child: ChildProcess;

  constructor(backend: Backend, folder: string, words: readonly string[], machineId?: string) {
    const child = spawn(join(BIN, "claude-projects"), words, {
      cwd: folder,
      env: {
        PATH: process.env["PATH"],
        HOME: folder,
        CLAUDE_PROJECTS_URL: backend.url,
        CLAUDE_PROJECTS_API_KEY: backend.key,
        ...(machineId === undefined ? {} : { CLAUDE_PROJECTS_MACHINE_ID: machineId }),
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (text) => (this.said += String(text)));
    }
    this.exit = new Promise((resolve) => child.once("exit", resolve));
    this.child = child;
  }

  /** Kills it without a word. */
  async kill(): Promise<void> {
    this.child.kill("SIGKILL");
    await this.exit;
  }
}
