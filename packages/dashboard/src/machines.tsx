import { useEffect, useRef, useState } from "preact/hooks";
import { request } from "./api";
import { Ask } from "./ask";
import { useNow } from "./clock";
import { age, count, moment, short } from "./format";
import { Empty, Loading, Pill, Typed, word } from "./parts";
import { usePoll } from "./poll";
import { Link, sessionAddress, useAddress, withQuery } from "./route";
import type { Machine, MachineSession, Machines, MachineStatus } from "./types";

const STATUSES: readonly MachineStatus[] = ["online", "maintenance", "offline"];
const PAGE = 100;

export function MachinesPage() {
  const { query } = useAddress();
  const status = STATUSES.find((known) => known === query.get("status")) ?? null;
  const page = Math.max(1, Math.floor(Number(query.get("page") ?? 1)) || 1);
  const asked = new URLSearchParams({ limit: String(PAGE), offset: String((page - 1) * PAGE) });
  if (status) asked.set("status", status);
  const { data, refused, refresh } = usePoll<Machines>(`/api/dashboard/machines?${asked}`);
  const last = useRef<Machines | null>(null);
  if (data) last.current = data;
  const shown = data ?? last.current;
  const [asking, setAsking] = useState<Machine | null>(null);
  const [result, setResult] = useState("");
  useEffect(() => {
    document.title = "Machines · Claude Projects";
  }, []);

  const toggle = async (machine: Machine) => {
    const next = machine.status === "maintenance" ? "online" : "maintenance";
    await request(`/api/machines/${encodeURIComponent(machine.machine_id)}`, { method: "PATCH", body: { status: next } });
    setResult(
      next === "maintenance"
        ? `${machine.machine_id} is in maintenance and takes no new sessions.`
        : `${machine.machine_id} is online again and takes new sessions.`,
    );
    refresh();
  };

  return (
    <>
      <div class="title-line">
        <h1>Machines</h1>
        <nav class="segmented" aria-label="Machines by state">
          {[null, ...STATUSES].map((each) => (
            <Link
              key={each ?? "all"}
              to={withQuery({ status: each, page: null })}
              aria-current={status === each ? "true" : undefined}
            >
              {each ? word(each) : "All"}
            </Link>
          ))}
        </nav>
      </div>
      <div class="result" role="status">
        {result && <Typed>{result}</Typed>}
      </div>
      {refused && !data ? (
        <Empty title="The API refused this view">
          <p>{refused.message}</p>
        </Empty>
      ) : shown === null ? (
        <Loading />
      ) : shown.machines.length === 0 ? (
        <Empty title={status ? "No machine is in this state" : "No machines yet"}>
          {status ? (
            <Link to="/dashboard/machines">All machines</Link>
          ) : (
            <p>A machine appears here when a client registers it, which running a plan does by itself.</p>
          )}
        </Empty>
      ) : (
        <>
          <ul class="machines">
            {sorted(shown.machines).map((machine) => (
              <Card key={machine.machine_id} machine={machine} ask={() => setAsking(machine)} />
            ))}
          </ul>
          {shown.total > PAGE && (
            <nav class="pages" aria-label="Pages">
              <span>{count(shown.total, "machine")}</span>
              <span class="pages-links">
                {page > 1 && (
                  <Link class="button" to={withQuery({ page: page > 2 ? String(page - 1) : null })}>
                    Previous
                  </Link>
                )}
                {page * PAGE < shown.total && (
                  <Link class="button" to={withQuery({ page: String(page + 1) })}>
                    Next
                  </Link>
                )}
              </span>
            </nav>
          )}
        </>
      )}
      {asking && (
        <Ask
          title={asking.status === "maintenance" ? "End maintenance?" : "Begin maintenance?"}
          confirm={asking.status === "maintenance" ? "End maintenance" : "Begin maintenance"}
          close={() => setAsking(null)}
          act={() => toggle(asking)}
        >
          <p>
            <Typed>{asking.machine_id}</Typed>{" "}
            {asking.status === "maintenance"
              ? "takes new sessions again."
              : "takes no new sessions then; those that run on it go on."}
          </p>
        </Ask>
      )}
    </>
  );
}

function sorted(machines: Machine[]): Machine[] {
  return [...machines].sort((a, b) => a.machine_id.localeCompare(b.machine_id, undefined, { numeric: true }));
}

function Card({ machine, ask }: { machine: Machine; ask: () => void }) {
  const now = useNow();
  const bySlot = new Map<number, MachineSession>();
  const loose: MachineSession[] = [];
  for (const session of machine.sessions) {
    if (session.docker_slot !== null && machine.docker_slots.includes(session.docker_slot)) {
      bySlot.set(session.docker_slot, session);
    } else loose.push(session);
  }
  const free = machine.docker_slots.length - bySlot.size;
  return (
    <li class="card machine" data-machine={machine.machine_id}>
      <div class="machine-head">
        <h2 title={machine.machine_id}>
          <Typed>{machine.machine_id}</Typed>
        </h2>
        <Pill status={machine.status} />
      </div>
      <p class="sub">
        {machine.hostname !== machine.machine_id && (
          <>
            <Typed>{machine.hostname}</Typed> ·{" "}
          </>
        )}
        <span title={moment(machine.last_heartbeat)}>heard {age(now - Date.parse(machine.last_heartbeat))} ago</span>
      </p>
      <p class="machine-free">
        {machine.docker_slots.length === 0 ? (
          <>
            <strong>{machine.sessions.length}</strong> {machine.sessions.length === 1 ? "session" : "sessions"}, no docker
            slots
          </>
        ) : (
          <>
            <strong>{free}</strong> of {count(machine.docker_slots.length, "slot")} free
          </>
        )}
      </p>
      {machine.docker_slots.length > 0 && (
        <ul class="slots" aria-label="Docker slots">
          {[...machine.docker_slots]
            .sort((a, b) => a - b)
            .map((slot) => (
              <Slot key={slot} slot={slot} session={bySlot.get(slot)} />
            ))}
        </ul>
      )}
      {loose.length > 0 && (
        <ul class="loose" aria-label="Sessions without a slot">
          {loose.map((session) => (
            <li key={session.session_id}>
              <Link to={sessionAddress(session.session_id)}>
                <Typed>{session.project_id}</Typed>
              </Link>
              <Pill status={session.is_stalled ? "stalled" : session.status} />
            </li>
          ))}
        </ul>
      )}
      <div class="machine-foot">
        {machine.sessions.length > 0 ? (
          <Link to={`/dashboard?${new URLSearchParams({ machine: machine.machine_id })}`}>
            {count(machine.sessions.length, "live session")}
          </Link>
        ) : (
          <span class="faint">no live session</span>
        )}
        <button type="button" onClick={ask} aria-label={`${toggleWord(machine)} of ${machine.machine_id}`}>
          {toggleWord(machine)}…
        </button>
      </div>
    </li>
  );
}

function toggleWord(machine: Machine): string {
  return machine.status === "maintenance" ? "End maintenance" : "Begin maintenance";
}

function Slot({ slot, session }: { slot: number; session: MachineSession | undefined }) {
  if (!session) {
    return (
      <li class="slot free" title={`Slot ${slot} is free`}>
        {slot}
        <span class="visually-hidden"> free</span>
      </li>
    );
  }
  const status = session.is_stalled ? "stalled" : session.status;
  const said = `${session.project_id}, ${word(status).toLowerCase()}`;
  return (
    <li class={`slot is-${status}`} title={`Slot ${slot}: ${said} (${short(session.session_id)})`}>
      <Link to={sessionAddress(session.session_id)}>
        {slot}
        <span class="visually-hidden"> {said}</span>
      </Link>
    </li>
  );
}
