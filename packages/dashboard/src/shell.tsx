import type { ComponentType } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { announcement } from "./announce";
import { seenSince, useNow } from "./clock";
import { age, clock, span } from "./format";
import { forget, isKey, keep, key, refusal } from "./key";
import { Overview } from "./overview";
import { Empty, Loading } from "./parts";
import { connection } from "./poll";
import { decoded, Link, useAddress } from "./route";
import { useStore } from "./store";

const SESSION = /^\/dashboard\/sessions\/([^/]+)$/;

export function Shell() {
  const allowed = useStore(key) !== null;
  const path = useAddress().path.replace(/\/+$/, "");
  const main = useRef<HTMLElement>(null);
  const before = useRef(path);
  useEffect(() => {
    // What was followed is gone with its view; whoever uses the keyboard goes on at the top of the new one.
    if (before.current !== path) main.current?.focus({ preventScroll: true });
    before.current = path;
  }, [path]);
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to content
      </a>
      <header class="bar">
        <Link to="/dashboard" class="brand">
          <svg viewBox="0 0 32 32" aria-hidden="true">
            <rect width="32" height="32" rx="8" />
            <path d="M5 17h5l3-8 5 15 3-7h6" />
          </svg>
          <span>Claude Projects</span>
        </Link>
        {allowed && (
          <>
            <nav aria-label="Views">
              <Tab to="/dashboard" path={path} label="Sessions" also={SESSION} />
              <Tab to="/dashboard/machines" path={path} label="Machines" />
              <Tab to="/dashboard/trends" path={path} label="Trends" />
            </nav>
            <Pulse />
            <button type="button" class="quiet" onClick={() => forget()}>
              Forget key
            </button>
          </>
        )}
      </header>
      {allowed && <Trouble />}
      <main id="main" class="page" tabIndex={-1} ref={main}>
        {allowed ? <View path={path} /> : <AskForKey />}
      </main>
      <Announcer />
    </>
  );
}

function skip(event: MouseEvent): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function Tab({ to, path, label, also }: { to: string; path: string; label: string; also?: RegExp }) {
  const here = path === to || also?.test(path);
  return (
    <Link to={to} aria-current={here ? "page" : undefined}>
      {label}
    </Link>
  );
}

function View({ path }: { path: string }) {
  const session = SESSION.exec(path)?.[1];
  if (session !== undefined) return <Later load={sessionPage} id={decoded(session)} key={session} />;
  if (path === "/dashboard") return <Overview />;
  if (path === "/dashboard/machines") return <Later load={machinesPage} />;
  if (path === "/dashboard/trends") return <Later load={trendsPage} />;
  return (
    <Empty title="There is no such page">
      <Link to="/dashboard">All sessions</Link>
    </Empty>
  );
}

// What the overview does not need is loaded when it is first looked at.
const sessionPage = async () => (await import("./session")).SessionPage;
const machinesPage = async () => (await import("./machines")).MachinesPage;
const trendsPage = async () => (await import("./trends")).TrendsPage;

function Later<Props extends object>({ load, ...props }: { load: () => Promise<ComponentType<Props>> } & Props) {
  const [Loaded, setLoaded] = useState<ComponentType<Props> | null>(null);
  const [broken, setBroken] = useState(false);
  useEffect(() => {
    let wanted = true;
    setLoaded(null);
    setBroken(false);
    load().then(
      (component) => wanted && setLoaded(() => component),
      () => wanted && setBroken(true),
    );
    return () => {
      wanted = false;
    };
  }, [load]);
  if (broken) {
    return (
      <Empty title="This part of the page could not be loaded">
        <p>The API is away, or it has been updated since this page was opened.</p>
        <button type="button" onClick={() => location.reload()}>
          Load the page again
        </button>
      </Empty>
    );
  }
  return Loaded ? <Loaded {...(props as unknown as Props)} /> : <Loading />;
}

// An answer that is late by this much is missing; the request itself is given ten seconds.
const LATE_MS = 12_000;

/** How old what is shown is, and whether news of it are overdue. */
function useAge(): { old: number | null; overdue: boolean } {
  useNow();
  const { state, answeredAt, dueAt } = useStore(connection);
  const now = Date.now();
  return {
    old: answeredAt === null ? null : now - answeredAt,
    // A tab that has just come back into view asks at once and need not complain.
    overdue: state === "live" && dueAt !== null && now > Math.max(dueAt, seenSince()) + LATE_MS,
  };
}

/** Whether what is shown is live, and how old it is. */
function Pulse() {
  const { old, overdue } = useAge();
  const { state, spared, dueAt, answeredAt } = useStore(connection);
  const fresh = state === "live" && !overdue;
  const every = spared && dueAt !== null && answeredAt !== null ? ` every ${span(dueAt - answeredAt)}` : "";
  return (
    <span
      class={`pulse ${fresh ? "live" : state === "connecting" ? "" : "dead"}`}
      title={every ? "The key has few requests to spare, so this page asks less often." : undefined}
    >
      <i key={answeredAt} aria-hidden="true" />
      {old === null ? "connecting" : fresh ? `live${every}` : `${age(old)} old`}
    </span>
  );
}

/** Says that the API is away, that the key is used up, or that the data is old. */
function Trouble() {
  const { overdue: stale } = useAge();
  const { state, answeredAt, problem, retryAt } = useStore(connection);
  if (!stale && (state === "live" || state === "connecting")) return <div role="status" />;
  const since = answeredAt === null ? "Nothing has been heard from it yet." : `What is shown is from ${clock(answeredAt)}.`;
  const retry = retryAt === null ? "" : ` Next try in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1_000))} s.`;
  const what = stale
    ? "The data is old."
    : state === "limited"
      ? "This key has used up its requests for the moment."
      : state === "away"
        ? `The API is not answering (${problem}).`
        : `The API cannot answer: ${problem}.`;
  return (
    <div role="status" class="trouble">
      <strong>{what}</strong> <span>{since}</span>
      <span aria-hidden="true">{retry}</span>
    </div>
  );
}

function AskForKey() {
  const reason = useStore(refusal);
  const [wrong, setWrong] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  const submit = (event: Event) => {
    event.preventDefault();
    const text = field.current?.value.trim() ?? "";
    if (isKey(text)) keep(text);
    else {
      setWrong(true);
      field.current?.focus();
    }
  };
  const said = wrong ? "That is not a key: a key is a UUID of version 4." : reason;
  return (
    <form class="ask" onSubmit={submit} noValidate>
      <h1>API key</h1>
      <p id="ask-why">
        The dashboard reads the API with your key. It is kept for this tab only and sent to this server only.
      </p>
      <label for="key">Key</label>
      <input
        id="key"
        ref={field}
        type="password"
        autocomplete="off"
        spellcheck={false}
        aria-describedby="ask-why ask-said"
        aria-invalid={wrong}
        placeholder="00000000-0000-4000-8000-000000000000"
      />
      <p id="ask-said" class="said" role="alert">
        {said}
      </p>
      <button type="submit" class="primary">
        Open the dashboard
      </button>
    </form>
  );
}

function Announcer() {
  return (
    <div class="visually-hidden" role="status" aria-live="polite">
      {useStore(announcement)}
    </div>
  );
}
