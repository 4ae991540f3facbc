/**
 * One plan being carried out in this window: its tasks one after the other, each told to the tracker as it begins and
 * ends. Whatever befalls it (a person's wish, a failing task, a takeover), it ends in exactly one of its outcomes.
 */
import { EventEmitter } from "node:events";
import type { Log } from "../log.js";
import type { Command, TaskDefinition } from "../plan/plan.js";
import type { ProcessIdentity } from "../processes.js";
import type { Metadata, RunRecord, TaskRecord } from "../tracking/record.js";
import type { RunClaim } from "../tracking/store.js";
import type { Replacement } from "../tracking/reporter.js";
import type { Tracker } from "../tracking/tracker.js";
import { type Exit, type RunningCommand, runCommand } from "./command.js";
import { GOODBYE, definitionOf } from "./outline.js";
import { outputFile } from "./output.js";

/** A run as it is kept on disk: what the tracker knows, and what another window needs to go on with it. */
export interface OrchestrationRecord extends RunRecord {
  /** The folder in which it was started. */
  readonly workspace: string;
  /** The process of the task in progress, so that a successor can end it. */
  child?: ProcessIdentity;
  /** It was paused by a person, or for one to decide: it does not go on by itself. */
  isPausedByPerson?: boolean;
}

export type State =
  | "running"
  | "pausing"
  | "paused"
  | "completed"
  | "failed"
  | "replaced"
  /** Put down because its window closes; to be picked up by the next one. */
  | "suspended";

/** The screen that a person watches. */
export interface Screen {
  write(text: string): void;
  heading(text: string): void;
  note(text: string): void;
  failure(text: string): void;
}

interface Wish {
  readonly kind: "pause" | "complete" | "fail" | "suspend" | "yield";
  readonly reason: string;
  /** The task in progress is not waited for. */
  readonly atOnce: boolean;
}

/** Where things are kept that outlive the window, and the program that commands run under. */
export interface Places {
  readonly output: string;
  readonly guard: string;
}

/** How long a task waits, at most, for an API that is there to acknowledge that it is this run's to do. */
const CLAIM_PATIENCE_MS = 15_000;
/** What is kept of Claude's report on a task, as the command line keeps it. */
const KEPT_OF_CLAUDE = ["session_id", "num_turns", "total_cost_usd", "duration_ms"];
const LONGEST_ANSWER = 4_000;

interface OrchestrationEvents {
  change: [];
  ended: [State];
  /** It paused by itself, for a person to decide. */
  held: [string];
}

const FINAL: ReadonlySet<State> = new Set(["completed", "failed", "replaced", "suspended"]);

export class Orchestration extends EventEmitter<OrchestrationEvents> {
  state: State = "running";
  /** Why it ended or paused, for people. */
  reason = "";

  private wish: Wish | undefined;
  private wake: (() => void) | undefined;
  private command: RunningCommand | undefined;

  constructor(
    readonly tracker: Tracker & { readonly run: OrchestrationRecord },
    private readonly claim: RunClaim,
    private readonly screen: Screen,
    private readonly places: Places,
    private readonly log: Log,
  ) {
    super();
    tracker.on("replaced", (replacement) => {
      this.yield(replacement);
    });
    tracker.on("endedFor", (status, reason) => {
      this.stop(status === "completed" ? "complete" : "fail", reason);
    });
    tracker.on("held", (reason) => {
      this.hold(reason);
    });
    tracker.on("change", () => this.emit("change"));
  }

  get run(): OrchestrationRecord {
    return this.tracker.run;
  }

  get isOver(): boolean {
    return FINAL.has(this.state);
  }

  get currentTask(): TaskRecord | undefined {
    return this.run.tasks.find((task) => task.status === "in_progress");
  }

  get finishedTasks(): number {
    return this.run.tasks.filter((task) => task.status === "completed").length;
  }

  logFile(task: TaskRecord): string {
    return outputFile(this.places.output, this.run.runId, task.key);
  }

  /** Pauses after the task in progress, or at once: that task then starts anew when the plan goes on. */
  pause(atOnce: boolean, reason = "paused by a person"): void {
    if (this.isOver || this.state === "paused") {
      return;
    }
    this.wish = { kind: "pause", reason, atOnce: atOnce || this.wish?.atOnce === true };
    this.become("pausing");
    if (atOnce) {
      this.command?.interrupt();
      this.wake?.();
    }
  }

  resume(): void {
    if (this.state === "pausing") {
      this.wish = undefined;
      this.become("running");
    } else if (this.state === "paused") {
      this.wish = undefined;
      this.wake?.();
    }
  }

  /** Ends the orchestration; a task in progress is ended with it. */
  stop(as: "complete" | "fail", reason: string): void {
    this.demand({ kind: as, reason, atOnce: true });
  }

  /** Puts it down so that another window can pick it up. */
  suspend(): void {
    this.demand({ kind: "suspend", reason: "the window was closed", atOnce: true });
  }

  /** Somebody else goes on with this work: stop at once, report nothing more. */
  yield(replacement: Replacement): void {
    this.demand({ kind: "yield", reason: replacement.message, atOnce: true });
  }

  /** Another process is at work on the project: two at once would get into each other's way. */
  private hold(reason: string): void {
    if (this.isOver || this.state === "paused" || this.wish !== undefined) {
      return;
    }
    this.pause(true, reason);
    this.emit("held", reason);
  }

  /** Carries out the plan. Resolves with the state in which it ended. */
  async carryOut(): Promise<State> {
    this.tracker.start();
    this.work();
    try {
      while (!this.isOver) {
        const task = this.run.tasks.find(({ status }) => status === "pending" || status === "blocked");
        if (!this.claim.held) {
          this.end("replaced", "another window took it over");
        } else if (this.wish !== undefined) {
          await this.grant(this.wish);
        } else if (task === undefined) {
          this.finish("completed", "every task is completed");
        } else {
          await this.execute(task);
        }
      }
    } catch (error) {
      this.log.error(`“${this.run.title}” broke off: ${String(error)}`);
      this.finish("failed", `broke off: ${String(error)}`);
    } finally {
      await this.command?.end();
      this.emit("ended", this.state);
    }
    return this.state;
  }

  private demand(wish: Wish): void {
    if (this.isOver) {
      return;
    }
    // Having been replaced overrules what anybody wishes.
    if (this.wish?.kind !== "yield") {
      this.wish = wish;
    }
    void this.command?.end();
    this.wake?.();
  }

  private async grant(wish: Wish): Promise<void> {
    switch (wish.kind) {
      case "pause":
        await this.rest(wish.reason);
        return;
      case "complete":
        this.finish("completed", wish.reason);
        return;
      case "fail":
        this.finish("failed", wish.reason);
        return;
      case "suspend":
        this.tracker.update((run) => {
          run.status = "paused";
          run.news = GOODBYE;
        });
        this.end("suspended", wish.reason);
        return;
      case "yield":
        this.end("replaced", wish.reason);
    }
  }

  private async rest(reason: string): Promise<void> {
    const { run } = this;
    this.tracker.update(() => {
      run.status = "paused";
      run.isPausedByPerson = true;
    });
    this.reason = reason;
    this.screen.note(`Paused: ${reason}. Run “Claude Projects: Resume Orchestration” to go on.`);
    this.become("paused");
    await this.nextWish();
    if (this.wish === undefined) {
      this.work();
      this.become("running");
    }
  }

  private work(): void {
    const { run } = this;
    this.tracker.update(() => {
      run.status = "active";
      delete run.isPausedByPerson;
    });
  }

  /** Resolves when somebody wishes something else than before. */
  private async nextWish(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.wake = resolve;
    });
  }

  private async execute(task: TaskRecord): Promise<void> {
    const { run, tracker } = this;
    const definition = definitionOf(task.metadata);
    if (definition === undefined) {
      this.failTask(task, "its metadata does not say what to run");
      return;
    }
    const number = run.tasks.indexOf(task) + 1;
    this.screen.heading(`▶ Task ${String(number)} of ${String(run.tasks.length)}: ${task.name}`);
    this.screen.note(`$ ${shorten(definition.command)}`);
    this.log.info(`Task ${String(number)} of ${String(run.tasks.length)} of “${run.title}” begins: ${task.name}`);
    tracker.update(() => {
      task.status = "in_progress";
    });

    if (!(await this.isClaimed(task))) {
      this.breakOff(task);
      return;
    }
    if (task.status === "completed") {
      this.screen.note(`✔ ${task.name} has been done by another process.`);
      return;
    }
    const command = this.launch(task, definition);
    const child = await command.started;
    tracker.update(() => {
      if (child !== undefined) {
        run.child = child;
      }
    });
    const exit = await command.exit;
    this.command = undefined;
    if (!this.claim.held) {
      // It was ended by whoever took over; what became of the task is theirs to say.
      return;
    }
    tracker.update(() => {
      delete run.child;
    });
    this.settle(task, exit);
  }

  /** A task is begun by whoever has claimed it. An API that is away cannot say, and is not waited for. */
  private async isClaimed(task: TaskRecord): Promise<boolean> {
    await Promise.race([this.tracker.acknowledged(task, CLAIM_PATIENCE_MS), this.nextWish()]);
    return this.wish?.atOnce !== true && this.claim.held;
  }

  private launch(task: TaskRecord, definition: TaskDefinition): RunningCommand {
    this.command = runCommand(definition, {
      cwd: this.run.workspace,
      guard: this.places.guard,
      logFile: this.logFile(task),
      environment: {
        CLAUDE_PROJECTS_SESSION_ID: this.run.sessionId,
        CLAUDE_PROJECTS_TASK_ID: task.taskId,
        CLAUDE_PROJECTS_TASK_NAME: task.name,
      },
      show: (text) => {
        this.screen.write(text);
      },
    });
    return this.command;
  }

  /** Records how a task ended. */
  private settle(task: TaskRecord, exit: Exit): void {
    const seconds = (exit.durationMs / 1_000).toFixed(1);
    // One that ends itself cleanly when its time is over has not done its work for all that.
    const isWell = exit.code === 0 && !exit.timedOut && exit.claude?.is_error !== true;
    if (exit.interrupted && !exit.timedOut) {
      this.breakOff(task);
      return;
    }
    this.tracker.update(() => {
      task.news = { result: resultOf(exit) };
    });
    if (isWell) {
      this.tracker.update(() => {
        task.status = "completed";
      });
      this.screen.note(`✔ ${task.name}, ${seconds} s${costOf(exit)}`);
      this.log.info(`Completed after ${seconds} s: ${task.name}`);
    } else {
      this.failTask(task, explain(exit));
    }
  }

  /** Records that a task was ended, or not begun, because somebody wished it. */
  private breakOff(task: TaskRecord): void {
    const { kind, reason } = this.wish ?? { kind: "pause", reason: "paused by a person" };
    if (kind === "yield" || !this.claim.held) {
      this.log.info(`Ended because the work goes on elsewhere: ${task.name}`);
    } else if (kind === "pause" || kind === "suspend") {
      this.tracker.update(() => {
        task.status = "blocked";
        task.news = { blocked_because: reason };
      });
      this.screen.note(`■ ${task.name} was interrupted and will start anew.`);
    } else {
      this.failTask(task, `ended: ${reason}`, false);
    }
  }

  private failTask(task: TaskRecord, message: string, endsThePlan = true): void {
    this.tracker.update(() => {
      task.status = "failed";
      task.errorMessage = message;
    });
    this.screen.failure(`✘ ${task.name}: ${message.split("\n", 1)[0] ?? ""}`);
    this.log.error(`Task “${task.name}” failed: ${message}`);
    if (endsThePlan) {
      this.finish("failed", `task “${task.name}” failed: ${message}`);
    }
  }

  private finish(as: "completed" | "failed", reason: string): void {
    this.tracker.update((run) => {
      run.status = as;
      run.news = GOODBYE;
      if (as === "failed") {
        run.errorMessage = reason;
      }
    });
    this.end(as, reason);
  }

  private end(state: State, reason: string): void {
    this.reason = reason;
    const line = `${this.run.title}: ${state} (${reason.split("\n", 1)[0] ?? ""})`;
    if (state === "failed" || state === "replaced") {
      this.screen.failure(line);
    } else {
      this.screen.heading(line);
    }
    this.log.info(line);
    this.become(state);
  }

  private become(state: State): void {
    this.state = state;
    this.emit("change");
  }
}

/** PRD 3.1's error message of a failed task: what happened, and the end of what the command said about it. */
export function explain(exit: Exit): string {
  const what = endOf(exit);
  const answer = exit.claude?.result;
  const said = typeof answer === "string" && answer !== "" ? answer.slice(-LONGEST_ANSWER) : exit.tail;
  return said === "" ? what : `${what}\n${said}`;
}

function endOf(exit: Exit): string {
  if (exit.startError !== undefined) {
    return `could not be started: ${exit.startError}`;
  }
  if (exit.isUnguarded) {
    return "ended because the process that guards it was killed";
  }
  if (exit.timedOut) {
    return `timed out after ${(exit.durationMs / 1_000).toFixed(0)} s`;
  }
  if (exit.signal !== null) {
    return `ended by ${exit.signal}`;
  }
  return exit.code === 0 ? "claude reports an error" : `exit code ${String(exit.code)}`;
}

function resultOf({ code, durationMs, claude }: Exit): Metadata {
  const kept = KEPT_OF_CLAUDE.filter((name) => claude?.[name] !== undefined).map((name) => [name, claude?.[name]]);
  return {
    exit_code: code,
    seconds: durationMs / 1_000,
    ...(claude === undefined ? {} : { claude: Object.fromEntries(kept) as Metadata }),
  };
}

function costOf({ claude }: Exit): string {
  const cost = claude?.["total_cost_usd"];
  return typeof cost === "number" ? `, ${cost.toFixed(2)} USD` : "";
}

function shorten(command: Command): string {
  const line = typeof command === "string" ? command : command.join(" ");
  const first = line.trim().split("\n", 1)[0] ?? "";
  return first.length > 120 ? `${first.slice(0, 119)}…` : first;
}
