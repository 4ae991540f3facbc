import { useEffect, useReducer, useState } from "preact/hooks";
import { connection, serverNow } from "./poll";
import { store } from "./store";

// One timer for everything on the page that shows time going by; it rests while nobody looks.
const ticks = store(0);
let timer = 0;

function beat(): void {
  ticks.set(ticks.get() + 1);
}

let visibleSince = Date.now();

/** Since when this tab has been in view. */
export function seenSince(): number {
  return visibleSince;
}

function run(): void {
  clearInterval(timer);
  if (!document.hidden) {
    visibleSince = Date.now();
    beat();
    timer = window.setInterval(beat, 1_000);
  }
}

document.addEventListener("visibilitychange", run);
run();

/** How many steps of so many milliseconds have gone by, rendering again at the next one only. */
export function useStep(ms: number): number {
  const step = () => Math.floor(serverNow() / ms);
  const [now, setNow] = useState(step);
  useEffect(() => ticks.watch(() => setNow(step())), [ms]);
  return now;
}

/** The server's time, rendering again every second and when the API goes away or comes back. */
export function useNow(): number {
  const [, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => ticks.watch(() => again(0)), []);
  useEffect(() => connection.watch(() => again(0)), []);
  return serverNow();
}
