import { describe, expect, test } from "vitest";
import { type Reading, readPlan } from "../../src/plan/plan.js";

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

  test("a prompt that is too long for a task's metadata", () => {
    const long = "x".repeat(50_000);
    expect(problems(`project_id = "p"\n[[tasks]]\nname = "a"\nprompt = "${long}"\n`)).toEqual([
      expect.stringMatching(/^4: The task takes \d+ bytes, more than 49152/),
    ]);
  });
});
