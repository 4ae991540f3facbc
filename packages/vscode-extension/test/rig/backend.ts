/** The real API on a real MongoDB. The server can be killed and started again on the same address and data. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Api, type Session, type Task } from "../../src/api/client.js";
import { until } from "./until.js";

const WORKSPACE = join(import.meta.dirname, "../../../..");
export const BIN = join(WORKSPACE, ".venv/bin");

/** A line of the server's log, as far as the tests read it. */
export interface LogLine {
  readonly receivedAt: number;
  readonly fields: Readonly<Record<string, unknown>>;
}

export class Backend {
  readonly key = randomUUID();
  readonly log: LogLine[] = [];
  private server: ChildProcess | undefined;

  private constructor(
    private readonly directory: string,
    private readonly mongod: ChildProcess,
    private readonly mongoUri: string,
    readonly port: number,
    private readonly environment: Readonly<Record<string, string>>,
  ) {}

  static async start(environment: Readonly<Record<string, string>> = {}): Promise<Backend> {
    const directory = await mkdtemp(join(tmpdir(), "claude-projects-backend-"));
    const mongod = spawn(join(BIN, "python"), [join(import.meta.dirname, "mongod.py"), join(directory, "db")], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    const [line] = await new Promise<string[]>((resolve, reject) => {
      createInterface({ input: mongod.stdout }).once("line", (text) => {
        resolve([text]);
      });
      mongod.once("exit", (code) => {
        reject(new Error(`mongod ended with ${String(code)}`));
      });
    });
    const { uri } = JSON.parse(line ?? "") as { uri: string };
    const backend = new Backend(directory, mongod, uri, await freePort(), environment);
    await backend.up();
    return backend;
  }

  get url(): string {
    return `http://127.0.0.1:${String(this.port)}`;
  }

  /** A client of the tests' own, to see what the server knows. */
  readonly api = (): Api => new Api({ url: this.url, timeoutMs: 10_000, key: () => Promise.resolve(this.key) });

  /** Starts the server and waits until it answers. */
  async up(): Promise<void> {
    const server = spawn(join(BIN, "state-tracking-api"), ["serve"], {
      env: {
        PATH: process.env["PATH"] ?? "",
        ...(process.env["PYTHONPATH"] === undefined ? {} : { PYTHONPATH: process.env["PYTHONPATH"] }),
        MONGODB_URI: this.mongoUri,
        API_KEYS: `tests=${this.key}`,
        PORT: String(this.port),
        RATE_LIMIT_PER_MINUTE: "100000",
        ...this.environment,
      },
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.server = server;
    createInterface({ input: server.stdout }).on("line", (text) => {
      try {
        this.log.push({ receivedAt: Date.now(), fields: JSON.parse(text) as Record<string, unknown> });
      } catch {
        // Not a log line.
      }
    });
    await until(`the server answers on ${this.url}`, async () => {
      if (server.exitCode !== null) {
        throw new Error(`the server ended with ${String(server.exitCode)}`);
      }
      // Its database too: collections are set up when it first comes.
      const answer = await fetch(`${this.url}/api/sessions/health`, { headers: { "X-API-Key": this.key } });
      return answer.ok;
    });
  }

  /** Kills the server without a word. */
  async kill(): Promise<void> {
    const { server } = this;
    if (server?.exitCode !== null || server.signalCode !== null) {
      return;
    }
    const gone = new Promise((resolve) => server.once("exit", resolve));
    server.kill("SIGKILL");
    await gone;
  }

  async stop(): Promise<void> {
    await this.kill();
    const gone = new Promise((resolve) => this.mongod.once("exit", resolve));
    this.mongod.stdin?.end();
    await gone;
    await rm(this.directory, { recursive: true, force: true });
  }

  async sessionsOf(projectId: string): Promise<Session[]> {
    return await this.api().sessions({ project_id: projectId });
  }

  /** The names and statuses of a session's tasks, in the order in which they were created. */
  async tasksOf(sessionId: string): Promise<Task[]> {
    return (await this.api().tasks(sessionId)).reverse();
  }

  /** When the server logged an answer to such a request. */
  requests(method: string, path: RegExp): number[] {
    return this.log
      .filter(({ fields }) => {
        const line = JSON.stringify(fields);
        return line.includes(`"${method}"`) && path.test(line);
      })
      .map(({ receivedAt }) => receivedAt);
  }
}

export async function freePort(): Promise<number> {
  return await new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const address = probe.address();
      probe.close(() => {
        if (typeof address === "object" && address !== null) {
          resolve(address.port);
        } else {
          reject(new Error("no port"));
        }
      });
    });
  });
}
