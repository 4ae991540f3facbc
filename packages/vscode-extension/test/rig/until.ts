/** Waiting for events: asks again and again until it is so, and says what it was waiting for where it never is. */
import { setTimeout as delay } from "node:timers/promises";

export async function until<T>(
  what: string,
  condition: () => T | Promise<T>,
  patienceMs = 60_000,
  everyMs = 50,
): Promise<NonNullable<Exclude<T, false>>> {
  const deadline = Date.now() + patienceMs;
  let trouble: unknown;
  for (;;) {
    try {
      const result = await condition();
      if (result !== false && result !== undefined && result !== null) {
        return result as NonNullable<Exclude<T, false>>;
      }
      trouble = undefined;
    } catch (error) {
      trouble = error;
    }
    if (Date.now() > deadline) {
      throw new Error(`waited ${String(patienceMs / 1_000)} s in vain until ${what}`, { cause: trouble });
    }
    await delay(everyMs);
  }
}
