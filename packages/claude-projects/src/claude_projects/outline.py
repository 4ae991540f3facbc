"""What a session's metadata says of its plan, so that any successor can go on, with or without its file.

A session's ``metadata.plan`` holds the plan's name, the digests of all its tasks in order, those that were
done when the session began (``done``), the id of the session for which that was written (``session_id``),
and, where they fit, the definitions (``tasks``). Each task's ``metadata.plan`` holds its own definition and
index.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import ValidationError

from claude_projects.models import Metadata, Session, Task
from claude_projects.plan import Definition, Program

_ROOM_FOR_DEFINITIONS = 32 * 1024  # of 64 KiB for all metadata, 500 digests twice included


@dataclass(frozen=True)
class Item:
    """A task of a plan; without ``definition`` it was done before, and only its digest is known."""

    index: int
    digest: str
    definition: Definition | None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.definition.name if self.definition else f"task {self.index + 1}"


@dataclass
class Outline:
    """The state of a plan: its tasks in order, which are done, and the session's tasks for the others."""

    project_id: str
    name: str
    items: list[Item]
    done: set[str] = field(default_factory=set[str])
    open_tasks: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of_program(cls, program: Program) -> "Outline":
        """A plan of which nothing is done."""
        items = [Item(i, task.digest, task) for i, task in enumerate(program.tasks)]
        return cls(program.project_id, program.name, items)

    def left(self) -> list[Item]:
        """What is not done, in the plan's order."""
        return [item for item in self.items if item.digest not in self.done]

    def to_metadata(self, session_id: str | None) -> Metadata:
        """``metadata.plan`` of the session with this id, None for one that is being created."""
        definitions = [item.definition.to_metadata() if item.definition else None for item in self.items]
        fits = len(json.dumps(definitions)) <= _ROOM_FOR_DEFINITIONS
        return {
            "name": self.name,
            "digests": [item.digest for item in self.items],
            "done": sorted(self.done & {item.digest for item in self.items}),
            "session_id": session_id,
            "tasks": definitions if fits else None,
        }

    def task_metadata(self, item: Item) -> Metadata:
        """The metadata of the task that stands for ``item``."""
        definition = item.definition.to_metadata() if item.definition else None
        return {"plan": {"index": item.index, "of": len(self.items), "definition": definition}}


def plan_of(session: Session) -> dict[str, Any] | None:
    """``metadata.plan`` of a session, None where it has none that we can read."""
    said: Any = session.metadata.get("plan")
    if not isinstance(said, dict):
        return None
    plan = cast("dict[str, Any]", said)
    digests: Any = plan.get("digests")
    well = isinstance(plan.get("name"), str) and isinstance(digests, list)
    return plan if well and all(isinstance(one, str) for one in cast("list[Any]", digests)) else None


def plan_is_for(session: Session) -> bool:
    """Whether ``metadata.plan`` was written for this very session and not inherited from its original."""
    plan = plan_of(session) or {}
    return plan.get("session_id") == session.session_id or session.recovered_from is None


def done_by_plan(session: Session) -> set[str]:
    """The digests that ``metadata.plan`` lists as done before the session."""
    done: Any = (plan_of(session) or {}).get("done")
    return {str(one) for one in cast("list[Any]", done)} if isinstance(done, list) else set()


def definition_of(task: Task) -> Definition | None:
    """The definition in a task's metadata, None where it has none."""
    plan: Any = task.metadata.get("plan")
    return _definition(cast("dict[str, Any]", plan).get("definition")) if isinstance(plan, dict) else None


def done_by_tasks(tasks: Iterable[Task]) -> set[str]:
    """The digests of the completed ones."""
    return digests_of(task for task in tasks if task.status == "completed")


def digests_of(tasks: Iterable[Task]) -> set[str]:
    """The digests of what these tasks stand for."""
    return {one.digest for one in map(definition_of, tasks) if one}


def outline_of(session: Session, tasks: Sequence[Task]) -> Outline | None:
    """The plan by the metadata of ``session`` and ``tasks``, nothing done; None where there is none."""
    plan = plan_of(session)
    if plan is None:
        return None
    known = {one.digest: one for one in (definition_of(task) for task in tasks) if one}
    listed: Any = plan.get("tasks")
    for one in map(_definition, cast("list[Any]", listed) if isinstance(listed, list) else []):
        if one:
            known[one.digest] = one
    items = [Item(i, digest, known.get(digest)) for i, digest in enumerate(plan["digests"])]
    return Outline(session.project_id, plan["name"], items)


@dataclass(frozen=True)
class Assigned:
    """Open tasks that nobody is going to work on: their work is ``done``, or they are ``useless``."""

    done: list[Task]
    useless: list[Task]


def assign(outline: Outline, done: set[str], tasks: Sequence[Task]) -> Assigned:
    """Set what is done, and which of the session's own ``tasks`` stands for what is not.

    A task whose work is not in the plan (any more), or has another task that stands for it, is useless.
    """
    wanted = {item.digest for item in outline.items}
    open_tasks: dict[str, str] = {}
    told = Assigned([], [])
    for task in tasks:
        if task.status == "completed":
            continue
        definition = definition_of(task)
        digest = definition.digest if definition else None
        if digest is None or digest not in wanted or digest in open_tasks:
            told.useless.append(task)
        elif digest in done:
            told.done.append(task)
        else:
            open_tasks[digest] = task.task_id
    outline.open_tasks = open_tasks
    outline.done = done & wanted
    return told


def _definition(said: Any) -> Definition | None:
    try:
        return Definition.model_validate(said)
    except ValidationError:
        return None
