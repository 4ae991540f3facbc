/** What an extension host is without its editor: orchestrations on disk, against the API, watched by a test. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Api } from "../../src/api/client.js";
import type { Log } from "../../src/log.js";
import type { Orchestration, OrchestrationRecord } from "../../src/orchestration/orchestration.js";
import { Orchestrations } from "../../src/orchestration/orchestrations.js";
import type { Plan, TaskDefinition } from "../../src/plan/plan.js";
import { RunStore } from "../../src/tracking/store.js";
import { until } from "./until.js";

/** Built with the package. */
const GUARD = join(import.meta.dirname, "../../dist/guard.cjs");

export class Host {
  readonly workspace: string;
  readonly runs: string;
  readonly log: string[] = [];
  readonly screen: string[] = [];
  heartbeatMs = 60_000;

  constructor(
    /** Another one, or another key, while the API is to be away for this host. */
    public url: string,
    public key: string,
    readonly machineId = "this-machine",
    /** That of another host on the same machine, to share its runs. */
    readonly directory = mkdtempSync(join(tmpdir(), "claude-projects-host-")),
  ) {
    this.workspace = directory;
    this.runs = join(directory, "runs");
    this.orchestrations = this.orchestrationsOnDisk();
  }

  readonly api = (): Api => new Api({ url: this.url, timeoutMs: 10_000, key: () => Promise.resolve(this.key) });

  readonly orchestrations: Orchestrations;

  private orchestrationsOnDisk(): Orchestrations {
    return new Orchestrations(new RunStore<OrchestrationRecord>(this.runs), {
      api: () => this.api(),
      machineId: () => this.machineId,
      heartbeatMs: () => this.heartbeatMs,
      places: { output: join(this.directory, "output"), guard: GUARD },
      extensionVersion: "0.0.0",
      editorVersion: "none",
      log: this.logger(),
      screen: () => {
        const write = (text: string): void => {
          this.screen.push(text);
        };
        return { write, heading: write, note: write, failure: write, show: () => undefined, dispose: () => undefined };
      },
    });
  }

  async start(projectId: string, tasks: readonly TaskDefinition[], file = "plan.toml"): Promise<Orchestration> {
    const plan: Plan = { path: join(this.workspace, file), projectId, name: projectId, tasks };
    return await this.orchestrations.start(plan, this.workspace);
  }

  /** Resolves once everything about a run has been reported. */
  async reported({ run }: Orchestration): Promise<void> {
    await until(`everything about ${run.title} is reported`, () => run.closed === "reported");
  }

  async stop(): Promise<void> {
    await this.orchestrations.suspend(2_000);
    rmSync(this.directory, { recursive: true, force: true });
  }

  private logger(): Log {
    const at =
      (level: string) =>
      (message: string): void => {
        this.log.push(`[${level}] ${message}`);
      };
    return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
  }
}
