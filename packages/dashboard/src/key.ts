import { decoded } from "./route";
import { store } from "./store";

// The key lives in this tab's session storage and nowhere else: not in the address, not in a cookie, not in
// storage that outlives the tab.
const PLACE = "claude-projects.key";
const UUID4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;

export const key = store<string | null>(null);
/** Why a key is asked for, where there was one before. */
export const refusal = store<string | null>(null);

export function isKey(text: string): boolean {
  return UUID4.test(text);
}

export function keep(text: string): void {
  sessionStorage.setItem(PLACE, text);
  refusal.set(null);
  key.set(text);
}

export function forget(reason: string | null = null): void {
  sessionStorage.removeItem(PLACE);
  refusal.set(reason);
  key.set(null);
}

/** Takes `#key=…` out of the address bar at once, history entry included, and keeps what it says. */
function takeFromAddress(): void {
  if (!location.hash.startsWith("#key=")) return;
  const said = decoded(location.hash.slice("#key=".length)).trim();
  history.replaceState(history.state, "", location.pathname + location.search);
  if (isKey(said)) keep(said);
  else forget("The link did not carry a whole key.");
}

export function startWithKey(): void {
  key.set(sessionStorage.getItem(PLACE));
  takeFromAddress();
  addEventListener("hashchange", takeFromAddress);
}
