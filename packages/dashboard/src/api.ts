import { forget, key } from "./key";

/** An answer that is not a success, in the API's own words. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly retryAfterMs: number | null,
  ) {
    super(message);
  }
}

/** The API could not be reached, or what answered was not it. */
export class Away extends Error {}

/** What is left of the key's requests in its present window. */
export interface Budget {
  limit: number;
  remaining: number;
  endsInMs: number;
}

export interface Reply<T> {
  /** null: nothing has changed since `etag`. */
  data: T | null;
  etag: string | null;
  budget: Budget | null;
  /** The server's clock at the moment of the answer, to the second; null where it did not say. */
  serverTime: number | null;
}

const TIMEOUT_MS = 10_000;

interface Options {
  method?: "GET" | "POST" | "PATCH";
  body?: unknown;
  etag?: string | null;
  signal?: AbortSignal;
}

/** One request with the key. Throws ApiError or Away; on 401 the key is forgotten. */
export async function request<T>(path: string, options: Options = {}): Promise<Reply<T>> {
  const used = key.get();
  const headers = new Headers({ Accept: "application/json", "X-API-Key": used ?? "" });
  if (options.etag) headers.set("If-None-Match", options.etag);
  if (options.body !== undefined) headers.set("Content-Type", "application/json");
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  let response: Response;
  let text: string;
  try {
    response = await fetch(path, {
      method: options.method ?? "GET",
      headers,
      body: options.body === undefined ? null : JSON.stringify(options.body),
      // The page compares ETags itself, so that nothing of the data is left on disk.
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: options.signal ? AbortSignal.any([options.signal, timeout]) : timeout,
    });
    text = await response.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Away(timeout.aborted ? "no answer within 10 seconds" : "no connection");
  }
  const data = parsed(text);
  if (response.ok || response.status === 304) {
    if (response.ok && data === undefined) throw new Away("something else answered");
    return {
      data: response.status === 304 ? null : (data as T),
      etag: response.headers.get("ETag"),
      budget: budget(response.headers),
      serverTime: serverTime(response.headers),
    };
  }
  const said = messageOf(data) ?? `The API answered ${response.status}`;
  if (response.status === 401) {
    if (key.get() === used) forget(`${said}.`);
    throw new ApiError(401, said, null);
  }
  throw new ApiError(response.status, said, retryAfter(response.headers));
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function messageOf(body: unknown): string | null {
  if (typeof body !== "object" || body === null || !("message" in body)) return null;
  const errors = "errors" in body && Array.isArray(body.errors) ? body.errors : [];
  const fields = errors.map((entry: { field: string; message: string }) => `${entry.field} ${entry.message}`);
  return fields.length > 0 ? fields.join("; ") : String(body.message);
}

function budget(headers: Headers): Budget | null {
  const limit = Number(headers.get("X-RateLimit-Limit") ?? Number.NaN);
  const remaining = Number(headers.get("X-RateLimit-Remaining") ?? Number.NaN);
  const resets = Number(headers.get("X-RateLimit-Reset") ?? Number.NaN);
  if (![limit, remaining, resets].every(Number.isFinite)) return null;
  return { limit, remaining, endsInMs: Math.max(0, resets * 1000 - (serverTime(headers) ?? Date.now())) };
}

function serverTime(headers: Headers): number | null {
  const said = Date.parse(headers.get("Date") ?? "");
  return Number.isNaN(said) ? null : said;
}

function retryAfter(headers: Headers): number | null {
  const seconds = Number(headers.get("Retry-After") ?? Number.NaN);
  return Number.isFinite(seconds) ? seconds * 1000 : null;
}
