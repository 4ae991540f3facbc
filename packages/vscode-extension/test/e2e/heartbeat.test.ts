/** PRD 4.3.b at its real interval: the only test of the extension that waits for minutes to pass. */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Backend } from "../rig/backend.js";
import { Editor } from "../rig/editor.js";
import { Gates, gatedPlan } from "../rig/plans.js";
import { until } from "../rig/until.js";

let backend: Backend;
let editor: Editor;

beforeAll(async () => {
  backend = await Backend.start();
  editor = await Editor.start({
    settings: { apiUrl: backend.url },
    environment: { CLAUDE_PROJECTS_API_KEY: backend.key },
  });
});

afterAll(async () => {
  await editor.stop();
  await backend.stop();
});

test(
  "4.3.b: in three minutes three heartbeats arrive, 60 s ± 5 s apart, each with the current task",
  { timeout: 300_000 },
  async () => {
    const folder = await editor.folder({ "plan.toml": gatedPlan("beats", "Heartbeats", ["long"]) });
    const window = await editor.open(folder);
    await window.start("Heartbeats");
    const session = await until("the session exists", async () => (await backend.sessionsOf("beats"))[0]);
    const begun = new Date(session.started_at).getTime();

    // The server's own clock: the moment at which each heartbeat was stored.
    const beats: number[] = [];
    const said: (string | null | undefined)[] = [];
    await until(
      "three heartbeats have arrived",
      async () => {
        const { last_heartbeat, current_task_id } = await backend.api().session(session.session_id);
        const at = new Date(last_heartbeat).getTime();
        if (at > begun && at !== beats.at(-1)) {
          beats.push(at);
          said.push(current_task_id);
          // It is the heartbeat that has to bring it back.
          await backend.api().patchSession(session.session_id, { current_task_id: null });
        }
        await delay(500);
        return beats.length === 3;
      },
      220_000,
    );
    const [task] = await backend.tasksOf(session.session_id);
    expect(said).toEqual(beats.map(() => task?.task_id));
    expect(backend.requests("POST", /sessions[^"]*heartbeat/)).toHaveLength(3);
    const intervals = beats.map((at, index) => (at - (beats[index - 1] ?? begun)) / 1_000);
    console.info(`Intervals between heartbeats, seconds: ${intervals.join(", ")}`);
    for (const interval of intervals) {
      expect(interval).toBeGreaterThanOrEqual(55);
      expect(interval).toBeLessThanOrEqual(65);
    }
    new Gates(folder).open("long");
    await until("the session is completed", async () => (await backend.sessionsOf("beats"))[0]?.status === "completed");
  },
);
