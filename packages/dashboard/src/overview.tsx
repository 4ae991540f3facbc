import { useEffect, useId, useRef, useState } from "preact/hooks";
import { announce } from "./announce";
import { request } from "./api";
import { count, short } from "./format";
import { Ago, Beat, Empty, Loading, Mark, Pill, Progress, Typed, word } from "./parts";
import { usePoll } from "./poll";
import { go, Link, sessionAddress, useAddress, withQuery } from "./route";
import { SESSION_STATUSES, type Names, type Overview as Data, type Row, type SessionStatus } from "./types";

const PAGE = 50;

export function Overview() {
  const { query } = useAddress();
  const project = query.get("project") ?? "";
  const machine = query.get("machine") ?? "";
  const status = SESSION_STATUSES.find((known) => known === query.get("status")) ?? null;
  const page = Math.max(1, Math.floor(Number(query.get("page") ?? 1)) || 1);
  const asked = new URLSearchParams({ limit: String(PAGE), offset: String((page - 1) * PAGE) });
  if (project) asked.set("project_id", project);
  if (machine) asked.set("machine_id", machine);
  if (status) asked.set("status", status);
  const { data, refused } = usePoll<Data>(`/api/dashboard/overview?${asked}`);
  // While the next view is on its way, the last one stays: filters must not make the page jump.
  const last = useRef<Data | null>(null);
  if (data) last.current = data;
  const shown = data ?? last.current;
  const [names, askForNames] = useNames();
  useTold(data);
  useEffect(() => {
    document.title = shown ? titleFor(shown) : "Claude Projects";
  }, [shown]);

  const filtered = Boolean(project || machine || status);
  return (
    <>
      <div class="title-line">
        <h1>Sessions</h1>
        <div class="filters" role="search" aria-label="Filters">
          {filtered && (
            <Link to="/dashboard" class="button quiet">
              Clear filters
            </Link>
          )}
          <Filter name="project" label="Project" value={project} suggestions={names.projects} focused={askForNames} />
          <Filter name="machine" label="Machine" value={machine} suggestions={names.machines} focused={askForNames} />
        </div>
      </div>
      <Tiles counts={shown?.counts ?? null} status={status} />
      {shown?.suspected_outage && (
        <p class="trouble" role="status">
          <strong>Most sessions fell silent within the same minute.</strong> That looks like a fault of the network or
          of this service rather than of the sessions.
        </p>
      )}
      {refused && !data ? (
        <Empty title="The API refused this view">
          <p>{refused.message}</p>
        </Empty>
      ) : shown === null ? (
        <Loading />
      ) : shown.sessions.length === 0 ? (
        <Nothing filtered={filtered} beyond={page > 1 && shown.total > 0} />
      ) : (
        <>
          <Table rows={shown.sessions} />
          <Pages total={shown.total} page={page} />
        </>
      )}
    </>
  );
}

const NAMES_AGE_MS = 20_000;

/** What can be filtered by; asked for at first and when somebody is about to filter. */
function useNames(): [Names, () => void] {
  const [names, setNames] = useState<Names>({ projects: [], machines: [] });
  const askedAt = useRef(Number.NEGATIVE_INFINITY);
  const ask = () => {
    if (performance.now() - askedAt.current < NAMES_AGE_MS) return;
    askedAt.current = performance.now();
    // Without them a filter can still be typed.
    request<Names>("/api/dashboard/names").then(
      (reply) => reply.data && setNames(reply.data),
      () => undefined,
    );
  };
  useEffect(ask, []);
  return [names, ask];
}

function titleFor({ counts }: Data): string {
  const urgent = counts.stalled + counts.failed;
  return urgent > 0 ? `(${urgent}) Claude Projects` : "Claude Projects";
}

/** Tells a screen reader which of the sessions in view have stalled, failed or ended since the last poll. */
function useTold(data: Data | null): void {
  const known = useRef(new Map<string, SessionStatus>());
  useEffect(() => {
    if (!data) return;
    const changed: string[] = [];
    for (const row of data.sessions) {
      const now = row.is_stalled ? "stalled" : row.status;
      const before = known.current.get(row.session_id);
      if (before && before !== now) changed.push(`${row.project_id} on ${row.machine_id} is ${word(now).toLowerCase()}`);
      known.current.set(row.session_id, now);
    }
    if (changed.length > 0) announce(changed.slice(0, 3).join(". "));
  }, [data]);
}

function Tiles({ counts, status }: { counts: Data["counts"] | null; status: SessionStatus | null }) {
  const total = counts && Object.values(counts).reduce((sum, n) => sum + n, 0);
  return (
    <nav class="tiles" aria-label="Sessions by state">
      <div class="shares" aria-hidden="true">
        {SESSION_STATUSES.map((each) =>
          counts?.[each] ? <span key={each} class={`is-${each}`} style={{ flexGrow: counts[each] }} /> : null,
        )}
      </div>
      <Link to={withQuery({ status: null, page: null })} class="tile" aria-current={status === null ? "true" : undefined}>
        <span class="tile-count">{total?.toLocaleString() ?? "–"}</span>
        <span class="tile-name">All</span>
      </Link>
      {SESSION_STATUSES.map((each) => (
        <Link
          key={each}
          to={withQuery({ status: each, page: null })}
          class={`tile is-${each} ${counts?.[each] ? "" : "none"}`}
          aria-current={status === each ? "true" : undefined}
        >
          <span class="tile-count">{counts?.[each].toLocaleString() ?? "–"}</span>
          <span class="tile-name">
            <Mark status={each} />
            {word(each)}
          </span>
        </Link>
      ))}
    </nav>
  );
}

interface FilterProps {
  name: "project" | "machine";
  label: string;
  value: string;
  suggestions: string[];
  focused: () => void;
}

function Filter({ name, label, value, suggestions, focused }: FilterProps) {
  const id = useId();
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  const apply = (next: string) => {
    if (next !== value) go(withQuery({ [name]: next, page: null }));
  };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        type="search"
        list={`${id}-list`}
        value={text}
        placeholder="any"
        autocomplete="off"
        spellcheck={false}
        onFocus={focused}
        onInput={(event) => {
          const next = event.currentTarget.value;
          setText(next);
          // Emptied, or chosen from the list: done without a further key.
          if (next === "" || suggestions.includes(next)) apply(next);
        }}
        onChange={(event) => apply(event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Enter" && apply(event.currentTarget.value)}
      />
      <datalist id={`${id}-list`}>
        {suggestions.map((each) => (
          <option key={each} value={each} />
        ))}
      </datalist>
    </div>
  );
}

function Nothing({ filtered, beyond }: { filtered: boolean; beyond: boolean }) {
  if (beyond) {
    return (
      <Empty title="The list has become shorter than this page">
        <Link to={withQuery({ page: null })}>First page</Link>
      </Empty>
    );
  }
  if (filtered) {
    return (
      <Empty title="No session matches">
        <p>Projects and machines are matched by their whole name.</p>
        <Link to="/dashboard">Clear filters</Link>
      </Empty>
    );
  }
  return (
    <Empty title="No sessions yet">
      <p>Start an orchestration with the command line or from VS Code; it appears here by itself.</p>
      <pre class="code">claude-projects run plan.toml</pre>
    </Empty>
  );
}

// Roles are spelled out because the narrow layout changes `display`, and with it what a table is to a browser.
function Table({ rows }: { rows: Row[] }) {
  return (
    <table class="rows" role="table" aria-label="Sessions">
      <thead role="rowgroup">
        <tr role="row">
          <th role="columnheader">State</th>
          <th role="columnheader">Project</th>
          <th role="columnheader">Machine</th>
          <th role="columnheader">Current task</th>
          <th role="columnheader">Progress</th>
          <th role="columnheader">Heartbeat</th>
        </tr>
      </thead>
      <tbody role="rowgroup">
        {rows.map((row) => (
          <SessionRow key={row.session_id} row={row} />
        ))}
      </tbody>
    </table>
  );
}

function SessionRow({ row }: { row: Row }) {
  const status = row.is_stalled ? "stalled" : row.status;
  const bare = !(row.current_task || row.recovered_by || (row.error_message && status === "failed"));
  return (
    <tr role="row" class={`row is-${status} ${row.archived ? "archived" : ""}`} data-session={row.session_id}>
      <td role="cell" class="c-state">
        <Pill status={status} note={row.archived ? "archived" : undefined} />
      </td>
      <td role="cell" class="c-project">
        <Link to={sessionAddress(row.session_id)} class="row-link" title={row.project_id}>
          <Typed>{row.project_id}</Typed>
        </Link>
        <span class="sub">
          <code>{short(row.session_id)}</code>
          <Ago at={row.started_at} before="started " />
        </span>
      </td>
      <td role="cell" class="c-machine" title={row.machine_id}>
        <Typed>{row.machine_id}</Typed>{" "}
        {row.docker_slot !== null && <span class="slot-tag">slot {row.docker_slot}</span>}
      </td>
      <td role="cell" class={`c-task ${bare ? "bare" : ""}`}>
        {row.error_message && status === "failed" ? (
          <span class="why" title={row.error_message}>
            <Typed>{row.error_message}</Typed>
          </span>
        ) : row.current_task ? (
          <span title={row.current_task}>
            <Typed>{row.current_task}</Typed>
          </span>
        ) : row.recovered_by ? (
          <span class="faint">
            goes on in <code>{short(row.recovered_by)}</code>
          </span>
        ) : (
          <span class="faint" aria-label="none">
            –
          </span>
        )}
      </td>
      <td role="cell" class="c-progress">
        <Progress tasks={row.tasks} />
      </td>
      <td role="cell" class="c-beat">
        <Beat
          status={row.status}
          stalled={row.is_stalled}
          last={row.last_heartbeat}
          thresholdMs={row.stall_threshold_ms}
          ended={row.completed_at}
        />
      </td>
    </tr>
  );
}

function Pages({ total, page }: { total: number; page: number }) {
  const pages = Math.max(1, Math.ceil(total / PAGE));
  const first = (page - 1) * PAGE + 1;
  return (
    <nav class="pages" aria-label="Pages">
      <span>
        {pages === 1 ? count(total, "session") : `${first}–${Math.min(total, page * PAGE)} of ${count(total, "session")}`}
      </span>
      {pages > 1 && (
        <span class="pages-links">
          {page > 1 && (
            <Link class="button" rel="prev" to={withQuery({ page: page > 2 ? String(page - 1) : null })}>
              Previous
            </Link>
          )}
          {page < pages && (
            <Link class="button" rel="next" to={withQuery({ page: String(page + 1) })}>
              Next
            </Link>
          )}
        </span>
      )}
    </nav>
  );
}
