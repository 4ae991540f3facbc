"""Plan files: what is to be done, in which order. TOML, checked by the models below.

``plan.schema.json`` beside this file is the JSON Schema of the same models, for editors; a test keeps the
two together.
"""

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from claude_projects.errors import ClaudeProjectsError

DEFAULT_COMMAND = ("claude", "-p", "--output-format", "json")
PROMPT_PLACEHOLDER = "{prompt}"
_LARGEST_DEFINITION = 48 * 1024  # of JSON; the API takes 64 KiB of metadata, and there is more in it

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Command = Text | Annotated[list[Text], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class PlanTask(_Strict):
    """One task: a prompt for the plan's command, or a command of its own."""

    name: Annotated[Text, Field(max_length=200)] = Field(
        description="What people call it; unique within the plan."
    )
    prompt: Text | None = Field(
        default=None,
        description="What the plan's command is asked to do. It replaces {prompt} in the command; without "
        "one, it is the command's standard input.",
    )
    command: Command | None = Field(
        default=None,
        description="What is run instead of the plan's command. A list is run as it is; a string is run by "
        "/bin/sh -c.",
    )
    github_issue_id: Text | None = Field(
        default=None, description="The GitHub issue that the task belongs to."
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=30 * 86400)] | None = Field(
        default=None,
        description="After so many seconds the task is ended and has failed. Without it, it may take as long "
        "as it wants.",
    )

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        if self.prompt is None and self.command is None:
            raise ValueError("a task needs a `prompt` or a `command`")
        return self


class Plan(_Strict):
    """A plan: tasks that are done one after another."""

    project_id: Text = Field(description="The project that the sessions of this plan belong to.")
    name: Text | None = Field(
        default=None,
        description="What people call the plan; the file's name without its ending by default.",
    )
    command: Command = Field(
        default_factory=lambda: list(DEFAULT_COMMAND),
        description="What a prompt is given to. A list is run as it is; a string is run by /bin/sh -c.",
    )
    tasks: Annotated[list[PlanTask], Field(min_length=1, max_length=500)] = Field(
        description="What is to be done, in this order."
    )

    @model_validator(mode="after")
    def _tells_tasks_apart(self) -> Self:
        first: dict[str, int] = {}
        for number, task in enumerate(self.tasks, 1):
            if task.name in first:
                raise ValueError(
                    f"tasks {first[task.name]} and {number} are both named {task.name!r}; rename one"
                )
            first[task.name] = number
        return self


class Definition(BaseModel):
    """A task as it is carried out, complete in itself; its metadata holds it, for any successor."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    name: str
    prompt: str | None = None
    command: str | list[str]
    github_issue_id: str | None = None
    timeout_seconds: float | None = None

    @property
    def digest(self) -> str:
        """The same for tasks that ask for the same work; the time that they are given does not count."""
        # The same bytes that JSON.stringify gives, so that programs in other languages find the same digest.
        work = json.dumps([self.name, self.prompt, self.command], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(work.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def to_metadata(self) -> dict[str, Any]:
        """The definition as JSON, without what is not set."""
        return self.model_dump(mode="json", exclude_none=True)


class Program(BaseModel):
    """A plan that is ready to be carried out: every task has its command."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    project_id: str
    name: str
    tasks: tuple[Definition, ...]

    @property
    def digest(self) -> str:
        """Changes with the plan."""
        return hashlib.sha256("".join(task.digest for task in self.tasks).encode()).hexdigest()[:16]


class PlanError(ClaudeProjectsError):
    """A plan file that cannot be used; the message says where and what to do."""


def load(path: Path) -> Program:
    """Read a plan file. Raises PlanError, with one line for each thing that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: is not valid TOML: {error}") from None
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        lines = [f"{path}:{line}: {what}" for line, what in _complaints(error, document, text)]
        raise PlanError("\n".join(lines)) from None
    return _program(plan, path)


def _program(plan: Plan, path: Path) -> Program:
    tasks: list[Definition] = []
    for number, task in enumerate(plan.tasks, 1):
        definition = Definition(
            name=task.name,
            prompt=task.prompt,
            command=plan.command if task.command is None else task.command,
            github_issue_id=task.github_issue_id,
            timeout_seconds=task.timeout_seconds,
        )
        texts = [definition.name, definition.prompt or "", *_words(definition.command)]
        if any("\0" in text for text in texts):
            raise PlanError(
                f"{path}: task {number} ({task.name!r}) holds a NUL character, which no program takes"
            )
        # In UTF-8, as the API counts.
        size = len(json.dumps(definition.to_metadata(), ensure_ascii=False, separators=(",", ":")).encode())
        if size > _LARGEST_DEFINITION:
            raise PlanError(
                f"{path}: task {number} ({task.name!r}) takes {size} bytes, more than {_LARGEST_DEFINITION}; "
                "put the long text into a file and let the prompt refer to it"
            )
        tasks.append(definition)
    return Program(project_id=plan.project_id, name=plan.name or path.stem, tasks=tuple(tasks))


def _words(command: str | list[str]) -> list[str]:
    return [command] if isinstance(command, str) else command


def json_schema() -> dict[str, Any]:
    """The JSON Schema of plan files."""
    schema = Plan.model_json_schema()
    task = schema["$defs"]["PlanTask"]
    # What the validator demands, in the schema's words. An absent field cannot be null in TOML.
    task["anyOf"] = [{"required": ["prompt"]}, {"required": ["command"]}]
    for model in (schema, task):
        for name, one in model["properties"].items():
            model["properties"][name] = _without_null(one)
            model["properties"][name].pop("title", None)
            model["properties"][name]["description"] = " ".join(one.get("description", "").split())
    schema["properties"]["command"]["default"] = list(DEFAULT_COMMAND)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    choices = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    if not choices:
        return rest
    return {**choices[0], **rest} if len(choices) == 1 else {"anyOf": choices, **rest}


# From a complaint of the models to a sentence and a line


_WHAT_TO_DO = {
    "missing": "is missing; add it",
    "extra_forbidden": "is not a field of a plan file; check its spelling or remove it",
    "string_type": "must be a text in quotes",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must not be blank",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "float_type": "must be a number of seconds",
    "greater_than": "must be more than 0",
    "less_than_equal": "must be at most 2592000 (30 days)",
}


def _complaints(error: ValidationError, document: dict[str, Any], text: str) -> list[tuple[int, str]]:
    found: dict[tuple[int, str], None] = {}
    for one in error.errors(include_url=False):
        where = [part for part in one["loc"] if not (isinstance(part, str) and _is_a_choice(part))]
        task = where[1] if len(where) > 1 and where[0] == "tasks" and isinstance(where[1], int) else None
        key = next((str(part) for part in reversed(where) if isinstance(part, str) and part != "tasks"), None)
        says = _WHAT_TO_DO.get(one["type"], one["msg"].removeprefix("Value error, "))
        if key == "command" and one["type"] in {"string_type", "list_type"}:
            says = "must be a text in quotes or a list of them"
        elif where == ["tasks"]:
            key, says = "tasks", f"{says}: write at least one [[tasks]] table"
        field = f"`{key}` {says}" if key else says
        subject = "" if task is None else f"{_task_title(document, task)}: "
        found[_line(text, task, key if one["type"] != "missing" else None), f"{subject}{field}"] = None
    return sorted(found)


def _is_a_choice(part: str) -> bool:
    return bool(re.match(r"(constrained-|list\[|function-|str$|nullable)", part))


def _task_title(document: dict[str, Any], index: int) -> str:
    tasks: Any = document.get("tasks")
    one: Any = cast("list[Any]", tasks)[index] if isinstance(tasks, list) else None
    name: Any = cast("dict[str, Any]", one).get("name") if isinstance(one, dict) else None
    return f"task {index + 1} ({name!r})" if isinstance(name, str) else f"task {index + 1}"


def _line(text: str, task: int | None, key: str | None) -> int:
    """The line (from 1) of ``key`` in a [[tasks]] table or at the top, or of the table itself.

    The standard library's parser keeps no positions, so the lines are searched for the usual way of writing
    them.
    """
    current, header = -1, 1
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[\[\s*tasks\s*\]\]", line):
            current += 1
            if current == task:
                header = number
        elif current == (-1 if task is None else task) and line.partition("=")[0].strip(" \t\"'") == key:
            return number
    return header
