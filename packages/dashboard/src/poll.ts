import { useCallback, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiError, Away, request, type Budget } from "./api";
import { key } from "./key";
import { store } from "./store";

export const EVERY_MS = 3_000;
const HIDDEN_MS = 60_000;
const LONGEST_RETRY_MS = 15_000;
const WINDOW_MS = 60_000;
/** So many times as long as it would, a page waits for the sake of others before they have run short. */
const SLOWEST = 4;

/** How the page stands with the API, for its header and its clock. */
export interface Connection {
  state: "connecting" | "live" | "away" | "limited" | "failing";
  /** When the last answer came, by this browser's clock. */
  answeredAt: number | null;
  /** When the next question is due, where all goes well. */
  dueAt: number | null;
  /** Whether that is later than it would be if the key had more requests to spare. */
  spared: boolean;
  /** What was said instead of an answer. */
  problem: string | null;
  retryAt: number | null;
}

const NOTHING_YET: Connection = {
  state: "connecting",
  answeredAt: null,
  dueAt: null,
  spared: false,
  problem: null,
  retryAt: null,
};

export const connection = store<Connection>(NOTHING_YET);

// The server's clock minus this browser's. The Date header is cut to the second, so the largest difference
// that was seen is the best one.
let skew: number | null = null;

function learnClock(serverTime: number | null): void {
  if (serverTime === null) return;
  const seen = serverTime - Date.now();
  if (skew === null || seen > skew || skew - seen > 5_000) skew = seen;
}

/** This moment by the server's clock. While the API is away, the moment of its last answer: what is not known
 * must not look like silence of the sessions. */
export function serverNow(): number {
  const { state, answeredAt } = connection.get();
  const moment = state === "live" || state === "connecting" || answeredAt === null ? Date.now() : answeredAt;
  return moment + (skew ?? 0);
}

/** How long to wait so that whoever else uses the key gets through: its orchestrations, and other windows.
 *
 * Where all its users together would need more than half of its requests, this page waits longer, the more so the
 * more they need; and it never takes more than half of what is left.
 */
export function affordable(budget: Budget | null, wanted: number): number {
  if (budget === null) return wanted;
  // A window that has just begun says little yet about how much is asked for.
  const elapsed = Math.max(WINDOW_MS / 4, WINDOW_MS - budget.endsInMs);
  const pace = (budget.limit - budget.remaining) / budget.limit / (elapsed / WINDOW_MS);
  const share = budget.endsInMs / Math.max(1, Math.floor(budget.remaining / 2));
  return Math.max(wanted * Math.min(SLOWEST, Math.max(1, 2 * pace) ** 2), share);
}

/** The last answers, so that the way back to a view is no wait, and is asked for with its ETag. */
interface Seen {
  data: unknown;
  etag: string | null;
  at: number;
}
const seen = new Map<string, Seen>();
const SEEN_VIEWS = 12;
const SEEN_MS = 60_000;

key.watch(() => {
  seen.clear();
  connection.set(NOTHING_YET);
});

function remember(path: string, data: unknown, etag: string | null): void {
  seen.delete(path);
  seen.set(path, { data, etag, at: Date.now() });
  const oldest = seen.keys().next();
  if (seen.size > SEEN_VIEWS && !oldest.done) seen.delete(oldest.value);
}

function remembered(path: string): Seen | null {
  const found = seen.get(path);
  return found && Date.now() - found.at < SEEN_MS ? found : null;
}

export interface Polled<T> {
  data: T | null;
  /** The API's refusal of this very view, such as 404. */
  refused: ApiError | null;
  /** Ask again at once. */
  refresh(): void;
}

/** Asks for `path` every few seconds while the page is visible, once a minute while it is not. */
export function usePoll<T>(path: string, every: number = EVERY_MS): Polled<T> {
  const [view, setView] = useState<{ path: string; data: T | null; refused: ApiError | null }>(() => ({
    path,
    data: (remembered(path)?.data ?? null) as T | null,
    refused: null,
  }));
  const again = useRef<() => void>(() => undefined);

  // Before the view is painted, so that the server works on the answer while the browser paints.
  useLayoutEffect(() => {
    const end = new AbortController();
    const known = remembered(path);
    let data = (known?.data ?? null) as T | null;
    let etag = known?.etag ?? null;
    let timer = 0;
    let failures = 0;
    let running = false;
    let asked = false;
    if (data !== null) setView({ path, data, refused: null });

    const next = (delay: number): number => {
      const wait = document.hidden ? Math.max(delay, HIDDEN_MS) : delay;
      clearTimeout(timer);
      if (!end.signal.aborted) timer = window.setTimeout(ask, wait);
      return Date.now() + wait;
    };
    const ask = async () => {
      if (end.signal.aborted || key.get() === null) return;
      if (running) {
        // What is under way may have been answered before whatever this is asked for.
        asked = true;
        return;
      }
      running = true;
      asked = false;
      clearTimeout(timer);
      try {
        const reply = await request<T>(path, { etag, signal: end.signal });
        failures = 0;
        etag = reply.etag;
        learnClock(reply.serverTime);
        if (reply.data !== null) {
          data = reply.data;
          setView({ path, data, refused: null });
        }
        remember(path, data, etag);
        const wait = affordable(reply.budget, every);
        const dueAt = next(wait);
        connection.set({
          state: "live",
          answeredAt: Date.now(),
          dueAt,
          spared: wait >= 2 * every,
          problem: null,
          retryAt: null,
        });
      } catch (error) {
        if (end.signal.aborted) return;
        failures += 1;
        next(failed(error, failures));
        if (error instanceof ApiError && error.status >= 400 && error.status < 429 && error.status !== 401) {
          etag = null;
          seen.delete(path);
          setView((old) => ({ path, data: old.path === path ? old.data : null, refused: error }));
        }
      } finally {
        running = false;
        if (asked) void ask();
      }
    };
    const woken = () => {
      if (!document.hidden) void ask();
    };

    again.current = () => void ask();
    document.addEventListener("visibilitychange", woken);
    addEventListener("online", woken);
    void ask();
    return () => {
      end.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", woken);
      removeEventListener("online", woken);
    };
  }, [path, every]);

  const refresh = useCallback(() => again.current(), []);
  // What belongs to the address before this one is not shown under this one.
  const current = view.path === path ? view : { data: null, refused: null };
  return { data: current.data, refused: current.refused, refresh };
}

/** Notes what went wrong, and says how long to wait. */
function failed(error: unknown, failures: number): number {
  const backoff = Math.min(LONGEST_RETRY_MS, 1_000 * 2 ** Math.min(failures - 1, 6));
  const before = connection.get();
  if (error instanceof ApiError) {
    if (error.status < 429) {
      const now = Date.now();
      connection.set({ ...NOTHING_YET, state: "live", answeredAt: now, dueAt: now + LONGEST_RETRY_MS });
      return LONGEST_RETRY_MS;
    }
    const delay = Math.max(backoff, error.retryAfterMs ?? 0);
    const state = error.status === 429 ? "limited" : "failing";
    connection.set({ ...before, state, problem: error.message, retryAt: Date.now() + delay });
    return delay;
  }
  const problem = error instanceof Away ? error.message : "unexpected answer";
  connection.set({ ...before, state: "away", problem, retryAt: Date.now() + backoff });
  return backoff;
}
