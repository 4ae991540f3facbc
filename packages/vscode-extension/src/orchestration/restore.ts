/** Putting together what there is to do in a run, from its plan, its record, or what the API knows of its session. */
import type { Api, Session, Task } from "../api/client.js";
import type { TaskDefinition } from "../plan/plan.js";
import type { TaskRecord } from "../tracking/record.js";
import type { OrchestrationRecord } from "./orchestration.js";
import { definitionOf, digestOf, indexOf, outlineOf, taskMetadata } from "./outline.js";
import { Refusal } from "./refusal.js";

/**
 * A session's tasks, and those that its predecessors completed. Its plan says which were done before, once whoever
 * recovered it has come to write that down; until then, the predecessors' own tasks say it.
 */
export async function history(api: Api, session: Session): Promise<Task[]> {
  const tasks = await api.tasks(session.session_id);
  let earlier = session;
  while (earlier.recovered_from !== null && outlineOf(earlier.metadata)?.sessionId !== earlier.session_id) {
    earlier = await api.session(earlier.recovered_from);
    tasks.unshift(...(await api.tasks(earlier.session_id)).filter(({ status }) => status === "completed"));
  }
  return tasks;
}

/** The keys of the tasks that were done by the time of a session, or in it; `tasks` are those of its history. */
export function doneBy(session: Session, tasks: readonly Task[]): Set<string> {
  const completed = tasks.filter(({ status }) => status === "completed").map(keyOf);
  return new Set([...(outlineOf(session.metadata)?.done ?? []), ...completed]);
}

/** A run whose process is gone: what it was at has to be begun anew. */
export function putBack(run: OrchestrationRecord): void {
  delete run.child;
  delete run.news;
  for (const task of run.tasks) {
    if (task.status === "in_progress") {
      task.status = "blocked";
    }
  }
}

export function newTask(key: string, definition: TaskDefinition, index: number, of: number): TaskRecord {
  return {
    key,
    name: definition.name,
    ...(definition.github_issue_id === undefined ? {} : { githubIssueId: definition.github_issue_id }),
    metadata: taskMetadata(definition, index, of),
    status: "pending",
  };
}

/**
 * The tasks of a session that was begun elsewhere, in their order: its plan's, where its metadata has one, else those
 * that the API has. Throws Refusal where what is left to do is not known.
 */
export function reconstruct(session: Session, tasks: readonly Task[]): TaskRecord[] {
  const outline = outlineOf(session.metadata);
  const inOrder = [...tasks].sort(
    (a, b) => indexOf(a.metadata) - indexOf(b.metadata) || a.created_at.localeCompare(b.created_at),
  );
  const known = new Map(inOrder.map((task) => [keyOf(task), task]));
  const done = doneBy(session, tasks);
  const keys = outline?.digests ?? [...known.keys()];
  return keys.map((key, index) => {
    const task = known.get(key);
    const definition = outline?.definitions.get(key) ?? (task === undefined ? undefined : definitionOf(task.metadata));
    const isDone = done.has(key);
    if (definition === undefined && !isDone) {
      throw new Refusal(
        `Session ${session.session_id} does not say what “${task?.task_name ?? `task ${String(index + 1)}`}” is to run: ` +
          "it was not started from a plan, or was killed before it had recorded its tasks.",
      );
    }
    return {
      ...(definition === undefined
        ? {
            key,
            name: task?.task_name ?? `Task ${String(index + 1)}`,
            metadata: taskMetadata(undefined, index, keys.length),
          }
        : newTask(key, definition, index, keys.length)),
      ...(task === undefined ? {} : { taskId: task.task_id }),
      ...(isDone ? { status: "completed", reported: "completed" } : { status: "pending" }),
    };
  });
}

/** What stands for a task through all sessions of its run. */
export function keyOf(task: Task): string {
  const definition = definitionOf(task.metadata);
  return definition === undefined ? task.task_id : digestOf(definition);
}
