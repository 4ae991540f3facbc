/** The State Tracking API, typed from its own OpenAPI document (`schema.ts` is generated). */
import createClient, { type Client, type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type Session = components["schemas"]["Session"];
export type Task = components["schemas"]["Task"];
export type Machine = components["schemas"]["Machine"];
export type SessionHealth = components["schemas"]["SessionHealth"];
export type StalledSession = components["schemas"]["StalledSession"];

export type CreateSession = components["schemas"]["CreateSession"];
export type CreateTask = components["schemas"]["CreateTask"];
export type PatchSession = components["schemas"]["PatchSession"];
export type PatchTask = components["schemas"]["PatchTask"];

/** The error body of PRD 5.2, as far as it is used here. */
interface ErrorBody {
  readonly message?: string;
  readonly existing_session_id?: string | null;
  readonly recovered_by?: string | null;
  readonly errors?: readonly { readonly field: string; readonly message: string }[];
}

/**
 * - `unreachable`: no answer came.
 * - `unauthorized`: the key is missing, malformed or wrong.
 * - `unavailable`: an answer that asks to try again: a rate limit, a database that is away, a timeout.
 * - `refused`: an answer that the same request will get again.
 */
export type ErrorKind = "unreachable" | "unauthorized" | "unavailable" | "refused";

export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    readonly kind: ErrorKind,
    message: string,
    readonly status?: number,
    private readonly body: ErrorBody = {},
    readonly retryAfterMs?: number,
    /** Whether the request can have reached the server although no good answer came. */
    readonly mayHaveHappened = false,
  ) {
    super(message);
  }

  static from(error: unknown): ApiError {
    return error instanceof ApiError ? error : unreachable(error);
  }

  /** Whether the same request may get a better answer later. */
  get isTemporary(): boolean {
    return this.kind === "unreachable" || this.kind === "unavailable";
  }

  get existingSessionId(): string | undefined {
    return this.body.existing_session_id ?? undefined;
  }

  get recoveredBy(): string | undefined {
    return this.body.recovered_by ?? undefined;
  }
}

export interface Connection {
  readonly url: string;
  readonly timeoutMs: number;
  /** Asked for at every request: it may change while the extension runs. */
  key(): Promise<string | undefined>;
}

interface Answer<T> {
  readonly data?: T;
  readonly error?: unknown;
  readonly response: Response;
}

/** The largest page that the API gives of sessions and machines, and of tasks. */
const PAGE = 100;
const TASK_PAGE = 200;

export class Api {
  private readonly client: Client<paths>;

  constructor(readonly connection: Connection) {
    this.client = createClient<paths>({ baseUrl: connection.url.replace(/\/+$/, ""), fetch: this.fetch });
    this.client.use(this.authorization);
  }

  createSession(body: CreateSession): Promise<Session> {
    return this.ask(this.client.POST("/api/sessions", { body }));
  }

  session(session_id: string): Promise<Session> {
    return this.ask(this.client.GET("/api/sessions/{session_id}", { params: { path: { session_id } } }));
  }

  /** The newest sessions, at most a hundred: what a person can look through. */
  async sessions(query: { project_id?: string; machine_id?: string; status?: Session["status"] }): Promise<Session[]> {
    const page = await this.ask(this.client.GET("/api/sessions", { params: { query: { ...query, limit: PAGE } } }));
    return page.sessions;
  }

  async stalledSessions(): Promise<StalledSession[]> {
    return (await this.ask(this.client.GET("/api/sessions/stalled"))).stalled_sessions;
  }

  health(session_id: string): Promise<SessionHealth> {
    return this.ask(this.client.GET("/api/sessions/{session_id}/health", { params: { path: { session_id } } }));
  }

  patchSession(session_id: string, body: PatchSession): Promise<Session> {
    return this.ask(this.client.PATCH("/api/sessions/{session_id}", { params: { path: { session_id } }, body }));
  }

  heartbeat(session_id: string, current_task_id: string | null): Promise<Session> {
    return this.ask(
      this.client.POST("/api/sessions/{session_id}/heartbeat", {
        params: { path: { session_id } },
        body: { current_task_id },
      }),
    );
  }

  markFailed(session_id: string, error_message: string, metadata: Record<string, unknown> = {}): Promise<Session> {
    return this.ask(
      this.client.POST("/api/sessions/{session_id}/mark-failed", {
        params: { path: { session_id } },
        body: { error_message, metadata },
      }),
    );
  }

  markStalled(session_id: string): Promise<Session> {
    return this.ask(this.client.POST("/api/sessions/{session_id}/mark-stalled", { params: { path: { session_id } } }));
  }

  recover(session_id: string, new_machine_id: string): Promise<Session> {
    return this.ask(
      this.client.POST("/api/sessions/{session_id}/recover", {
        params: { path: { session_id } },
        body: { new_machine_id },
      }),
    );
  }

  createTask(body: CreateTask): Promise<Task> {
    return this.ask(this.client.POST("/api/tasks", { body }));
  }

  task(task_id: string): Promise<Task> {
    return this.ask(this.client.GET("/api/tasks/{task_id}", { params: { path: { task_id } } }));
  }

  patchTask(task_id: string, body: PatchTask): Promise<Task> {
    return this.ask(this.client.PATCH("/api/tasks/{task_id}", { params: { path: { task_id } }, body }));
  }

  /** Every task of a session. */
  async tasks(session_id: string): Promise<Task[]> {
    const tasks: Task[] = [];
    for (;;) {
      const query = { session_id, limit: TASK_PAGE, offset: tasks.length };
      const page = await this.ask(this.client.GET("/api/tasks", { params: { query } }));
      tasks.push(...page.tasks);
      if (page.tasks.length === 0 || tasks.length >= page.total) {
        return tasks;
      }
    }
  }

  async machines(): Promise<Machine[]> {
    return (await this.ask(this.client.GET("/api/machines", { params: { query: { limit: PAGE } } }))).machines;
  }

  machineHeartbeat(machine_id: string): Promise<Machine> {
    return this.ask(this.client.POST("/api/machines/{machine_id}/heartbeat", { params: { path: { machine_id } } }));
  }

  registerMachine(machine_id: string, hostname: string, metadata: Record<string, unknown>): Promise<Machine> {
    return this.ask(this.client.POST("/api/machines", { body: { machine_id, hostname, docker_slots: [], metadata } }));
  }

  private async ask<T>(answer: Promise<Answer<T>>): Promise<T> {
    const { data, error, response } = await answer.catch((cause: unknown) => {
      throw ApiError.from(cause);
    });
    if (response.ok && data !== undefined) {
      return data;
    }
    throw fromAnswer(response, error);
  }

  private readonly fetch = async (request: Request): Promise<Response> => {
    const { timeoutMs, url } = this.connection;
    const response = await fetch(request, { signal: AbortSignal.timeout(timeoutMs), redirect: "manual" }).catch(
      (error: unknown) => {
        throw unreachable(error, url, timeoutMs);
      },
    );
    // Not followed: fetch would take the key along, to whatever host the answer names.
    if (response.type === "opaqueredirect" || (response.status >= 300 && response.status < 400)) {
      const to = response.headers.get("Location");
      const where = to === null ? "elsewhere" : `to ${to}`;
      throw new ApiError("unreachable", `${url} redirects ${where}: set the API's own address`, response.status);
    }
    return response;
  };

  private readonly authorization: Middleware = {
    onRequest: async ({ request }) => {
      const key = await this.connection.key();
      if (key === undefined) {
        throw new ApiError("unauthorized", "no API key is set");
      }
      request.headers.set("X-API-Key", key);
      return request;
    },
  };
}

function fromAnswer(response: Response, error: unknown): ApiError {
  const { status } = response;
  const body: ErrorBody = typeof error === "object" && error !== null ? error : {};
  const fields = (body.errors ?? []).map((entry) => `${entry.field}: ${entry.message}`).join("; ");
  const message = [body.message ?? `HTTP ${String(status)} ${response.statusText}`.trim(), fields]
    .filter((part) => part !== "")
    .join(" — ");
  if (status === 401) {
    return new ApiError("unauthorized", message, status, body);
  }
  if (status === 429 || status >= 500) {
    return new ApiError("unavailable", message, status, body, retryAfter(response), status !== 429);
  }
  return new ApiError("refused", message, status, body);
}

/** Retry-After in seconds (RFC 9110, section 10.2.3); its date form is left to the ordinary backoff. */
function retryAfter(response: Response): number | undefined {
  const seconds = Number(response.headers.get("Retry-After") ?? Number.NaN);
  return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1_000 : undefined;
}

function unreachable(error: unknown, url?: string, timeoutMs?: number): ApiError {
  const where = url ?? "the API";
  if (error instanceof Error && error.name === "TimeoutError") {
    const seconds = String((timeoutMs ?? 0) / 1_000);
    return new ApiError("unreachable", `${where} gave no answer within ${seconds} s`, undefined, {}, undefined, true);
  }
  const cause = error instanceof Error ? (error.cause ?? error) : error;
  const code = typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : undefined;
  const reason =
    code === "ECONNREFUSED" ? "connection refused" : cause instanceof Error ? cause.message : String(cause);
  const neverArrived = code === "ECONNREFUSED" || code === "ENOTFOUND";
  return new ApiError(
    "unreachable",
    `${where} cannot be reached (${reason || (code ?? "unknown")})`,
    undefined,
    {},
    undefined,
    !neverArrived,
  );
}
