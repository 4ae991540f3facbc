/**
 * What one orchestration is to the tracker: the wanted state of its session and tasks beside the state that the API
 * has acknowledged. Reporting means to make the second equal to the first, one request at a time; `nextStep` says
 * which. Because it is states that are kept and no queue of requests, an API that was away for an hour is brought up
 * to date with as few requests as if it had been there, and a crash loses nothing that was written.
 */
export type TaskStatus = "pending" | "in_progress" | "completed" | "failed" | "blocked";
export type SessionStatus = "active" | "paused" | "completed" | "failed";
export type Metadata = Readonly<Record<string, unknown>>;

export interface TaskRecord {
  /** Unique within the run; stands in the task's metadata, so that a task whose creation went unanswered is found. */
  readonly key: string;
  readonly name: string;
  readonly githubIssueId?: string;
  readonly metadata: Metadata;
  status: TaskStatus;
  /** Why it failed. */
  errorMessage?: string;
  /** The API's id, once it has one. */
  taskId?: string;
  /** The status that the API has acknowledged. */
  reported?: TaskStatus;
  /** Metadata to be merged into the task's that the API has not seen yet. */
  news?: Metadata;
  /** The report that it is in progress went out, and its answer did not come. */
  claimUnanswered?: boolean;
  /** The API will never take it. */
  isRefused?: boolean;
}

export interface RunRecord {
  readonly version: 1;
  readonly runId: string;
  readonly title: string;
  readonly projectId: string;
  readonly machineId: string;
  metadata: Metadata;
  sessionId?: string;
  status: SessionStatus;
  reported?: SessionStatus;
  errorMessage?: string;
  /** Metadata to be merged into the session's that the API has not seen yet. */
  news?: Metadata;
  tasks: TaskRecord[];
  /** A creation went out and its answer did not come: look before creating again. */
  unanswered?: boolean;
  /**
   * Set once the API has heard everything, or will never take it. `failed`: somebody else has marked the session as
   * failed, and what could not be reported is kept for whoever tries again.
   */
  closed?: "reported" | "replaced" | "deleted" | "failed";
}

export type Step =
  | { readonly kind: "create-session" }
  | { readonly kind: "heartbeat"; readonly currentTaskId: string | null }
  | { readonly kind: "find-tasks" }
  | { readonly kind: "create-task"; readonly task: TaskRecord }
  | { readonly kind: "patch-task"; readonly task: TaskRecord }
  | { readonly kind: "patch-session" };

export function isEnded(status: SessionStatus): boolean {
  return status === "completed" || status === "failed";
}

/**
 * The next request to make, or undefined where the API knows everything.
 *
 * The session comes first, since all else refers to it; a heartbeat that is due goes before any backlog; then what has
 * happened to tasks, in the plan's order; then tasks that only wait; the session's end last, since an ended session
 * takes no more reports.
 */
export function nextStep(run: RunRecord, heartbeatDue: boolean): Step | undefined {
  if (run.closed !== undefined) {
    return undefined;
  }
  if (run.sessionId === undefined) {
    return { kind: "create-session" };
  }
  if (heartbeatDue && !isEnded(run.status)) {
    return { kind: "heartbeat", currentTaskId: currentTaskId(run) };
  }
  if (run.unanswered === true) {
    return { kind: "find-tasks" };
  }
  if (run.status === "active" && run.reported !== "active") {
    return { kind: "patch-session" };
  }
  const tasks = run.tasks.filter(({ isRefused }) => isRefused !== true);
  for (const task of tasks) {
    if (task.taskId !== undefined && (task.status !== task.reported || task.news !== undefined)) {
      return { kind: "patch-task", task };
    }
    if (task.taskId === undefined && task.status !== "pending") {
      return { kind: "create-task", task };
    }
  }
  const waiting = tasks.find((task) => task.taskId === undefined);
  if (waiting !== undefined) {
    return { kind: "create-task", task: waiting };
  }
  return run.status === run.reported && run.news === undefined ? undefined : { kind: "patch-session" };
}

/** The task in progress as the API knows it: one that it has not heard of yet would be refused. */
export function currentTaskId(run: RunRecord): string | null {
  const current = run.tasks.find((task) => task.status === "in_progress" && task.reported === "in_progress");
  return current?.taskId ?? null;
}
