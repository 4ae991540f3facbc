import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";

export interface Series {
  label: string;
  /** Name of the custom property that holds the colour. */
  colour: string;
  values: (number | null)[];
  /** Bars for what the other lines are compared with, points where there are gaps; else a line. */
  shape?: "bars" | "points";
}

interface Props {
  title: string;
  /** Seconds since the epoch, one for each value. */
  times: number[];
  series: Series[];
  /** How a value is written, on the axis and in the table. */
  write(value: number): string;
  /** Whether values are written long, so that the axis needs room. */
  wide?: boolean;
}

const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const HOUR = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const BOTH = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

const [SECOND, MINUTE] = [1_000, 60_000];
/** Steps of an axis of time spans, in milliseconds: round to people, not to the decimal system. */
const SPANS = [1, 2, 5, 10, 15, 30]
  .flatMap((n) => [n * SECOND, n * MINUTE, n * 60 * MINUTE])
  .sort((a, b) => a - b);

function bars(colour: string): Partial<uPlot.Series> {
  const paths = uPlot.paths.bars?.({ size: [0.72, 26], radius: 0.18 });
  return { width: 0, fill: `color-mix(in srgb, ${colour} 32%, transparent)`, ...(paths ? { paths } : {}) };
}

/** Hours, and where a day begins, the day. */
function tickText(seconds: number): string {
  const moment = new Date(seconds * 1_000);
  return moment.getHours() === 0 && moment.getMinutes() === 0 ? DAY.format(moment) : HOUR.format(moment);
}

function written(seconds: number): string {
  return BOTH.format(seconds * 1_000);
}

/** Lines over time, with the same numbers as a table for whoever cannot see or point at them. */
export function Chart({ title, times, series, write, wide }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const theme = useTheme();
  const empty = series.every((each) => each.values.every((value) => value === null || value === 0));

  useEffect(() => {
    const target = place.current;
    if (!target || empty) return;
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--faint"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1, size: 4 },
      font: `12px ${style.fontFamily || "system-ui"}`,
    };
    const step = (times[1] ?? 0) - (times[0] ?? 0);
    const plot = new uPlot(
      {
        width: target.clientWidth,
        height: 220,
        padding: [12, 12, 0, 0],
        legend: { live: true, markers: { width: 0, fill: (_plot, index) => colour(series[index - 1]?.colour ?? "--faint") } },
        cursor: { points: { size: 7 }, y: false },
        // Half a step more on both sides, where the bars of the ends reach to.
        scales: { x: { range: (_plot, min, max) => [min - step / 2, max + step / 2] }, y: { range: (_plot, _min, max) => [0, Math.max(1, (max ?? 1) * 1.1)] } },
        axes: [
          { ...axis, size: 34, space: 64, values: (_plot, splits) => splits.map(tickText) },
          { ...axis, ...(wide ? { size: 72, incrs: SPANS } : { size: 44 }), values: (_plot, splits) => splits.map((split) => write(split)) },
        ],
        series: [
          { label: "From", value: (_plot, at) => (at === null ? "" : written(at)) },
          ...series.map((each) => ({
            label: each.label,
            stroke: colour(each.colour),
            width: 2,
            points: { show: each.shape === "points", size: 6, fill: colour(each.colour) },
            value: (_plot: uPlot, value: number | null) => (value === null ? "" : write(value)),
            ...(each.shape === "bars" ? bars(colour(each.colour)) : {}),
          })),
        ],
      },
      [times, ...series.map((each) => each.values)] as uPlot.AlignedData,
      target,
    );
    const resized = new ResizeObserver(() => plot.setSize({ width: target.clientWidth, height: 220 }));
    resized.observe(target);
    return () => {
      resized.disconnect();
      plot.destroy();
    };
  }, [times, series, write, theme, empty, wide]);

  return (
    <figure class="card chart">
      <figcaption>{title}</figcaption>
      {empty ? (
        <p class="faint chart-none">Nothing in this time.</p>
      ) : (
        <>
          <div ref={place} class="chart-place" role="img" aria-label={`${title}; the table below has the numbers`} />
          <details>
            <summary>Numbers</summary>
            <div class="scroll" tabIndex={0} role="region" aria-label={`${title}, numbers`}>
              <table class="numbers">
                <thead>
                  <tr>
                    <th scope="col">From</th>
                    {series.map((each) => (
                      <th key={each.label} scope="col">
                        {each.label}
                      </th>
                    ))}
                  </tr>
                </thead>
                <tbody>
                  {times.map((time, index) => (
                    <tr key={time}>
                      <th scope="row">{written(time)}</th>
                      {series.map((each) => {
                        const value = each.values[index] ?? null;
                        return <td key={each.label}>{value === null ? "–" : write(value)}</td>;
                      })}
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </details>
        </>
      )}
    </figure>
  );
}

/** Changes with the system's dark or light setting: a canvas does not follow style sheets by itself. */
function useTheme(): string {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const [theme, setTheme] = useState(dark.matches ? "dark" : "light");
  useEffect(() => {
    const changed = () => setTheme(dark.matches ? "dark" : "light");
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  return theme;
}
