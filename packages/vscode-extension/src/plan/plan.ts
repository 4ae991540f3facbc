/**
 * Plan files, the same as those of `claude-projects run`: TOML, checked against the JSON Schema that the command line
 * publishes, with every complaint at the place it is about.
 */
import { basename, extname } from "node:path";
import { TomlDocument, TomlError, type Path, type Span } from "./toml.js";
import validate, { type SchemaError } from "./validator.js";

export type Command = string | readonly string[];

/** A task as it is carried out, complete in itself; the names are those of the command line's `Definition`. */
export interface TaskDefinition {
  readonly name: string;
  readonly prompt?: string;
  readonly command: Command;
  readonly github_issue_id?: string;
  readonly timeout_seconds?: number;
}

export interface Plan {
  readonly path: string;
  readonly projectId: string;
  readonly name: string;
  readonly tasks: readonly TaskDefinition[];
}

export interface Problem {
  readonly message: string;
  readonly span: Span;
}

export type Reading = { readonly plan: Plan } | { readonly problems: readonly Problem[] };

/** What the schema's `default` says; TOML has no way to carry it. */
const DEFAULT_COMMAND = ["claude", "-p", "--output-format", "json"];
/** Of JSON; the API takes 64 KiB of metadata, and there is more in it. */
const LARGEST_DEFINITION = 48 * 1024;

interface PlanDocument {
  readonly project_id: string;
  readonly name?: string;
  readonly command?: Command;
  readonly tasks: readonly (Omit<TaskDefinition, "command"> & { readonly command?: Command })[];
}

export function readPlan(path: string, text: string): Reading {
  let toml: TomlDocument;
  try {
    toml = new TomlDocument(text);
  } catch (error) {
    if (error instanceof TomlError) {
      const place = { line: error.line, column: error.column };
      return {
        problems: [{ message: `This is not valid TOML: ${error.message}`, span: { start: place, end: place } }],
      };
    }
    throw error;
  }
  if (!validate(toml.value)) {
    return { problems: complaints(validate.errors ?? [], toml) };
  }
  const document = toml.value as PlanDocument;
  const problems = [...duplicates(document, toml), ...oversized(document, toml)];
  if (problems.length > 0) {
    return { problems };
  }
  return {
    plan: {
      path,
      projectId: document.project_id,
      name: document.name ?? basename(path, extname(path)),
      tasks: document.tasks.map((task) => define(task, document)),
    },
  };
}

function define(task: PlanDocument["tasks"][number], document: PlanDocument): TaskDefinition {
  return { ...task, command: task.command ?? document.command ?? DEFAULT_COMMAND };
}

function duplicates(document: PlanDocument, toml: TomlDocument): Problem[] {
  const first = new Map<string, number>();
  return document.tasks.flatMap(({ name }, index) => {
    const earlier = first.get(name);
    if (earlier === undefined) {
      first.set(name, index);
      return [];
    }
    const message = `Tasks ${String(earlier + 1)} and ${String(index + 1)} are both named “${name}”; rename one.`;
    return [{ message, span: toml.locate(["tasks", index, "name"]) }];
  });
}

function oversized(document: PlanDocument, toml: TomlDocument): Problem[] {
  return document.tasks.flatMap((task, index) => {
    const size = Buffer.byteLength(JSON.stringify(define(task, document)));
    if (size <= LARGEST_DEFINITION) {
      return [];
    }
    const message =
      `The task takes ${String(size)} bytes, more than ${String(LARGEST_DEFINITION)}; ` +
      "put the long text into a file and let the prompt refer to it.";
    return [{ message, span: toml.locate(["tasks", index, "prompt"]) }];
  });
}

/** The schema's errors as sentences, one for each place: an `anyOf` reports each of its branches too. */
function complaints(errors: readonly SchemaError[], toml: TomlDocument): Problem[] {
  const problems = new Map<string, Problem>();
  const misspelt = new Set(
    errors.filter(({ keyword }) => keyword === "additionalProperties").map(({ instancePath }) => instancePath),
  );
  // Of a command, each of the two forms complains: that it is empty says more than that it is not the other form.
  for (const error of [...errors].sort((a, b) => Number(isAboutType(a)) - Number(isAboutType(b)))) {
    if (misspelt.has(error.instancePath) && (error.keyword === "required" || error.keyword === "anyOf")) {
      // What is missing is most likely what is misspelt.
      continue;
    }
    const path = pathOf(error.instancePath, toml.value);
    const [message, at] = sentence(error, path);
    if (message === undefined) {
      continue;
    }
    const subject = path[0] === "tasks" && typeof path[1] === "number" ? `Task ${String(path[1] + 1)}: ` : "";
    const text = subject + message;
    const command = at.indexOf("command");
    const key = command < 0 ? JSON.stringify([at, message]) : JSON.stringify(at.slice(0, command + 1));
    if (!problems.has(key)) {
      problems.set(key, { message: text.charAt(0).toUpperCase() + text.slice(1), span: toml.locate(at) });
    }
  }
  return [...problems.values()].sort((a, b) => a.span.start.line - b.span.start.line);
}

function isAboutType(error: SchemaError): boolean {
  return error.keyword === "type" || error.keyword === "anyOf";
}

function sentence(error: SchemaError, path: Path): readonly [message: string | undefined, at: Path] {
  const name = [...path].reverse().find((part) => typeof part === "string");
  const field = name === undefined ? "the plan" : `\`${name}\``;
  const params = error.params as Readonly<Record<string, string | number>>;
  switch (error.keyword) {
    case "required":
      // The branches of “a prompt or a command”: said once, by the `anyOf` itself.
      if (error.schemaPath.includes("/anyOf/")) {
        return [undefined, path];
      }
      return [`\`${String(params["missingProperty"])}\` is missing; add it.`, path];
    case "additionalProperties": {
      const extra = String(params["additionalProperty"]);
      return [`\`${extra}\` is not a field of a plan file; check its spelling or remove it.`, [...path, extra]];
    }
    case "anyOf":
      return path.includes("command")
        ? ["`command` must be a text in quotes or a list of them.", path]
        : ["a task needs a `prompt` or a `command`.", path];
    case "type":
      if (path.includes("command")) {
        return ["`command` must be a text in quotes or a list of them.", path];
      }
      return [`${field} must be ${typeWord(String(params["type"]))}.`, path];
    case "minLength":
    case "pattern":
      return [`${field} must not be empty.`, path];
    case "maxLength":
      return [`${field} must have at most ${String(params["limit"])} characters.`, path];
    case "minItems":
      return [name === "tasks" ? "`tasks` needs at least one [[tasks]] table." : `${field} must not be empty.`, path];
    case "maxItems":
      return [`${field} must have at most ${String(params["limit"])} entries.`, path];
    case "exclusiveMinimum":
      return [`${field} must be more than ${String(params["limit"])}.`, path];
    case "maximum":
      return [`${field} must be at most ${String(params["limit"])}.`, path];
    default:
      return [`${field} ${error.message ?? "is wrong"}.`, path];
  }
}

function typeWord(type: string): string {
  return (
    { string: "a text in quotes", number: "a number", integer: "a whole number", array: "a list", object: "a table" }[
      type
    ] ?? type
  );
}

/** A JSON pointer (RFC 6901) as a path; its numbers are indexes where the value there is a list. */
function pathOf(pointer: string, root: unknown): Path {
  let value = root;
  return pointer
    .split("/")
    .slice(1)
    .map((escaped) => {
      const part = escaped.replaceAll("~1", "/").replaceAll("~0", "~");
      const isList = Array.isArray(value);
      value = typeof value === "object" && value !== null ? (value as Record<string, unknown>)[part] : undefined;
      return isList ? Number(part) : part;
    });
}
