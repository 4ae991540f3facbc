import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { type Reading, readPlan } from "../../src/plan/plan.js";

const PYTHON = join(import.meta.dirname, "../../../../.venv/bin/python");

function read(text: string): Reading {
  return readPlan("/plans/nightly.toml", text);
}

/** The problems as “line: message”, lines counted from one. */
function problems(text: string): string[] {
  const reading = read(text);
  return "problems" in reading
    ? reading.problems.map(({ span, message }) => `${String(span.start.line + 1)}: ${message}`)
    : [];
}

describe("a plan that can be used", () => {
  test("gets its name from its file, and its tasks the plan's command", () => {
    expect(
      read('project_id = "p"\ncommand = ["claude", "{prompt}"]\n[[tasks]]\nname = "a"\nprompt = "Do it."\n'),
    ).toEqual({
      plan: {
        path: "/plans/nightly.toml",
        projectId: "p",
        name: "nightly",
        tasks: [{ name: "a", prompt: "Do it.", command: ["claude", "{prompt}"] }],
      },
    });
  });

  test("gives a prompt to claude -p where no command is named", () => {
    const reading = read('project_id = "p"\n[[tasks]]\nname = "a"\nprompt = "Do it."\n');
    expect(reading).toMatchObject({ plan: { tasks: [{ command: ["claude", "-p", "--output-format", "json"] }] } });
  });
});

describe("the command line", () => {
  const program = `
import json, sys, tempfile
from pathlib import Path
from claude_projects.plan import PlanError, load
path, verdicts = Path(tempfile.mkdtemp()) / "plan.toml", []
for text in json.load(sys.stdin):
    path.write_text(text, encoding="utf-8", newline="")
    try:
        load(path)
        verdicts.append(True)
    except PlanError:
        verdicts.append(False)
print(json.dumps(verdicts))`;
  const task = 'project_id = "p"\n[[tasks]]\nname = "a"\n';
  const plans = [
    `${task}command = "x"\n`,
    `${task}command = ["x",]\r\n`,
    `${task}command = []\n`,
    `${task}command = 2020-01-01\n`,
    `${task}command = "\\e[0m"\n`,
    `${task}command = "x"\ntimeout_seconds = 1e3\n`,
    `${task}command = "x"\ntimeout_seconds = nan\n`,
    `${task}command = "x"\ntimeout_seconds = 2592001\n`,
    `${task}command = "x"\nname = "b"\n`,
    `${task}command = "x"\nenv.PATH = "x"\n`,
    `${task}prompt = '''\n'''\n`,
    `${task}prompt = "${"é".repeat(24_000)}"\n`,
    `${task}prompt = "${"é".repeat(25_000)}"\n`,
    `${task.replace('"a"', `"${"😀".repeat(200)}"`)}command = "x"\n`,
    `${task.replace('"a"', `"${"😀".repeat(201)}"`)}command = "x"\n`,
    'project_id = "p"\ntasks = [{ name = "a", command = "x" }]\n',
    'project_id = "p"\ntasks = [{ name = "a", command = "x", }]\n',
    'project_id = "p"\ntasks = []\n',
    '\ufeffproject_id = "p"\n',
  ];

  test("takes the same plans, and refuses the same", () => {
    const verdicts: unknown = JSON.parse(
      execFileSync(PYTHON, ["-c", program], { input: JSON.stringify(plans), encoding: "utf8" }),
    );
    expect(plans.map((text) => "plan" in read(text))).toEqual(verdicts);
  });
});

describe("a plan with a mistake is marked at the line of", () => {
  test("text that is no TOML", () => {
    expect(problems('project_id = "p"\nname = \n')).toEqual([expect.stringMatching(/^2: This is not valid TOML/)]);
  });

  test("a misspelt field, without also complaining of the field that it was meant to be", () => {
    expect(problems('project_id = "p"\n[[tasks]]\nname = "a"\npromt = "Do it."\n')).toEqual([
      "4: Task 1: `promt` is not a field of a plan file; check its spelling or remove it.",
    ]);
  });

  test("a task with nothing to do", () => {
    expect(problems('project_id = "p"\n[[tasks]]\nname = "a"\ncommand = "x"\n[[tasks]]\nname = "b"\n')).toEqual([
      "5: Task 2: a task needs a `prompt` or a `command`.",
    ]);
  });

  test("a value of the wrong type, once for a command that may have two", () => {
    expect(problems('project_id = 7\n[[tasks]]\nname = "a"\ncommand = 5\ntimeout_seconds = "1"\n')).toEqual([
      "1: `project_id` must be a text in quotes.",
      "4: Task 1: `command` must be a text in quotes or a list of them.",
      "5: Task 1: `timeout_seconds` must be a number.",
    ]);
  });

  test("a number out of range", () => {
    expect(problems('project_id = "p"\n[[tasks]]\nname = "a"\ncommand = "x"\ntimeout_seconds = 0\n')).toEqual([
      "5: Task 1: `timeout_seconds` must be more than 0.",
    ]);
  });

  test("a name that another task has", () => {
    expect(
      problems('project_id = "p"\n[[tasks]]\nname = "a"\ncommand = "x"\n[[tasks]]\nname = "a"\ncommand = "y"\n'),
    ).toEqual(["6: Tasks 1 and 2 are both named “a”; rename one."]);
  });

  test("nothing, where everything is missing", () => {
    expect(problems("")).toEqual(["1: `project_id` is missing; add it.", "1: `tasks` is missing; add it."]);
  });

  test("an empty command, which is said once", () => {
    expect(problems('project_id = "p"\n[[tasks]]\nname = "a"\ncommand = [""]\n')).toEqual([
      "4: Task 1: `command` must not be empty.",
    ]);
    expect(problems('name = ""\nproject_id = "p"\n[[tasks]]\nname = "a"\ncommand = "x"\n')).toEqual([
      "1: `name` must not be empty.",
    ]);
  });

  test("a prompt that is too long for a task's metadata", () => {
    const long = "x".repeat(50_000);
    expect(problems(`project_id = "p"\n[[tasks]]\nname = "a"\nprompt = "${long}"\n`)).toEqual([
      expect.stringMatching(/^4: The task takes \d+ bytes, more than 49152/),
    ]);
  });
});
