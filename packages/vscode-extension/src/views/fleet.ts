/** What the tree shows: machines, their sessions, their tasks. Polled while somebody looks, and never otherwise. */
import { indexOf } from "../orchestration/outline.js";
import { type Api, ApiError, type Machine, type Session, type Task } from "../api/client.js";

/** Sessions that have ended and are still shown on each machine, newest first. */
const ENDED_SHOWN = 5;

export interface MachineView {
  readonly machineId: string;
  /** Undefined where sessions name a machine that nobody registered. */
  readonly machine: Machine | undefined;
  readonly sessions: readonly Session[];
}

export class Fleet {
  machines: readonly MachineView[] = [];
  /** Why the picture is missing or old. */
  trouble: ApiError | undefined;
  loaded = false;
  private readonly tasksOf = new Map<string, Promise<readonly Task[]>>();

  constructor(
    private readonly api: () => Api,
    private readonly thisMachine: () => string,
  ) {}

  async refresh(): Promise<void> {
    try {
      const [machines, sessions] = await Promise.all([this.api().machines(), this.api().sessions({})]);
      this.machines = arrange(machines, sessions, this.thisMachine());
      this.tasksOf.clear();
      this.trouble = undefined;
      this.loaded = true;
    } catch (error) {
      this.trouble = ApiError.from(error);
    }
  }

  /** A session's tasks in their order; fetched once between two refreshes. */
  tasks(sessionId: string): Promise<readonly Task[]> {
    let tasks = this.tasksOf.get(sessionId);
    if (tasks === undefined) {
      tasks = this.api()
        .tasks(sessionId)
        .then((found) =>
          found.sort((a, b) => indexOf(a.metadata) - indexOf(b.metadata) || a.created_at.localeCompare(b.created_at)),
        );
      tasks.catch(() => this.tasksOf.delete(sessionId));
      this.tasksOf.set(sessionId, tasks);
    }
    return tasks;
  }
}

/** This machine first, then those with sessions, then the rest; on each, what lives before what has ended. */
export function arrange(
  machines: readonly Machine[],
  sessions: readonly Session[],
  thisMachine: string,
): readonly MachineView[] {
  const registered = new Map(machines.map((machine) => [machine.machine_id, machine]));
  const ids = new Set([...registered.keys(), ...sessions.map((session) => session.machine_id)]);
  return [...ids]
    .map((machineId) => {
      const own = sessions.filter((session) => session.machine_id === machineId);
      const ended = own.filter(({ status }) => status === "completed" || status === "failed");
      return {
        machineId,
        machine: registered.get(machineId),
        sessions: [...own.filter((session) => !ended.includes(session)), ...ended.slice(0, ENDED_SHOWN)],
      };
    })
    .sort(
      (a, b) =>
        Number(b.machineId === thisMachine) - Number(a.machineId === thisMachine) ||
        Number(b.sessions.length > 0) - Number(a.sessions.length > 0) ||
        a.machineId.localeCompare(b.machineId),
    );
}
