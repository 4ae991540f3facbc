import type { ComponentChildren } from "preact";
import { useNow } from "./clock";
import { age, moment, span } from "./format";
import type { MachineStatus, SessionStatus, TaskStatus } from "./types";

type Shown = SessionStatus | TaskStatus | MachineStatus;

const WORDS: Record<Shown, string> = {
  active: "Active",
  paused: "Paused",
  stalled: "Stalled",
  completed: "Completed",
  failed: "Failed",
  pending: "Pending",
  in_progress: "In progress",
  blocked: "Blocked",
  online: "Online",
  offline: "Offline",
  maintenance: "Maintenance",
};

// Each state has a shape of its own, so that nothing depends on telling colours apart.
const SHAPES: Record<Shown, string> = {
  active: "M8 3.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9z",
  in_progress: "M8 3.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9z",
  online: "M8 3.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9z",
  paused: "M4.5 3.5h2.6v9H4.5zM8.9 3.5h2.6v9H8.9z",
  maintenance: "M4.5 3.5h2.6v9H4.5zM8.9 3.5h2.6v9H8.9z",
  stalled: "M8 2.2 14.4 13.4H1.6zM7.2 6.2h1.6v3.6H7.2zM7.2 10.7h1.6v1.5H7.2z",
  blocked: "M8 2.2 14.4 13.4H1.6zM7.2 6.2h1.6v3.6H7.2zM7.2 10.7h1.6v1.5H7.2z",
  completed: "M6.6 12.6 2.4 8.4l1.5-1.5 2.7 2.7 5.5-5.6 1.5 1.5z",
  failed: "m4.9 3.4 3.1 3.1 3.1-3.1 1.5 1.5L9.5 8l3.1 3.1-1.5 1.5L8 9.5l-3.1 3.1-1.5-1.5L6.5 8 3.4 4.9z",
  offline: "m4.9 3.4 3.1 3.1 3.1-3.1 1.5 1.5L9.5 8l3.1 3.1-1.5 1.5L8 9.5l-3.1 3.1-1.5-1.5L6.5 8 3.4 4.9z",
  pending: "M8 3.2a4.8 4.8 0 1 0 0 9.6 4.8 4.8 0 0 0 0-9.6zm0 1.7a3.1 3.1 0 1 1 0 6.2 3.1 3.1 0 0 1 0-6.2z",
};

export function word(status: Shown): string {
  return WORDS[status] ?? status;
}

export function Mark({ status }: { status: Shown }) {
  return (
    <svg class="mark" viewBox="0 0 16 16" aria-hidden="true">
      <path d={SHAPES[status]} fill="currentColor" fill-rule="evenodd" />
    </svg>
  );
}

export function Pill({ status, note }: { status: Shown; note?: string | undefined }) {
  return (
    <span class={`pill is-${status}`}>
      <Mark status={status} />
      {word(status)}
      {note && <span class="note">{note}</span>}
    </span>
  );
}

interface BeatProps {
  status: SessionStatus;
  stalled: boolean;
  last: string;
  thresholdMs: number;
  ended: string | null;
}

/** Time since the last heartbeat as a bar that fills towards the session's threshold. */
export function Beat({ status, stalled, last, thresholdMs, ended }: BeatProps) {
  const now = useNow();
  if (ended !== null) {
    return (
      <span class="beat-text ended">
        <Ago at={ended} before="ended " />
      </span>
    );
  }
  const silent = Math.max(0, now - Date.parse(last));
  const share = Math.min(1, silent / thresholdMs);
  const level = stalled || silent > thresholdMs ? "over" : share > 2 / 3 ? "late" : "fresh";
  const said = `${age(silent)} of ${span(thresholdMs)}`;
  return (
    <div class={`beat ${status === "paused" ? "idle" : level}`} title={`Last heartbeat ${moment(last)}`}>
      <div
        class="beat-bar"
        role="meter"
        aria-label="Time since the last heartbeat"
        aria-valuemin={0}
        aria-valuemax={thresholdMs}
        aria-valuenow={Math.min(Math.round(silent), thresholdMs)}
        aria-valuetext={said}
      >
        <div class="beat-fill" style={{ transform: `scaleX(${share.toFixed(4)})` }} />
      </div>
      <span class="beat-text">
        {age(silent)}
        <span class="faint"> / {span(thresholdMs)}</span>
      </span>
    </div>
  );
}

/** How long ago something was, its moment to be pointed at. */
export function Ago({ at, before = "" }: { at: string; before?: string }) {
  const now = useNow();
  return (
    <time dateTime={at} title={moment(at)}>
      {before}
      {age(now - Date.parse(at))} ago
    </time>
  );
}

/** How many of a session's tasks are done. */
export function Progress({ tasks }: { tasks: Record<TaskStatus, number> }) {
  const total = tasks.pending + tasks.in_progress + tasks.completed + tasks.failed + tasks.blocked;
  if (total === 0) return <span class="faint">no tasks</span>;
  const share = (n: number) => ({ width: `${((n / total) * 100).toFixed(2)}%` });
  const said = `${tasks.completed} of ${total} tasks done${tasks.failed ? `, ${tasks.failed} failed` : ""}`;
  return (
    <div class="progress">
      <div
        class="progress-bar"
        role="progressbar"
        aria-label="Tasks done"
        aria-valuemin={0}
        aria-valuemax={total}
        aria-valuenow={tasks.completed}
        aria-valuetext={said}
      >
        <span class="done" style={share(tasks.completed)} />
        <span class="broken" style={share(tasks.failed)} />
        <span class="doing" style={share(tasks.in_progress)} />
      </div>
      <span class="progress-text">
        {tasks.completed} of {total}
        {tasks.failed > 0 && <span class="why"> · {tasks.failed} failed</span>}
      </span>
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <svg viewBox="0 0 120 32" aria-hidden="true" class="empty-line">
        <path d="M2 16h42l6-11 9 22 6-11h53" fill="none" stroke="currentColor" stroke-width="2" />
      </svg>
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Loading() {
  return (
    <div class="loading" role="status">
      <span class="visually-hidden">Loading</span>
      <i />
      <i />
      <i />
    </div>
  );
}

/** What somebody has typed somewhere: text, whatever it looks like, and never mixing its direction into ours. */
export function Typed({ children }: { children: string }) {
  return <bdi class="typed">{children}</bdi>;
}
