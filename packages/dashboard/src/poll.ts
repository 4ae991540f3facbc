import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, Away, request, type Budget } from "./api";
import { key } from "./key";
import { store } from "./store";

export const EVERY_MS = 3_000;
const HIDDEN_MS = 60_000;
const LONGEST_RETRY_MS = 15_000;

/** How the page stands with the API, for its header and its clock. */
export interface Connection {
  state: "connecting" | "live" | "away" | "limited" | "failing";
  /** When the last answer came, by this browser's clock. */
  answeredAt: number | null;
  /** What was said instead of an answer. */
  problem: string | null;
  retryAt: number | null;
}

export const connection = store<Connection>({ state: "connecting", answeredAt: null, problem: null, retryAt: null });

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

/** Never more than half of what is left to the key, so that whoever else uses it gets through. */
function affordable(budget: Budget | null, wanted: number): number {
  if (budget === null) return wanted;
  return Math.max(wanted, budget.endsInMs / Math.max(1, Math.floor(budget.remaining / 2)));
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
  const [view, setView] = useState<{ path: string; data: T | null; refused: ApiError | null }>({
    path,
    data: null,
    refused: null,
  });
  const again = useRef<() => void>(() => undefined);

  useEffect(() => {
    const end = new AbortController();
    let timer = 0;
    let etag: string | null = null;
    let failures = 0;
    let running = false;

    const next = (delay: number) => {
      if (end.signal.aborted) return;
      clearTimeout(timer);
      timer = window.setTimeout(ask, document.hidden ? Math.max(delay, HIDDEN_MS) : delay);
    };
    const ask = async () => {
      if (running || end.signal.aborted || key.get() === null) return;
      running = true;
      clearTimeout(timer);
      try {
        const reply = await request<T>(path, { etag, signal: end.signal });
        failures = 0;
        etag = reply.etag;
        learnClock(reply.serverTime);
        connection.set({ state: "live", answeredAt: Date.now(), problem: null, retryAt: null });
        const { data } = reply;
        if (data !== null) setView({ path, data, refused: null });
        next(affordable(reply.budget, every));
      } catch (error) {
        if (end.signal.aborted) return;
        failures += 1;
        next(failed(error, failures));
        if (error instanceof ApiError && error.status >= 400 && error.status < 429 && error.status !== 401) {
          etag = null;
          setView((old) => ({ path, data: old.path === path ? old.data : null, refused: error }));
        }
      } finally {
        running = false;
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
  const { answeredAt } = connection.get();
  if (error instanceof ApiError) {
    if (error.status < 429) {
      connection.set({ state: "live", answeredAt: Date.now(), problem: null, retryAt: null });
      return LONGEST_RETRY_MS;
    }
    const delay = Math.max(backoff, error.retryAfterMs ?? 0);
    const state = error.status === 429 ? "limited" : "failing";
    connection.set({ state, answeredAt, problem: error.message, retryAt: Date.now() + delay });
    return delay;
  }
  const problem = error instanceof Away ? error.message : "unexpected answer";
  connection.set({ state: "away", answeredAt, problem, retryAt: Date.now() + backoff });
  return backoff;
}
