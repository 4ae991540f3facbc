import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Actions } from "./actions";
import { announce } from "./announce";
import { request } from "./api";
import { useNow } from "./clock";
import { age, count, moment, short, span, when } from "./format";
import { Ago, Beat, Empty, Loading, Mark, Pill, Progress, Typed, word } from "./parts";
import { usePoll } from "./poll";
import { Link, sessionAddress } from "./route";
import { Timeline } from "./timeline";
import type { Detail, Events, Session, SessionStatus, TrackedEvent } from "./types";

const EVENTS = 1_000;
const RETRY_MS = 15_000;

export function SessionPage({ id }: { id: string }) {
  const { data, refused, refresh } = usePoll<Detail>(`/api/dashboard/sessions/${encodeURIComponent(id)}`);
  const events = useEvents(id, data);
  useTold(data);
  useEffect(() => {
    if (data) document.title = `${data.session.project_id} · Claude Projects`;
  }, [data]);

  if (refused?.status === 404) {
    return (
      <Empty title="This session does not exist">
        <p>It may have been deleted, or cleaned up after its retention.</p>
        <Link to="/dashboard">All sessions</Link>
      </Empty>
    );
  }
  if (refused && !data) {
    return (
      <Empty title="The API refused this view">
        <p>{refused.message}</p>
      </Empty>
    );
  }
  if (!data) return <Loading />;
  return (
    <article class="session">
      <div class="session-top">
        <Head data={data} />
        <Actions data={data} refresh={refresh} />
      </div>
      <Facts data={data} />
      <Chain data={data} />
      <section class="card" aria-labelledby="timeline-title">
        <h2 id="timeline-title">Timeline</h2>
        <Timeline data={data} events={events} />
      </section>
      <div class="columns">
        <History events={events} />
        <Metadata metadata={data.session.metadata} />
      </div>
    </article>
  );
}

/** The session's events, read again whenever the session itself has changed. */
function useEvents(id: string, data: Detail | null): Events | null {
  const [events, setEvents] = useState<Events | null>(null);
  useEffect(() => {
    if (!data) return;
    const end = new AbortController();
    let retry = 0;
    const path = `/api/sessions/${encodeURIComponent(id)}/events`;
    const read = async () => {
      const first = await request<Events>(`${path}?limit=${EVENTS}`, { signal: end.signal });
      const found = first.data;
      // The latest events are the ones that matter where there are more than one answer holds.
      if (found && found.total > EVENTS) {
        const tail = await request<Events>(`${path}?limit=${EVENTS}&offset=${found.total - EVENTS}`, { signal: end.signal });
        return tail.data;
      }
      return found;
    };
    // A failure is no news here: the poll of the session itself says when the API is away. But that may find the
    // session unchanged when it is back, so this has to ask again by itself.
    const ask = () => {
      read().then(
        (found) => found && setEvents(found),
        () => {
          if (!end.signal.aborted) retry = window.setTimeout(ask, RETRY_MS);
        },
      );
    };
    ask();
    return () => {
      end.abort();
      clearTimeout(retry);
    };
  }, [id, data]);
  return events;
}

function useTold(data: Detail | null): void {
  const before = useRef<SessionStatus | null>(null);
  useEffect(() => {
    if (!data) return;
    const now = data.is_stalled ? "stalled" : data.session.status;
    if (before.current && before.current !== now) announce(`The session is now ${word(now).toLowerCase()}`);
    before.current = now;
  }, [data]);
}

function Head({ data }: { data: Detail }) {
  const { session } = data;
  const status = data.is_stalled ? "stalled" : session.status;
  const failure = session.metadata["error_message"];
  return (
    <header class="head">
      <p class="crumb">
        <Link to="/dashboard">Sessions</Link> <span aria-hidden="true">/</span> <code>{session.session_id}</code>
      </p>
      <div class="head-line">
        <h1>
          <Typed>{session.project_id}</Typed>
        </h1>
        <Pill status={status} note={noteOn(session)} />
      </div>
      {session.status === "failed" && typeof failure === "string" && (
        <p class="failure">
          <Typed>{failure}</Typed>
        </p>
      )}
    </header>
  );
}

function Facts({ data }: { data: Detail }) {
  const { session } = data;
  const now = useNow();
  const until = session.completed_at ? Date.parse(session.completed_at) : now;
  return (
    <dl class="card facts">
        <div>
          <dt>Machine</dt>
          <dd>
            <Typed>{session.machine_id}</Typed>
            {session.docker_slot !== null && <span class="slot-tag">slot {session.docker_slot}</span>}
          </dd>
        </div>
        <div>
          <dt>Started</dt>
          <dd>
            <time dateTime={session.started_at} title={moment(session.started_at)}>
              {when(session.started_at)}
            </time>
          </dd>
        </div>
        <div>
          <dt>{session.completed_at ? "Took" : "Runs for"}</dt>
          <dd>{age(until - Date.parse(session.started_at))}</dd>
        </div>
        <div>
          <dt>Tasks</dt>
          <dd>
            <Progress tasks={data.task_counts} />
          </dd>
        </div>
        <div>
          <dt>{session.completed_at ? "Ended" : "Heartbeat"}</dt>
          <dd>
            {session.completed_at ? (
              <Ago at={session.completed_at} />
            ) : (
              <Beat
                status={session.status}
                stalled={data.is_stalled}
                last={session.last_heartbeat}
                thresholdMs={data.stall_threshold_ms}
                ended={null}
              />
            )}
          </dd>
        </div>
    </dl>
  );
}

function noteOn(session: Session): string | undefined {
  if (session.metadata["archived"] === true) return "archived";
  return session.recovered_by === null ? undefined : "handed over";
}

/** The sessions that have had this work, first to last. */
function Chain({ data }: { data: Detail }) {
  if (data.chain.length < 2) return null;
  return (
    <nav class="chain" aria-label="Predecessors and successors">
      <ol>
        {data.chain.map((link) => {
          const here = link.session_id === data.session.session_id;
          return (
            <li key={link.session_id} class={here ? "here" : ""}>
              <Link to={sessionAddress(link.session_id)} aria-current={here ? "page" : undefined}>
                <code>{short(link.session_id)}</code> <Typed>{link.machine_id}</Typed>
              </Link>
              <Pill status={link.is_stalled ? "stalled" : link.status} />
            </li>
          );
        })}
      </ol>
    </nav>
  );
}

const SHOWN_AT_FIRST = 40;

function History({ events }: { events: Events | null }) {
  const [all, setAll] = useState(false);
  const found = useMemo(() => (events ? told(events.events) : []), [events]);
  const shown = all ? found : found.slice(0, SHOWN_AT_FIRST);
  return (
    <section class="card" aria-labelledby="history-title">
      <h2 id="history-title">What happened</h2>
      {events === null ? (
        <Loading />
      ) : found.length === 0 ? (
        <p class="faint">Nothing is recorded.</p>
      ) : (
        <ol class="history">
          {shown.map((group, index) => (
            <Happened key={found.length - index} events={group} />
          ))}
        </ol>
      )}
      {shown.length < found.length && (
        <button type="button" class="quiet" onClick={() => setAll(true)}>
          Show all {found.length.toLocaleString()}
        </button>
      )}
    </section>
  );
}

/** One thing that happened, or several tasks that were added one after the other. */
function Happened({ events }: { events: TrackedEvent[] }) {
  const event = events[0]!;
  const status = event.to as SessionStatus;
  return (
    <li class={`is-${status}`}>
      <time dateTime={event.at} title={moment(event.at)}>
        {when(event.at)}
      </time>
      <Mark status={status} />
      <div class="what">
        {events.length > 1 ? (
          <>
            <strong>{count(events.length, "task")}</strong> added
          </>
        ) : event.kind === "task" ? (
          <>
            <strong>
              <Typed>{event.task_name ?? short(event.task_id ?? "")}</Typed>
            </strong>{" "}
            <span class="to">{event.from === null ? "Added" : word(status)}</span>
          </>
        ) : (
          <>
            Session <span class="to">{word(status)}</span>
          </>
        )}
        {event.silent_ms !== null && <span class="faint"> after {span(event.silent_ms)} of silence</span>}
        <span class="sub">
          {event.reason && <Typed>{event.reason}</Typed>}
          {event.reason && " · "}
          <Typed>{event.actor.replace(/^(key|job):/, "by $1 ")}</Typed>
        </span>
      </div>
    </li>
  );
}

/** Newest first; what was added together is told together. */
function told(events: TrackedEvent[]): TrackedEvent[][] {
  const groups: TrackedEvent[][] = [];
  for (const event of [...events].reverse()) {
    const last = groups.at(-1);
    const together = isAddition(event) && last?.[0] && isAddition(last[0]) && last[0].actor === event.actor;
    if (together) last.push(event);
    else groups.push([event]);
  }
  return groups;
}

function isAddition(event: TrackedEvent): boolean {
  return event.kind === "task" && event.from === null && event.reason === null;
}

function Metadata({ metadata }: { metadata: Record<string, unknown> }) {
  const text = JSON.stringify(metadata, null, 2);
  return (
    <section class="card" aria-labelledby="metadata-title">
      <h2 id="metadata-title">Metadata</h2>
      {text === "{}" ? (
        <p class="faint">None.</p>
      ) : (
        <pre class="code" tabIndex={0}>
          {text}
        </pre>
      )}
    </section>
  );
}
