"""What the API promises, as a model in memory: the state it must be in, and the answer it must give.

Written from the promises and not from the server's code: it imports nothing of it, and its tables are its
own. Each method takes what a caller asks for, changes the model as the API must, and returns the status codes
that are right. There is more than one only where a request is wrong in two ways at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Codes = frozenset[int]

LIVE = frozenset({"active", "paused", "stalled"})
ENDED = frozenset({"completed", "failed"})
SESSION_STATUSES = ("active", "paused", "stalled", "completed", "failed")
TASK_STATUSES = ("pending", "in_progress", "completed", "failed", "blocked")
MACHINE_STATUSES = ("online", "offline", "maintenance")

TASK_MAY_BECOME: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"in_progress", "completed", "failed", "blocked"}),
    "in_progress": frozenset({"completed", "failed", "blocked"}),
    "completed": frozenset({"blocked"}),
    "failed": frozenset({"blocked"}),
    "blocked": frozenset({"pending", "in_progress", "completed", "failed", "blocked"}),
}

OK = frozenset({200})
CREATED = frozenset({201})
GONE = frozenset({204})
WRONG = frozenset({400})
MISSING = frozenset({404})
CONFLICT = frozenset({409})


@dataclass
class Task:
    """A task as the model knows it."""

    name: str
    session: str
    status: str = "pending"
    metadata: Json = field(default_factory=dict[str, Any])
    started: bool = False
    error: bool = False
    carried_to: bool = False
    recovered_from: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it must have a `completed_at`."""
        return self.status in ("completed", "failed")


@dataclass
class Session:
    """A session as the model knows it."""

    project: str
    machine: str
    slot: int | None
    status: str = "active"
    fenced: bool = False
    current: str | None = None
    metadata: Json = field(default_factory=dict[str, Any])
    archived: bool = False
    prepared: bool = False
    error: str | None = None
    recovered_from: str | None = None
    recovered_by: str | None = None
    heard: bool = False
    """Whether it was heard of in the latest step, which may move its last heartbeat; forwards, never back."""

    @property
    def live(self) -> bool:
        """Whether it has work to do."""
        return self.status in LIVE

    @property
    def on_machine(self) -> bool:
        """Whether it must stand in its machine's `active_sessions`."""
        return self.live and not self.fenced


@dataclass
class Machine:
    """A machine as the model knows it."""

    slots: list[int]
    status: str = "online"


class Model:
    """Every session, task and machine, by the ids that the API gave them."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.tasks: dict[str, Task] = {}
        self.machines: dict[str, Machine] = {}

    # What the rules are made of.

    def _refused_by_machine(
        self, machine: str, slot: int | None, closed: tuple[str, ...], leaving: str | None = None
    ) -> Codes:
        """Why a machine does not take a session; empty where it does."""
        codes: set[int] = set()
        known = self.machines.get(machine)
        if known is not None:
            if known.status in closed:
                codes.add(409)
            if slot is not None and slot not in known.slots:
                codes.add(400)
        if slot is not None and self._holder(machine, slot, besides=leaving):
            codes.add(409)
        return frozenset(codes)

    def _holder(self, machine: str, slot: int, besides: str | None = None) -> str | None:
        return next(
            (
                name
                for name, session in self.sessions.items()
                if session.on_machine
                and session.machine == machine
                and session.slot == slot
                and name != besides
            ),
            None,
        )

    def _active_twin(self, project: str, machine: str, besides: str | None = None) -> bool:
        return any(
            session.status == "active"
            and session.project == project
            and session.machine == machine
            and name != besides
            for name, session in self.sessions.items()
        )

    def tasks_of(self, session: str) -> dict[str, Task]:
        """The tasks of one session."""
        return {name: task for name, task in self.tasks.items() if task.session == session}

    def _fail_running(self, name: str) -> None:
        for task_id, task in self.tasks_of(name).items():
            if task.status == "in_progress":
                task.status, task.error = "failed", True
                if self.sessions[name].current == task_id:
                    self.sessions[name].current = None

    # Sessions.

    def create_session(self, project: str, machine: str, slot: int | None) -> Codes:
        """POST /api/sessions: may it be made? `session_created` notes that it was."""
        refused = self._refused_by_machine(machine, slot, ("maintenance",))
        if self._active_twin(project, machine):
            refused |= CONFLICT
        return refused or CREATED

    def session_created(
        self, name: str, project: str, machine: str, slot: int | None, metadata: Json
    ) -> None:
        """The session that was made, under the id that it was given."""
        self.sessions[name] = Session(project, machine, slot, metadata=merged({}, metadata))

    def set_status(self, name: str, to: str) -> Codes:
        """PATCH of a session's status."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if session.status == to:
            return OK
        if not session.live:
            return CONFLICT
        if to in ("active", "paused") and session.fenced:
            return CONFLICT
        if to == "active" and self._active_twin(session.project, session.machine, besides=name):
            return CONFLICT
        if to == "failed":
            self._fail_running(name)
        session.heard = to == "active"
        session.status = to
        return OK

    def merge_metadata(self, name: str, patch: Json) -> Codes:
        """PATCH of a session's metadata alone: late evidence is kept."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        session.metadata = merged(session.metadata, patch)
        return OK

    def set_current(self, name: str, current: str | None) -> Codes:
        """PATCH of a session's current task."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if not session.on_machine:
            return CONFLICT
        session.current = current
        return OK

    def heartbeat(self, name: str, current: str | None, *, says: bool) -> Codes:
        """POST heartbeat, with a `current_task_id` where it `says` one."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if not session.on_machine:
            return CONFLICT
        if session.status == "stalled":
            if self._active_twin(session.project, session.machine, besides=name):
                return CONFLICT
            session.status = "active"
        if says:
            session.current = current
        session.heard = True
        return OK

    def mark_failed(self, name: str, error: str) -> Codes:
        """POST mark-failed."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if session.status == "completed":
            return CONFLICT
        if session.status != "failed":
            self._fail_running(name)
            session.status, session.error = "failed", error
        return OK

    def mark_stalled(self, name: str) -> Codes:
        """POST mark-stalled."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if not session.live:
            return CONFLICT
        session.status = "stalled"
        return OK

    def prepare(self, name: str, *, clear: bool) -> Codes:
        """POST prepare-recovery."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if session.status not in ("failed", "stalled"):
            return WRONG
        session.prepared = True
        if clear and session.on_machine:
            session.fenced, session.slot = True, None
        return OK

    def recover(self, name: str, machine: str, slot: int | None) -> Codes:
        """POST recover: what must it answer? `recovered` notes a successor that was made."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if session.recovered_by is not None:
            return OK if session.recovered_by in self.sessions else CONFLICT
        if session.status not in ("failed", "stalled"):
            return WRONG
        refused = self._refused_by_machine(machine, slot, ("offline", "maintenance"), leaving=name)
        if self._active_twin(session.project, machine):
            refused |= CONFLICT
        return refused or CREATED

    def recovered(
        self, name: str, successor: str, machine: str, slot: int | None, carried: Mapping[str, str]
    ) -> None:
        """The successor that was made; `carried` maps the tasks that went over to their new ids."""
        original = self.sessions[name]
        self.sessions[successor] = Session(
            original.project, machine, slot, metadata=dict(original.metadata), recovered_from=name
        )
        for old, new in carried.items():
            task = self.tasks[old]
            self.tasks[new] = Task(task.name, successor, metadata=dict(task.metadata), recovered_from=old)
            task.carried_to = True
        self._fail_running(name)
        original.status, original.recovered_by, original.current = "completed", successor, None

    def must_carry(self, name: str, *, open_ones: bool, failed_ones: bool) -> set[str]:
        """The tasks that a successor must get anew."""
        wanted = ({"pending", "in_progress", "blocked"} if open_ones else set()) | (
            {"failed"} if failed_ones else set()
        )
        return {task_id for task_id, task in self.tasks_of(name).items() if task.status in wanted}

    def archive(self, name: str) -> Codes:
        """POST archive."""
        session = self.sessions.get(name)
        if session is None:
            return MISSING
        if session.live:
            return WRONG
        session.archived = True
        return OK

    def delete_session(self, name: str) -> Codes:
        """DELETE a session, its tasks with it."""
        if name not in self.sessions:
            return MISSING
        del self.sessions[name]
        for task_id in self.tasks_of(name):
            del self.tasks[task_id]
        return GONE

    def clean_up(self) -> None:
        """POST cleanup of everything that has ended, however short a time ago."""
        for name, session in list(self.sessions.items()):
            if not session.live and not session.archived:
                self.delete_session(name)

    # Tasks.

    def create_task(self, session: str, project: str) -> Codes:
        """POST /api/tasks."""
        known = self.sessions.get(session)
        if known is None or not known.live or known.project != project:
            return WRONG
        return CREATED

    def task_created(self, task_id: str, session: str, name: str, metadata: Json) -> None:
        """The task that was made, under the id that it was given."""
        self.tasks[task_id] = Task(name, session, metadata=metadata)

    def set_task(self, task_id: str, to: str, patch: Json) -> Codes:
        """PATCH of a task's status (with an error message where it fails) and metadata: both or none."""
        task = self.tasks.get(task_id)
        if task is None:
            return MISSING
        session = self.sessions[task.session]
        refused: Codes = frozenset()
        if not session.live or (session.fenced and to == "in_progress"):
            refused |= CONFLICT
        if to not in TASK_MAY_BECOME[task.status]:
            refused |= WRONG
        if refused:
            return refused
        task.status = to
        task.metadata = merged(task.metadata, patch)
        task.error = to == "failed"
        task.started = task.started or to in ("in_progress", "completed", "failed")
        if to == "in_progress":
            session.current = task_id
        elif session.current == task_id:
            session.current = None
        return OK

    def merge_task_metadata(self, task_id: str, patch: Json) -> Codes:
        """PATCH of a task's metadata alone: late evidence is kept."""
        task = self.tasks.get(task_id)
        if task is None:
            return MISSING
        task.metadata = merged(task.metadata, patch)
        return OK

    def delete_task(self, task_id: str) -> Codes:
        """DELETE a task."""
        task = self.tasks.pop(task_id, None)
        if task is None:
            return MISSING
        session = self.sessions[task.session]
        if session.current == task_id:
            session.current = None
        return GONE

    # Machines.

    def _slots_in_use(self, machine: str) -> set[int]:
        return {
            session.slot
            for session in self.sessions.values()
            if session.on_machine and session.machine == machine and session.slot is not None
        }

    def register(self, machine: str, slots: list[int]) -> Codes:
        """POST /api/machines under an id of the caller's choice."""
        if not self._slots_in_use(machine) <= set(slots):
            return CONFLICT
        known = self.machines.get(machine)
        if known is None:
            self.machines[machine] = Machine(slots)
            return CREATED
        known.slots = slots
        if known.status == "offline":
            known.status = "online"
        return OK

    def set_machine(self, machine: str, status: str | None, slots: list[int] | None) -> Codes:
        """PATCH of a machine."""
        known = self.machines.get(machine)
        if known is None:
            return MISSING
        if slots is not None and not self._slots_in_use(machine) <= set(slots):
            return CONFLICT
        known.slots = known.slots if slots is None else slots
        known.status = status or known.status
        return OK

    def machine_heartbeat(self, machine: str) -> Codes:
        """POST heartbeat of a machine."""
        known = self.machines.get(machine)
        if known is None:
            return MISSING
        if known.status == "offline":
            known.status = "online"
        return OK

    def delete_machine(self, machine: str) -> Codes:
        """DELETE a machine."""
        if machine not in self.machines:
            return MISSING
        if self.on_machine(machine):
            return CONFLICT
        del self.machines[machine]
        return GONE

    def on_machine(self, machine: str) -> set[str]:
        """What `active_sessions` must hold."""
        return {
            name
            for name, session in self.sessions.items()
            if session.on_machine and session.machine == machine
        }


def merged(target: object, patch: object) -> Any:
    """RFC 7396, section 2, as its pseudo-code has it."""
    if not isinstance(patch, dict):
        return patch
    result: Json = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
