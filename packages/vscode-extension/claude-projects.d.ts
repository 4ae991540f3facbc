/**
 * What the extension `claude-projects.claude-projects` exports. Copy this file into an extension that uses it.
 */
import type { Event } from "vscode";

export interface ClaudeProjects {
  readonly version: 1;
  /**
   * Creates a session and heartbeats for it until it has ended. An API that is away does not keep it from returning:
   * the session is created, and everything reported, when it is back.
   * Rejects where the API refuses the session, a session of the same project on this machine being active included.
   */
  startSession(options: SessionOptions): Promise<TrackedSession>;
}

export interface SessionOptions {
  readonly projectId: string;
  /** What people call it; the project's id by default. */
  readonly title?: string;
  readonly metadata?: Readonly<Record<string, unknown>>;
}

export interface TaskOptions {
  readonly githubIssueId?: string;
  readonly metadata?: Readonly<Record<string, unknown>>;
}

export interface TrackedSession {
  /** The session's id; undefined until the API has answered. */
  readonly id: string | undefined;
  /** Fires with the reason when the session goes on elsewhere, or somebody else has ended it: stop the work. */
  readonly onDidReplace: Event<string>;
  /** Begins a task; the one before it should have ended. */
  task(name: string, options?: TaskOptions): TrackedTask;
  /** Sends a heartbeat at once; the regular ones need no help. */
  heartbeat(): void;
  /** Ends the session. Resolves with whether the API knows yet; where it does not, it will be told later. */
  complete(): Promise<boolean>;
  fail(message: string): Promise<boolean>;
}

export interface TrackedTask {
  complete(): void;
  fail(message: string): void;
  /** Puts it aside, saying why. */
  block(reason: string): void;
}
