/**
 * What other extensions get from this one: an orchestrator that exists already is tracked in a few lines.
 *
 * ```ts
 * const projects = await vscode.extensions.getExtension<ClaudeProjects>("claude-projects.claude-projects")?.activate();
 * const session = await projects?.startSession({ projectId: "my-project" });
 * const task = session?.task("Write the tests");
 * task?.complete();
 * await session?.complete();
 * ```
 */
import { randomUUID } from "node:crypto";
import type { Event } from "vscode";
import type { TrackedSession } from "../claude-projects.js";
import { GOODBYE } from "./orchestration/outline.js";
import type { RunRecord } from "./tracking/record.js";
import type { Tracker } from "./tracking/tracker.js";

export type { ClaudeProjects } from "../claude-projects.js";

/** How long `complete` and `fail` wait for the API before they leave the rest to the background. */
const PATIENCE_MS = 5_000;

export function trackedSession(tracker: Tracker, onDidReplace: Event<string>): TrackedSession {
  const { run } = tracker;
  const end = async (status: "completed" | "failed", message?: string): Promise<boolean> => {
    tracker.update(() => {
      run.status = status;
      run.news = GOODBYE;
      if (message !== undefined) {
        run.errorMessage = message;
      }
    });
    await tracker.settle(PATIENCE_MS);
    return run.closed === "reported";
  };
  return {
    get id() {
      return run.sessionId;
    },
    onDidReplace,
    task: (name, { githubIssueId, metadata = {} } = {}) => {
      const task: RunRecord["tasks"][number] = {
        key: randomUUID(),
        name,
        ...(githubIssueId === undefined ? {} : { githubIssueId }),
        metadata,
        status: "in_progress",
      };
      tracker.update(() => run.tasks.push(task));
      return {
        complete: () => {
          tracker.update(() => (task.status = "completed"));
        },
        fail: (message) => {
          tracker.update(() => {
            task.status = "failed";
            task.errorMessage = message;
          });
        },
        block: (reason) => {
          tracker.update(() => {
            task.status = "blocked";
            task.news = { blocked_because: reason };
          });
        },
      };
    },
    heartbeat: () => {
      tracker.beat();
    },
    complete: () => end("completed"),
    fail: (message) => end("failed", message),
  };
}
