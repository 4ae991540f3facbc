import { useEffect, useRef, useState } from "preact/hooks";
import { request } from "./api";
import { Ask } from "./ask";
import { count, short } from "./format";
import { Ago, Empty, Loading, Mark, Pill, Typed, word } from "./parts";
import { usePoll } from "./poll";
import { Link, sessionAddress, useAddress, withQuery } from "./route";
import type { Machine, MachineSession, Machines, MachineStatus, SessionStatus } from "./types";

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

// So many sessions of a machine are named; the rest is one link away.
const NAMED = 6;

function Card({ machine, ask }: { machine: Machine; ask: () => void }) {
  const bySlot = new Map<number, MachineSession>();
  for (const session of machine.sessions) {
    if (session.docker_slot !== null && machine.docker_slots.includes(session.docker_slot)) {
      bySlot.set(session.docker_slot, session);
    }
  }
  const slots = [...machine.docker_slots].sort((a, b) => a - b);
  const named = [...machine.sessions].sort((a, b) => order(a) - order(b)).slice(0, NAMED);
  return (
    <li class={`card machine is-${machine.status}`} data-machine={machine.machine_id}>
      <div class="machine-head">
        <h2 title={machine.machine_id}>
          <Typed>{machine.machine_id}</Typed>
        </h2>
        <Pill status={machine.status} />
      </div>
      <p class="sub">
        {machine.hostname !== machine.machine_id && <Typed>{machine.hostname}</Typed>}
        <Ago at={machine.last_heartbeat} before="heard " />
      </p>
      {slots.length === 0 ? (
        <p class="machine-slots faint">No docker slots</p>
      ) : (
        <div class="machine-slots">
          <p>
            <strong>{slots.length - bySlot.size}</strong> of {count(slots.length, "slot")} free
          </p>
          <ul class="slots" aria-label="Docker slots">
            {slots.map((slot) => (
              <Slot key={slot} slot={slot} session={bySlot.get(slot)} />
            ))}
          </ul>
        </div>
      )}
      {named.length > 0 && (
        <ul class="on-machine" aria-label="Sessions">
          {named.map((session) => (
            <li key={session.session_id} class={`is-${shownAs(session)}`}>
              <Mark status={shownAs(session)} />
              <span class="visually-hidden">{word(shownAs(session))}: </span>
              <Link to={sessionAddress(session.session_id)} title={`${session.project_id}, ${word(shownAs(session)).toLowerCase()}`}>
                <Typed>{session.project_id}</Typed>
              </Link>
              <span class="faint">{session.docker_slot === null ? "no slot" : `slot ${session.docker_slot}`}</span>
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
        <button type="button" class="small" onClick={ask} aria-label={`${toggleWord(machine)} of ${machine.machine_id}`}>
          {toggleWord(machine)}…
        </button>
      </div>
    </li>
  );
}

function shownAs(session: MachineSession): SessionStatus {
  return session.is_stalled ? "stalled" : session.status;
}

/** Who needs somebody first, then by slot, those without one last. */
function order(session: MachineSession): number {
  return (session.is_stalled ? 0 : 2 ** 33) + (session.docker_slot ?? 2 ** 32);
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
  const status = shownAs(session);
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
