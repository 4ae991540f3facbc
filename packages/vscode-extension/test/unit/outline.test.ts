import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { Session } from "../../src/api/client.js";
import { commandLine } from "../../src/orchestration/command.js";
import {
  GOODBYE,
  digestOf,
  outlineOf,
  planMetadata,
  presenceBehind,
  processMetadata,
  processOf,
} from "../../src/orchestration/outline.js";
import type { TaskDefinition } from "../../src/plan/plan.js";
import { identify, self } from "../../src/processes.js";

const PYTHON = join(import.meta.dirname, "../../../../.venv/bin/python");

function python(program: string, input: unknown): unknown {
  return JSON.parse(execFileSync(PYTHON, ["-c", program], { input: JSON.stringify(input), encoding: "utf8" }));
}

const DEFINITIONS: TaskDefinition[] = [
  { name: "plain", command: "make" },
  { name: 'umlaut ü, emoji 🚀, quote " and \u007f', prompt: "line\nline\t\\", command: ["claude", "-p"] },
  { name: "timed", prompt: "x", command: ["a"], timeout_seconds: 5, github_issue_id: "7" },
];

describe("what the command line reads of a session", () => {
  test("digests are those that it computes", () => {
    const digests = python(
      "import json, sys; from claude_projects.plan import Definition; " +
        "print(json.dumps([Definition.model_validate(d).digest for d in json.load(sys.stdin)]))",
      DEFINITIONS,
    );
    expect(DEFINITIONS.map(digestOf)).toEqual(digests);
  });

  test("this process is described in its words, and it sees that it lives", () => {
    const session = { ...SESSION, metadata: { process: processMetadata(self(), SESSION.session_id) } };
    const presence = python(
      "import json, sys; from claude_projects.models import Session; from claude_projects.process import presence_behind; " +
        "print(json.dumps(presence_behind(Session.model_validate(json.load(sys.stdin))).value))",
      session,
    );
    expect(presence).toBe("alive");
  });
});

describe("what the command line reads of a session that this extension is done with", () => {
  test("nobody is behind it, although the process lives", () => {
    const process = { ...(processMetadata(self(), SESSION.session_id) as object), ...(GOODBYE["process"] as object) };
    const session = { ...SESSION, metadata: { process } };
    expect(presenceBehind(session)).toBe("dead");
    const presence = python(
      "import json, sys; from claude_projects.models import Session; from claude_projects.process import presence_behind; " +
        "print(json.dumps(presence_behind(Session.model_validate(json.load(sys.stdin))).value))",
      session,
    );
    expect(presence).toBe("dead");
  });
});

describe("the plan in a session's metadata", () => {
  const tasks = DEFINITIONS.map((definition, index) => ({
    digest: digestOf(definition),
    definition,
    done: index === 0,
  }));

  test("comes back as it went in", () => {
    const outline = outlineOf({ plan: planMetadata("Nightly", tasks, "s") });
    expect(outline?.name).toBe("Nightly");
    expect(outline?.sessionId).toBe("s");
    expect(outline?.digests).toEqual(tasks.map(({ digest }) => digest));
    expect([...(outline?.done ?? [])]).toEqual([tasks[0]?.digest]);
    expect([...(outline?.definitions.values() ?? [])]).toEqual(DEFINITIONS);
  });

  test("leaves out definitions for which there is no room", () => {
    const long = [{ digest: "d", definition: { name: "n", command: "x".repeat(40_000) }, done: false }];
    expect(planMetadata("Long", long, null)).toMatchObject({ tasks: null, digests: ["d"] });
  });

  test.each([undefined, null, "x", [], { name: 1, digests: [] }, { name: "n", digests: [1] }])(
    "is not there where the metadata holds %j",
    (plan) => {
      expect(outlineOf({ plan })).toBeUndefined();
    },
  );
});

describe("the process behind a session", () => {
  const me = identify(process.pid);

  test("is the one that is meant for it", () => {
    expect(processOf({ ...SESSION, metadata: { process: processMetadata(self(), SESSION.session_id) } })).toEqual(me);
  });

  test("is nobody in a successor that has only inherited the description", () => {
    const inherited = { ...SESSION, recovered_from: "original", metadata: { process: processMetadata(self(), null) } };
    expect(processOf(inherited)).toBeUndefined();
    expect(processOf({ ...SESSION, metadata: { process: processMetadata(self(), "another") } })).toBeUndefined();
  });
});

describe("a prompt", () => {
  test("takes the place of {prompt} in a list, whatever it holds", () => {
    expect(commandLine({ name: "n", prompt: "$(rm -rf /) $&", command: ["claude", "do: {prompt}"] })).toEqual({
      command: ["claude", "do: $(rm -rf /) $&"],
      stdin: "",
    });
  });

  test("never becomes part of a line for the shell", () => {
    expect(commandLine({ name: "n", prompt: "; rm x", command: "claude {prompt}" })).toEqual({
      command: 'claude "$CLAUDE_PROJECTS_PROMPT"',
      stdin: "",
    });
  });

  test("is the standard input of a command that does not ask for it", () => {
    expect(commandLine({ name: "n", prompt: "hello", command: ["cat"] })).toEqual({ command: ["cat"], stdin: "hello" });
  });
});

const SESSION = {
  session_id: "11111111-1111-4111-8111-111111111111",
  project_id: "p",
  machine_id: "m",
  docker_slot: null,
  status: "active",
  last_heartbeat: "2026-01-01T00:00:00.000Z",
  current_task_id: null,
  started_at: "2026-01-01T00:00:00.000Z",
  completed_at: null,
  metadata: {},
  created_at: "2026-01-01T00:00:00.000Z",
  updated_at: "2026-01-01T00:00:00.000Z",
  recovered_from: null,
  recovered_by: null,
} as Session;
