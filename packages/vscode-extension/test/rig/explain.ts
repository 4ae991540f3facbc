/** What a failed test leaves behind for people: a picture of the window, and the end of the extension's log. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Editor } from "./editor.js";
import type { Window } from "./window.js";

const DIRECTORY = join(import.meta.dirname, "../../dist/failures");

export async function explain(window: Window, editor: Editor, test: string): Promise<void> {
  await mkdir(DIRECTORY, { recursive: true });
  const picture = join(DIRECTORY, `${test.slice(0, 60).replaceAll(/\W+/g, "-")}.png`);
  await window.screenshot(picture).catch(() => undefined);
  console.error(`${test}\n${picture}\n${(await editor.log()).slice(-4_000)}`);
}
