import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { Chart, type Series } from "./chart";
import { useStep } from "./clock";
import { count, moment, percent, span, spanOr } from "./format";
import { Empty, Loading, Typed } from "./parts";
import { usePoll } from "./poll";
import { Link, useAddress, withQuery } from "./route";
import type { Spread, Summary } from "./types";

const HOUR = 3_600_000;
const WINDOWS: readonly { name: string; label: string; ms: number }[] = [
  { name: "24h", label: "24 hours", ms: 24 * HOUR },
  { name: "7d", label: "7 days", ms: 7 * 24 * HOUR },
  { name: "30d", label: "30 days", ms: 30 * 24 * HOUR },
];
// The window moves on in steps, so that most polls ask for the same one.
const STEP_MS = 5 * 60_000;
const EVERY_MS = 30_000;

export function TrendsPage() {
  const { query } = useAddress();
  const window_ = WINDOWS.find((known) => known.name === query.get("window")) ?? WINDOWS[0]!;
  const project = query.get("project");
  const step = useStep(STEP_MS);
  const asked = useMemo(() => {
    const since = new Date(step * STEP_MS - window_.ms).toISOString();
    return new URLSearchParams({ since, ...(project ? { project_id: project } : {}) });
  }, [step, window_, project]);
  const { data, refused } = usePoll<Summary>(`/api/dashboard/trends?${asked}`, EVERY_MS);
  const last = useRef<Summary | null>(null);
  if (data) last.current = data;
  const shown = data ?? last.current;
  useEffect(() => {
    document.title = "Trends · Claude Projects";
  }, []);
  return (
    <>
      <div class="title-line">
        <h1>
          Trends
          {project && (
            <>
              {" "}
              of <Typed>{project}</Typed>
            </>
          )}
        </h1>
        <nav class="segmented" aria-label="Time shown">
          {WINDOWS.map((each) => (
            <Link key={each.name} to={withQuery({ window: each.name })} aria-current={each === window_ ? "true" : undefined}>
              {each.label}
            </Link>
          ))}
        </nav>
      </div>
      {refused && !data ? (
        <Empty title="The API refused this view">
          <p>{refused.message}</p>
        </Empty>
      ) : shown ? (
        <Figures summary={shown} />
      ) : (
        <Loading />
      )}
    </>
  );
}

const asCount = (value: number) => (Number.isInteger(value) ? value.toLocaleString() : "");
const asSpan = (value: number) => (value === 0 ? "0" : span(value));

function Figures({ summary }: { summary: Summary }) {
  const { sessions, tasks, detection, false_positives, recovery, heartbeats, consistency } = summary;
  const drawn = useMemo(() => drawings(summary), [summary]);
  const detect = detection.time_to_detect_ms;
  return (
    <>
      <dl class="stats">
        <Stat name="Time to detect" value={spanOr(detect.p50)}>
          {detect.p95 === null ? "none detected" : `95% within ${span(detect.p95)}, at most ${spanOr(detect.max)}`}
        </Stat>
        <Stat name="Detected within target" value={percent(detection.within_target_rate)}>
          {count(detection.stalls, "stall")}
        </Stat>
        <Stat name="Recovery rate" value={percent(recovery.rate)}>
          {recovery.recovered} of {recovery.candidates} stalled or failed
        </Stat>
        <Stat name="False positives" value={percent(false_positives.rate)}>
          {false_positives.count} came back by themselves
        </Stat>
        <Stat name="Sessions completed" value={percent(sessions.completion_rate)}>
          {sessions.completed} completed, {sessions.failed} failed
        </Stat>
        <Stat name="Tasks completed" value={percent(tasks.completion_rate)}>
          {tasks.completed} completed, {tasks.failed} failed
        </Stat>
        <Stat name="Heartbeats answered" value={percent(heartbeats.success_rate)}>
          {count(heartbeats.received, "heartbeat")}
        </Stat>
        <Stat name="Consistency" value={consistency.violations === null ? "–" : count(consistency.violations, "violation")}>
          {consistency.checked_at === null ? "not checked yet" : `checked ${moment(consistency.checked_at)}`}
        </Stat>
      </dl>
      <div class="charts">
        <Chart title="Sessions" times={drawn.times} series={drawn.sessions} write={asCount} />
        <Chart title="Stalls and recoveries" times={drawn.times} series={drawn.stalls} write={asCount} />
        <Chart title="Time to detect, median" times={drawn.times} series={drawn.detect} write={asSpan} wide />
        <Durations sessions={sessions.duration_ms} tasks={tasks.duration_ms} />
        <Reasons reasons={summary.failure_reasons} />
      </div>
    </>
  );
}

function drawings(summary: Summary): { times: number[]; sessions: Series[]; stalls: Series[]; detect: Series[] } {
  const { series } = summary;
  return {
    times: series.map((bucket) => Date.parse(bucket.start) / 1_000),
    sessions: [
      { label: "Started", colour: "--active", values: series.map((bucket) => bucket.started), shape: "bars" },
      { label: "Completed", colour: "--completed", values: series.map((bucket) => bucket.completed) },
      { label: "Failed", colour: "--failed", values: series.map((bucket) => bucket.failed) },
    ],
    stalls: [
      { label: "Stalled", colour: "--stalled", values: series.map((bucket) => bucket.stalls), shape: "bars" },
      { label: "Recovered", colour: "--active", values: series.map((bucket) => bucket.recovered) },
      { label: "False positives", colour: "--paused", values: series.map((bucket) => bucket.false_positives) },
    ],
    detect: [
      {
        label: "Median",
        colour: "--stalled",
        values: series.map((bucket) => bucket.time_to_detect_p50_ms),
        shape: "points",
      },
    ],
  };
}

function Stat({ name, value, children }: { name: string; value: string; children: ComponentChildren }) {
  return (
    <div class="stat">
      <dt>{name}</dt>
      <dd>
        <span class="stat-value">{value}</span>
        <span class="stat-note">{children}</span>
      </dd>
    </div>
  );
}

function Durations({ sessions, tasks }: { sessions: Spread; tasks: Spread }) {
  return (
    <section class="card bars" aria-labelledby="durations-title">
      <h2 id="durations-title">Durations</h2>
      <SpreadBars name="Sessions" spread={sessions} />
      <SpreadBars name="Tasks" spread={tasks} />
    </section>
  );
}

function SpreadBars({ name, spread }: { name: string; spread: Spread }) {
  const rows: [string, number | null][] = [
    ["median", spread.p50],
    ["95%", spread.p95],
    ["longest", spread.max],
  ];
  return (
    <>
      <h3>{name}</h3>
      {spread.max === null ? (
        <p class="faint">None has ended in this time.</p>
      ) : (
        <dl class="bar-list">
          {rows.map(([label, value]) => (
            <Bar key={label} label={label} share={(value ?? 0) / (spread.max || 1)} said={spanOr(value)} />
          ))}
        </dl>
      )}
    </>
  );
}

function Reasons({ reasons }: { reasons: Summary["failure_reasons"] }) {
  const most = reasons.reduce((max, each) => Math.max(max, each.count), 1);
  return (
    <section class="card bars reasons" aria-labelledby="reasons-title">
      <h2 id="reasons-title">Why sessions failed</h2>
      {reasons.length === 0 ? (
        <p class="faint">None has failed in this time.</p>
      ) : (
        <dl class="bar-list">
          {reasons.map((each) => (
            <Bar key={each.reason} label={each.reason} share={each.count / most} said={each.count.toLocaleString()} bad />
          ))}
        </dl>
      )}
    </section>
  );
}

function Bar({ label, share, said, bad }: { label: string; share: number; said: string; bad?: boolean }) {
  return (
    <div class="bar-row">
      <dt title={label}>
        <Typed>{label}</Typed>
      </dt>
      <dd>
        <span class="bar-track" aria-hidden="true">
          <span class={`bar-fill ${bad ? "bad" : ""}`} style={{ width: `${(share * 100).toFixed(2)}%` }} />
        </span>
        {said}
      </dd>
    </div>
  );
}
