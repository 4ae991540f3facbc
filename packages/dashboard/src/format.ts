const UNITS: readonly [number, string][] = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "min"],
  [1_000, "s"],
];

/** A time span in at most two units: "45 s", "3 min 20 s", "2 h 5 min", "12 d". */
export function span(ms: number): string {
  if (ms < 1_000) return ms < 0 ? "0 s" : `${Math.round(ms)} ms`;
  const index = UNITS.findIndex(([size]) => ms >= size);
  const [size, unit] = UNITS[index] ?? [1_000, "s"];
  const whole = Math.floor(ms / size);
  const finer = UNITS[index + 1];
  if (!finer || whole >= 10) return `${whole} ${unit}`;
  const rest = Math.floor((ms % size) / finer[0]);
  return rest > 0 ? `${whole} ${unit} ${rest} ${finer[1]}` : `${whole} ${unit}`;
}

/** As `span`, in whole seconds at least: for what is counted while somebody looks. */
export function age(ms: number): string {
  return span(Math.floor(Math.max(0, ms) / 1_000) * 1_000 || 0).replace("0 ms", "0 s");
}

const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/** A moment of today by the clock alone, any other with its day. */
export function when(iso: string): string {
  const at = Date.parse(iso);
  const today = DAY.format(Date.now()) === DAY.format(at) && Math.abs(Date.now() - at) < 86_400_000;
  return today ? CLOCK.format(at) : `${DAY.format(at)}, ${CLOCK.format(at)}`;
}

/** A moment in this person's own form and time zone. */
export function moment(iso: string): string {
  return MOMENT.format(Date.parse(iso));
}

export function clock(ms: number): string {
  return CLOCK.format(ms);
}

export function percent(rate: number | null): string {
  if (rate === null) return "–";
  const value = rate * 100;
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(1)}%`;
}

export function spanOr(ms: number | null): string {
  return ms === null ? "–" : span(ms);
}

export function short(id: string): string {
  return id.slice(0, 8);
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString()} ${n === 1 ? one : many}`;
}
