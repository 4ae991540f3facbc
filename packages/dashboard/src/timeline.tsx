import { scaleTime, type ScaleTime } from "d3-scale";
import { useNow } from "./clock";
import { age, clock, moment, short, span } from "./format";
import { Mark, Typed, word } from "./parts";
import { Link, sessionAddress } from "./route";
import type { Detail, Events, SessionStatus, Task, TrackedEvent } from "./types";

// So many heartbeats the API keeps; what was before them is not silence.
const KEPT_BEATS = 60;

type Scale = ScaleTime<number, number>;

interface Props {
  data: Detail;
  events: Events | null;
}

interface Segment {
  from: number;
  to: number;
  status: SessionStatus;
  /** Past its threshold, and not marked yet. */
  presumed: boolean;
}

/** States, heartbeats and tasks on one time axis. Positions are per cent, so that it fits any width. */
export function Timeline({ data, events }: Props) {
  const now = useNow();
  const { session, tasks } = data;
  const start = Date.parse(session.started_at);
  const ended = session.completed_at === null ? null : Date.parse(session.completed_at);
  const end = Math.max(ended ?? now, start + 1_000);
  const scale = scaleTime()
    .domain([start, end + (end - start) * 0.015])
    .range([0, 100]);
  const segments = segmentsOf(data, events, end);
  const listed = data.task_counts;
  const total = listed.pending + listed.in_progress + listed.completed + listed.failed + listed.blocked;

  return (
    <div class="timeline">
      <Axis scale={scale} now={ended === null ? end : null} />
      <div class="lane lane-state">
        <span class="lane-name">State</span>
        <div class="track" role="img" aria-label={described(segments)}>
          {segments.map((each) => (
            <span
              key={each.from}
              class={`segment is-${each.status} ${each.presumed ? "presumed" : ""}`}
              style={between(scale, each.from, each.to)}
              title={`${word(each.status)} from ${clock(each.from)}, ${span(each.to - each.from)}`}
            />
          ))}
          {marks(session.recovered_by, session.recovered_from, events).map((mark) => (
            <span
              key={`${mark.at}${mark.text}`}
              class={`flag flag-${mark.kind}`}
              style={{ left: at(scale, mark.at) }}
              title={`${mark.text}, ${moment(new Date(mark.at).toISOString())}`}
            >
              <Mark status={mark.kind === "stall" ? "stalled" : "completed"} />
            </span>
          ))}
        </div>
        <span class="lane-note" />
      </div>
      <Heartbeats beats={events?.heartbeats ?? [session.last_heartbeat]} scale={scale} />
      {tasks.length > 0 ? (
        <ol class="lanes" aria-label="Tasks">
          {tasks.map((task) => (
            <TaskLane key={task.task_id} task={task} scale={scale} end={end} data={data} />
          ))}
        </ol>
      ) : (
        <p class="faint lane-none">No tasks.</p>
      )}
      {total > tasks.length && (
        <p class="faint">
          The first {tasks.length} of {total} tasks.
        </p>
      )}
    </div>
  );
}

function at(scale: Scale, ms: number): string {
  return `${Math.min(100, Math.max(0, scale(ms))).toFixed(3)}%`;
}

function between(scale: Scale, from: number, to: number): { left: string; width: string } {
  const left = Math.max(0, scale(from));
  return { left: `${left.toFixed(3)}%`, width: `${Math.max(0, Math.min(100, scale(to)) - left).toFixed(3)}%` };
}

function Axis({ scale, now }: { scale: Scale; now: number | null }) {
  const [from, to] = scale.domain() as [Date, Date];
  const length = to.getTime() - from.getTime();
  const form: Intl.DateTimeFormatOptions =
    length < 5 * 60_000
      ? { hour: "2-digit", minute: "2-digit", second: "2-digit" }
      : length < 36 * 3_600_000
        ? { hour: "2-digit", minute: "2-digit" }
        : { month: "short", day: "numeric", hour: "numeric" };
  const written = new Intl.DateTimeFormat(undefined, form);
  return (
    <div class="axis" aria-hidden="true">
      <div class="track">
        {scale
          .ticks(innerWidth < 768 ? 3 : 6)
          .filter((tick) => scale(tick) < 93)
          .map((tick) => (
            <span
              key={tick.getTime()}
              class={scale(tick) > 78 ? "late" : undefined}
              style={{ left: at(scale, tick.getTime()) }}
            >
              {written.format(tick)}
            </span>
          ))}
        {now !== null && <i class="now" style={{ left: at(scale, now) }} />}
      </div>
    </div>
  );
}

/** The states that the session has been in, by its events. */
function segmentsOf(data: Detail, events: Events | null, end: number): Segment[] {
  const { session } = data;
  const changes = (events?.events ?? []).filter((event) => event.kind === "session");
  const states: { at: number; status: SessionStatus }[] = changes.map((event) => ({
    at: Date.parse(event.at),
    status: event.to as SessionStatus,
  }));
  if (states.length === 0) {
    const ended = session.status === "completed" || session.status === "failed";
    states.push({ at: Date.parse(session.started_at), status: ended ? "active" : session.status });
  }
  const segments = states
    .map((state, index) => ({
      from: state.at,
      to: states[index + 1]?.at ?? end,
      status: state.status,
      presumed: false,
    }))
    .filter((segment) => segment.to > segment.from);
  const last = segments.at(-1);
  const due = Date.parse(session.last_heartbeat) + data.stall_threshold_ms;
  if (last && last.status === "active" && data.is_stalled && due < end) {
    const from = Math.max(last.from, due);
    last.to = from;
    segments.push({ from, to: end, status: "stalled", presumed: true });
  }
  return segments;
}

function described(segments: Segment[]): string {
  return `States: ${segments.map((each) => `${word(each.status).toLowerCase()} for ${span(each.to - each.from)}`).join(", then ")}`;
}

interface Flag {
  at: number;
  kind: "stall" | "recovery";
  text: string;
}

function marks(recoveredBy: string | null, recoveredFrom: string | null, events: Events | null): Flag[] {
  const changes = (events?.events ?? []).filter((event) => event.kind === "session");
  const flags: Flag[] = [];
  changes.forEach((event: TrackedEvent, index) => {
    const moment_ = Date.parse(event.at);
    if (event.to === "stalled") flags.push({ at: moment_, kind: "stall", text: "Stalled" });
    if (event.from === "stalled" && event.to === "active") {
      flags.push({ at: moment_, kind: "recovery", text: "Came back by itself" });
    }
    if (recoveredFrom !== null && index === 0) {
      flags.push({ at: moment_, kind: "recovery", text: "Took over from its predecessor" });
    }
    if (recoveredBy !== null && index === changes.length - 1 && event.to === "completed") {
      flags.push({ at: moment_, kind: "recovery", text: "Recovered by its successor" });
    }
  });
  return flags;
}

function Heartbeats({ beats, scale }: { beats: string[]; scale: Scale }) {
  const last = beats.at(-1);
  return (
    <div class="lane lane-beats">
      <span class="lane-name">Heartbeats</span>
      <div
        class="track"
        role="img"
        aria-label={`The last ${beats.length} heartbeats${last ? `, the latest at ${moment(last)}` : ""}`}
      >
        {beats.map((beat) => (
          <i key={beat} class="tick" style={{ left: at(scale, Date.parse(beat)) }} title={moment(beat)} />
        ))}
      </div>
      <span class="lane-note faint">{beats.length < KEPT_BEATS ? "" : `last ${beats.length}`}</span>
    </div>
  );
}

interface LaneProps {
  task: Task;
  scale: Scale;
  end: number;
  data: Detail;
}

function TaskLane({ task, scale, end, data }: LaneProps) {
  const { session } = data;
  const from = task.started_at === null ? null : Date.parse(task.started_at);
  const to = task.completed_at === null ? end : Date.parse(task.completed_at);
  const took = from === null ? null : to - from;
  // Whether anything has been done since the last heartbeat, nobody knows.
  const heard = Date.parse(session.last_heartbeat);
  const silent = data.is_stalled && task.status === "in_progress" && from !== null ? Math.max(from, heard) : null;
  const goesOn = task.status === "failed" && "carried_to" in task.metadata ? session.recovered_by : null;
  return (
    <li class={`lane is-${task.status}`}>
      <span class="lane-name" title={task.task_name}>
        <Mark status={task.status} />
        <span class="visually-hidden">{word(task.status)}: </span>
        <Typed>{task.task_name}</Typed>
      </span>
      <div class="track" aria-hidden="true">
        {from !== null && (
          <span
            class={`task is-${task.status}`}
            style={between(scale, from, to)}
            title={`${word(task.status)}, ${clock(from)} to ${task.completed_at === null ? "now" : clock(to)}`}
          />
        )}
        {silent !== null && silent < to && <span class="unheard" style={between(scale, silent, to)} title="Not heard of since" />}
      </div>
      <span class="lane-note">
        {took === null ? (
          <span class="faint">{"carried_to" in task.metadata ? "handed on" : "not started"}</span>
        ) : took < 1_000 ? span(took) : age(took)}
      </span>
      {goesOn !== null ? (
        <span class="lane-why goes-on">
          Interrupted; goes on in <Link to={sessionAddress(goesOn)}>{short(goesOn)}</Link>
        </span>
      ) : task.error_message && (
        <span class="lane-why">
          <Typed>{task.error_message}</Typed>
        </span>
      )}
    </li>
  );
}
