/** What tasks have written, kept where it outlives the window: somebody may ask for it after a night or a crash. */
import { readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";

/** As long as the API keeps sessions unless it is set up otherwise. */
export const KEPT_MS = 30 * 24 * 3_600_000;

export function outputFile(directory: string, runId: string, taskKey: string): string {
  return join(directory, `${runId}-${taskKey}.log`);
}

/** Removes what is too old to be asked for. */
export function pruneOutput(directory: string, now = Date.now()): void {
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch {
    // Nothing has been written yet.
    return;
  }
  for (const path of names.map((name) => join(directory, name))) {
    try {
      if (now - statSync(path).mtimeMs > KEPT_MS) {
        rmSync(path);
      }
    } catch {
      // Another window was faster.
    }
  }
}
