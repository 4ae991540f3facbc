// What the API answers, as far as the page reads it.

export type SessionStatus = "active" | "paused" | "stalled" | "completed" | "failed";
export type TaskStatus = "pending" | "in_progress" | "completed" | "failed" | "blocked";
export type MachineStatus = "online" | "offline" | "maintenance";

export const SESSION_STATUSES: readonly SessionStatus[] = ["stalled", "failed", "active", "paused", "completed"];

export interface Row {
  session_id: string;
  project_id: string;
  machine_id: string;
  docker_slot: number | null;
  status: SessionStatus;
  is_stalled: boolean;
  archived: boolean;
  last_heartbeat: string;
  stall_threshold_ms: number;
  started_at: string;
  completed_at: string | null;
  current_task: string | null;
  tasks: Record<TaskStatus, number>;
  error_message: string | null;
  recovered_from: string | null;
  recovered_by: string | null;
}

export interface Overview {
  counts: Record<SessionStatus, number>;
  sessions: Row[];
  total: number;
  limit: number;
  offset: number;
  suspected_outage: boolean;
}

export interface Names {
  projects: string[];
  machines: string[];
}

export interface Session {
  session_id: string;
  project_id: string;
  machine_id: string;
  docker_slot: number | null;
  status: SessionStatus;
  last_heartbeat: string;
  current_task_id: string | null;
  started_at: string;
  completed_at: string | null;
  metadata: Record<string, unknown>;
  recovered_from: string | null;
  recovered_by: string | null;
}

export interface Task {
  task_id: string;
  task_name: string;
  github_issue_id: string | null;
  status: TaskStatus;
  started_at: string | null;
  completed_at: string | null;
  error_message: string | null;
  metadata: Record<string, unknown>;
}

export interface ChainLink {
  session_id: string;
  machine_id: string;
  status: SessionStatus;
  is_stalled: boolean;
  started_at: string;
}

export interface Detail {
  session: Session;
  is_stalled: boolean;
  stall_threshold_ms: number;
  tasks: Task[];
  task_counts: Record<TaskStatus, number>;
  chain: ChainLink[];
}

export interface TrackedEvent {
  at: string;
  kind: "session" | "task";
  session_id: string;
  task_id: string | null;
  task_name: string | null;
  from: string | null;
  to: string;
  actor: string;
  reason: string | null;
  silent_ms: number | null;
}

export interface Events {
  events: TrackedEvent[];
  heartbeats: string[];
  total: number;
}

export interface MachineSession {
  session_id: string;
  project_id: string;
  docker_slot: number | null;
  status: SessionStatus;
  is_stalled: boolean;
}

export interface Machine {
  machine_id: string;
  hostname: string;
  docker_slots: number[];
  status: MachineStatus;
  last_heartbeat: string;
  sessions: MachineSession[];
}

export interface Machines {
  machines: Machine[];
  total: number;
  limit: number;
  offset: number;
}

export interface Spread {
  p50: number | null;
  p95: number | null;
  max: number | null;
}

export interface Bucket {
  start: string;
  started: number;
  completed: number;
  failed: number;
  stalls: number;
  recovered: number;
  false_positives: number;
  time_to_detect_p50_ms: number | null;
}

export interface Summary {
  since: string;
  sessions: {
    started: number;
    completed: number;
    failed: number;
    recovered: number;
    completion_rate: number | null;
    duration_ms: Spread;
  };
  tasks: {
    created: number;
    completed: number;
    failed: number;
    completion_rate: number | null;
    duration_ms: Spread;
  };
  detection: { stalls: number; time_to_detect_ms: Spread; within_target_rate: number | null };
  false_positives: { count: number; rate: number | null };
  recovery: { recovered: number; candidates: number; rate: number | null };
  heartbeats: { received: number; failed: number; success_rate: number | null };
  consistency: { checked_at: string | null; violations: number | null };
  failure_reasons: { reason: string; count: number }[];
  series: Bucket[];
}
