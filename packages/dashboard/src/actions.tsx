import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { request } from "./api";
import { Ask } from "./ask";
import { short } from "./format";
import { Typed } from "./parts";
import { Link, sessionAddress } from "./route";
import type { Detail, Machines, Session } from "./types";

type Action = "stall" | "fail" | "recover" | "archive";

interface Props {
  data: Detail;
  refresh(): void;
}

/** What can be done with a session in its state; each asked for confirmation, each with its result shown. */
export function Actions({ data, refresh }: Props) {
  const { session } = data;
  const [asked, setAsked] = useState<Action | null>(null);
  const [result, setResult] = useState<ComponentChildren>(null);
  const said = useRef<HTMLDivElement>(null);
  useEffect(() => {
    // The button that was pressed is often gone by now, so the result takes the focus once the dialog is closed.
    if (result && asked === null) said.current?.focus();
  }, [result, asked]);

  const post = async <T,>(action: string, body?: unknown): Promise<T> => {
    const path = `/api/sessions/${session.session_id}/${action}`;
    const reply = await request<T>(path, { method: "POST", body });
    refresh();
    return reply.data as T;
  };
  const ask = (action: Action) => () => {
    setResult(null);
    setAsked(action);
  };
  const close = () => setAsked(null);
  const { status } = session;
  const archived = session.metadata["archived"] === true;
  const buttons = [
    (status === "stalled" || status === "failed") && (
      <button type="button" key="recover" class="primary" onClick={ask("recover")}>
        Recover…
      </button>
    ),
    (status === "active" || status === "paused") && (
      <button type="button" key="stall" onClick={ask("stall")}>
        Mark stalled…
      </button>
    ),
    status !== "completed" && status !== "failed" && (
      <button type="button" key="fail" class="danger" onClick={ask("fail")}>
        Mark failed…
      </button>
    ),
    (status === "completed" || status === "failed") && !archived && (
      <button type="button" key="archive" onClick={ask("archive")}>
        Archive…
      </button>
    ),
  ].filter(Boolean);

  return (
    <div class="actions">
      {buttons.length > 0 && (
        <div class="actions-buttons" role="group" aria-label="Actions">
          {buttons}
        </div>
      )}
      <div ref={said} class="result" role="status" tabIndex={-1}>
        {result}
      </div>
      {asked === "stall" && (
        <Ask
          title="Mark this session stalled?"
          confirm="Mark stalled"
          close={close}
          act={async () => {
            await post("mark-stalled");
            setResult("The session is marked stalled. A heartbeat makes it active again.");
          }}
        >
          <p>It can be recovered then. If it still lives, its next heartbeat makes it active again.</p>
        </Ask>
      )}
      {asked === "fail" && (
        <Ask
          title="Mark this session failed?"
          confirm="Mark failed"
          danger
          close={close}
          act={async (fields) => {
            await post("mark-failed", { error_message: String(fields.get("reason")) });
            setResult("The session is marked failed, its tasks in progress with it.");
          }}
        >
          <p>This ends it: its process is refused from then on, and its tasks in progress fail with it.</p>
          <label for="reason">Why?</label>
          <textarea id="reason" name="reason" rows={3} required maxLength={4_000} autofocus />
        </Ask>
      )}
      {asked === "archive" && (
        <Ask
          title="Archive this session?"
          confirm="Archive"
          close={close}
          act={async () => {
            await post("archive");
            setResult("The session is archived: it and its tasks are kept beyond their retention.");
          }}
        >
          <p>It and its tasks are then kept for good instead of expiring.</p>
        </Ask>
      )}
      {asked === "recover" && (
        <Recover
          session={session}
          close={close}
          act={async (fields) => {
            const slot = String(fields.get("slot") ?? "").trim();
            const successor = await post<Session>("recover", {
              new_machine_id: String(fields.get("machine")).trim(),
              ...(slot === "" ? {} : { docker_slot: Number(slot) }),
              reset_failed_tasks: fields.has("failed"),
              carry_open_tasks: fields.has("open"),
            });
            setResult(
              <>
                Recovered: the work goes on in session{" "}
                <Link to={sessionAddress(successor.session_id)}>{short(successor.session_id)}</Link> on{" "}
                <Typed>{successor.machine_id}</Typed>. Where no orchestrator picks it up by itself, start one there:{" "}
                <code>claude-projects resume {successor.session_id}</code>
              </>,
            );
          }}
        />
      )}
    </div>
  );
}

interface RecoverProps {
  session: Session;
  close(): void;
  act(fields: FormData): Promise<void>;
}

function Recover({ session, close, act }: RecoverProps) {
  const [machines, setMachines] = useState<Machines["machines"]>([]);
  const [chosen, setChosen] = useState(session.machine_id);
  useEffect(() => {
    const end = new AbortController();
    request<Machines>("/api/dashboard/machines?status=online", { signal: end.signal }).then(
      (reply) => setMachines(reply.data?.machines ?? []),
      () => undefined, // without suggestions then
    );
    return () => end.abort();
  }, []);
  const known = machines.find((machine) => machine.machine_id === chosen);
  const taken = new Set(known?.sessions.filter((each) => each.session_id !== session.session_id).map((each) => each.docker_slot));
  const free = known?.docker_slots.filter((slot) => !taken.has(slot)) ?? [];
  return (
    <Ask title="Recover this session?" confirm="Recover" close={close} act={act}>
      <p>A new session takes its work over. The old process is refused from then on.</p>
      <label for="machine">On which machine?</label>
      <input
        id="machine"
        name="machine"
        list="machines-online"
        required
        maxLength={512}
        autocomplete="off"
        spellcheck={false}
        autofocus
        value={chosen}
        onInput={(event) => setChosen(event.currentTarget.value)}
      />
      <datalist id="machines-online">
        {machines.map((machine) => (
          <option key={machine.machine_id} value={machine.machine_id} />
        ))}
      </datalist>
      <label for="slot">
        Docker slot <span class="faint">(optional)</span>
      </label>
      <input id="slot" name="slot" type="number" min={0} max={2_147_483_647} step={1} aria-describedby="slot-hint" />
      <p id="slot-hint" class="hint">
        {known
          ? free.length > 0
            ? `Free there: ${free.slice(0, 20).join(", ")}${free.length > 20 ? " …" : ""}`
            : "No slot is free there."
          : "This machine is not among the registered ones that are online."}
      </p>
      <label class="check">
        <input type="checkbox" name="open" defaultChecked /> Take along the tasks that were not done
      </label>
      <label class="check">
        <input type="checkbox" name="failed" defaultChecked /> Try the failed tasks again
      </label>
    </Ask>
  );
}
