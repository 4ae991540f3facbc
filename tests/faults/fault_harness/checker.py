"""What the record of a round means: whether everything that a server has acknowledged is so, and stays so.

A rule holds against the data only what a write was answered. An answer to a GET is no acknowledgement: it may
come from a primary that has just been replaced, and show what is older, or what will be rolled back. The
answer to anything else was given when a majority had what it shows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from math import inf

from fault_harness.clients import Work
from fault_harness.history import Json, Operation
from fault_harness.owners import SLACK_SECONDS, Contacts, two_owners
from fault_harness.state import ENDED, LIVE, Document, State

_SESSION = re.compile(r"/api/sessions/([0-9a-f-]{36})(?:/([a-z-]+))?$")
_TASK = re.compile(r"/api/tasks/([0-9a-f-]{36})$")
_MACHINE = re.compile(r"/api/machines/([^/]+)$")
_CONFLICT = 409
_REFUSED_WELL = {400, 404, 409, 503, 504}


class Record:
    """The operations of a round, sorted by what they are about."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.by_session: defaultdict[str, list[tuple[str, Operation]]] = defaultdict(list)
        self.by_task: defaultdict[str, list[Operation]] = defaultdict(list)
        self.deleted_tasks: set[str] = set()
        self.deleted: dict[str, list[Operation]] = defaultdict(list)
        self.recovered: defaultdict[str, list[Operation]] = defaultdict(list)
        for one in operations:
            if found := _SESSION.match(one.path):
                action = found[2] or one.method
                self.by_session[found[1]].append((action, one))
                if action == "DELETE":
                    self.deleted[found[1]].append(one)
                if action == "recover":
                    self.recovered[found[1]].append(one)
            elif found := _TASK.match(one.path):
                self.by_task[found[1]].append(one)
                if one.method == "DELETE":
                    self.deleted_tasks.add(found[1])

    def contacts(self, state: State) -> defaultdict[str, Contacts]:
        """By session, what its owner and whoever took it over have heard of it."""
        found = defaultdict[str, Contacts](lambda: Contacts([], [], []))
        for session_id, operations in self.by_session.items():
            for action, one in operations:
                if action == "heartbeat" and one.well:
                    found[session_id].beats.append(one)
                elif action == "recover" and one.well:
                    found[session_id].recoveries.append(one)
                elif action in {"heartbeat", "PATCH", "mark-failed"} and one.status == _CONFLICT:
                    found[session_id].refusals.append(one)
        for task_id, operations in self.by_task.items():
            if task_id in state.tasks:
                said = found[state.tasks[task_id]["session_id"]].refusals
                said += [one for one in operations if one.status == _CONFLICT]
        return found


def check(operations: list[Operation], state: State, works: list[Work]) -> list[str]:
    """Every sentence that says how the history or the data at the end is wrong."""
    record = Record(operations)
    return [
        sentence
        for find in (
            *(_answers, _sessions_there, _tasks_there, _machines_there),
            *(_overtaken, _forwards, _one_successor),
        )
        for sentence in find(record, state)
    ] + [
        sentence
        for work in works
        for sentence in (
            *_orchestration(work, record, state),
            *two_owners(work, record.contacts(state), _parents(state)),
        )
    ]


def _answers(record: Record, _: State) -> Iterable[str]:
    """A server may say no, and that its database is away; it may not say that it does not know itself."""
    for one in record.operations:
        if one.status is not None and not one.well and one.status not in _REFUSED_WELL:
            yield f"{one} was answered with {one.status}: {one.answer}"


def _sessions_there(record: Record, state: State) -> Iterable[str]:
    """Acknowledged sessions, heartbeats, statuses and metadata are stored."""
    for one in record.operations:
        if one.well and one.method == "POST" and one.path == "/api/sessions":
            yield from _there(record, state, one.answer["session_id"], one)
    for session_id, operations in record.by_session.items():
        session = state.sessions.get(session_id)
        for action, one in operations:
            if not one.well or one.method == "GET":
                continue
            if action == "DELETE":
                if session is not None:
                    yield f"{one} was acknowledged, and the session is still there"
                continue
            if session is None:
                yield from _there(record, state, session_id, one)
                continue
            if action == "heartbeat" and _time(one.answer["last_heartbeat"]) > session["last_heartbeat"]:
                yield (
                    f"{one} was acknowledged with last_heartbeat {one.answer['last_heartbeat']}; "
                    f"stored is {session['last_heartbeat'].isoformat()}"
                )
            for key, value in _marks(one).items():
                if session["metadata"].get(key) != value:
                    yield f"{one} was acknowledged, and its metadata {key} is not stored"
            if action in {"PATCH", "mark-failed", "mark-stalled"}:
                yield from _happened(one, session, one.answer["status"])
            yield from _noted(action, one, session, state)


def _there(record: Record, state: State, session_id: str, one: Operation) -> Iterable[str]:
    if session_id not in state.sessions and not record.deleted[session_id]:
        yield f"{one} was acknowledged, and session {session_id} is not there, though nobody deleted it"


def _marks(one: Operation) -> Json:
    sent = one.body.get("metadata") if isinstance(one.body, dict) else None
    return {key: value for key, value in (sent or {}).items() if key.startswith("mark-")}


def _happened(one: Operation, document: Document, status: str) -> Iterable[str]:
    """The status that an answer shows is one that the document has had."""
    if status not in {event["to"] for event in document["events"]}:
        yield f"{one} was acknowledged as {status}, which never happened to what is stored"


def _noted(action: str, one: Operation, session: Document, state: State) -> Iterable[str]:
    """What a session's metadata says of its failure, its recovery and its archival was written for good."""
    noted = session["metadata"]
    if action == "mark-failed" and noted.get("error_message") != one.answer["metadata"].get("error_message"):
        yield (
            f"{one} was acknowledged with the error message {one.answer['metadata'].get('error_message')!r}; "
            f"stored is {noted.get('error_message')!r}"
        )
    if action == "prepare-recovery" and "recovery_prepared_at" not in noted:
        yield f"{one} was acknowledged, and nothing of it is stored"
    if action == "archive":
        if noted.get("archived") is not True:
            yield f"{one} was acknowledged, and the session is not archived"
        left = [task["task_id"] for task in state.tasks_of(session["session_id"]) if not task.get("archived")]
        if left:
            yield f"{one} was acknowledged, and the tasks {left} are not archived with their session"


def _machines_there(record: Record, state: State) -> Iterable[str]:
    """Acknowledged machines are stored, with their acknowledged metadata; nobody here deletes one."""
    for one in record.operations:
        found = _MACHINE.match(one.path)
        registers = (one.method, one.path) == ("POST", "/api/machines")
        if not one.well or not (registers or (found and one.method == "PATCH")):
            continue
        machine = state.machines.get(one.answer["machine_id"])
        if machine is None:
            yield f"{one} was acknowledged, and machine {one.answer['machine_id']} is not there"
            continue
        for key, value in _marks(one).items():
            if machine["metadata"].get(key) != value:
                yield f"{one} was acknowledged, and its metadata {key} is not stored"


def _tasks_there(record: Record, state: State) -> Iterable[str]:
    """Acknowledged tasks are stored with every status that they were said to have; each was claimed once."""
    for one in record.operations:
        if not one.well or (one.method, one.path) != ("POST", "/api/tasks"):
            continue
        task_id, deleted = one.answer["task_id"], record.deleted[one.answer["session_id"]]
        if task_id not in state.tasks and task_id not in record.deleted_tasks and not deleted:
            yield f"{one} was acknowledged, and task {task_id} is not there"
    for task_id, operations in record.by_task.items():
        task = state.tasks.get(task_id)
        if task is None:
            continue  # deleted, alone or with its session: see above
        for one in operations:
            if one.well and one.method == "DELETE":
                yield f"{one} was acknowledged, and the task is still there"
        at = Counter((event["to"], _text(event["at"])) for event in task["events"])
        said = Counter(
            (one.body["status"], one.answer["updated_at"])
            for one in operations
            if one.well and one.method == "PATCH" and "status" in one.body
        )
        for (status, when), count in said.items():
            if at[status, when] < count:
                yield (
                    f"task {task_id} was acknowledged {count} times as {status} at {when}; stored is "
                    f"{[(event['to'], _text(event['at'])) for event in task['events']]}"
                )


def _overtaken(record: Record, _: State) -> Iterable[str]:
    """Who asks after the end of a session was acknowledged is not told that it lives: one owner at most."""
    for operations in record.by_session.values():
        over = min((at for kind, one in operations if (at := _ends(kind, one)) is not None), default=None)
        fenced = min((at for kind, one in operations if (at := _fences(kind, one)) is not None), default=None)
        for kind, one in operations:
            if not one.well:
                continue
            if over is not None and one.asked > over and kind != "recover":
                shown = one.answer.get("status") if isinstance(one.answer, dict) else None
                if kind in {"heartbeat", "mark-stalled", "PATCH"} and shown in LIVE:
                    yield f"{one} was answered with {shown} after the end of the session was acknowledged"
            if fenced is not None and one.asked > fenced and kind == "heartbeat":
                yield f"{one} was acknowledged after the session had been fenced off"
    for task_id, operations in record.by_task.items():
        for one in operations:
            if one.well and one.body and one.body.get("status") == "in_progress":
                ends = (
                    at
                    for kind, other in record.by_session[one.answer["session_id"]]
                    if (at := _ends(kind, other)) is not None
                )
                if one.asked > min(ends, default=float("inf")):
                    yield f"{one}: task {task_id} was claimed after its session had ended"


def _forwards(record: Record, _: State) -> Iterable[str]:
    """Whoever asks after a heartbeat was acknowledged is not shown an earlier one."""
    for session_id, operations in record.by_session.items():
        shown = [
            (one, one.answer["last_heartbeat"])
            for _, one in operations
            if one.well and one.method != "GET"
            if isinstance(one.answer, dict) and one.answer.get("session_id") == session_id
            if "last_heartbeat" in one.answer
        ]
        for one, beat in shown:
            before = max((b for other, b in shown if (other.answered or one.asked) < one.asked), default="")
            if beat < before:
                yield f"{one} was shown last_heartbeat {beat}, after {before} was acknowledged"


def _ends(kind: str, one: Operation) -> float | None:
    """When a session was acknowledged to have ended, by this."""
    if not one.well or one.answered is None:
        return None
    if kind in {"recover", "DELETE"}:
        return one.answered
    shown = one.answer.get("status") if isinstance(one.answer, dict) else None
    return one.answered if kind in {"PATCH", "mark-failed", "archive"} and shown in ENDED else None


def _fences(kind: str, one: Operation) -> float | None:
    cleared = isinstance(one.body, dict) and one.body.get("clear_machine_assignment") is True
    return one.answered if one.well and kind == "prepare-recovery" and cleared else None


def _one_successor(record: Record, state: State) -> Iterable[str]:
    """Whoever recovered a session was given the same successor; it was made once, and is there."""
    for session_id, operations in record.recovered.items():
        well = [one for one in operations if one.well]
        given = {one.answer["session_id"] for one in well}
        if len(given) > 1:
            yield f"session {session_id} was given {len(given)} successors: {sorted(given)}"
        created = [one for one in well if one.status == 201]
        if len(created) > 1:
            yield f"the successor of session {session_id} was created {len(created)} times"
        for successor in given:
            yield from _there(record, state, successor, well[0])
        original = state.sessions.get(session_id)
        if given and original is not None and original.get("recovered_by") not in given:
            yield f"session {session_id} names {original.get('recovered_by')}, acknowledged was {given}"


def _orchestration(work: Work, record: Record, state: State) -> Iterable[str]:
    """Everything was done, recorded as done, and not done again without a reason."""
    sessions = [one for one in state.sessions.values() if one["project_id"] == work.project]
    ids = {one["session_id"] for one in sessions}
    completed = [
        task for task in state.tasks.values() if task["session_id"] in ids and task["status"] == "completed"
    ]
    names = {task["task_name"] for task in completed}
    effects = work.effects()
    for item in work.items:
        if item not in names:
            yield f"{work.project}: {item} is not recorded as completed"
        if not any(what == "end" and name == item for what, name, *_ in effects):
            yield f"{work.project}: {item} was never done"
    if not any(one["status"] == "completed" and not one.get("recovered_by") for one in sessions):
        yield f"{work.project}: no session is completed"
    yield from _repetitions(work, effects, record, state, completed)


def _repetitions(
    work: Work,
    effects: list[tuple[str, str, str, str, float]],
    record: Record,
    state: State,
    completed: list[Document],
) -> Iterable[str]:
    """One process does a piece of work once, and nobody does what the record already calls done."""
    counted = Counter((name, attempt) for what, name, attempt, *_ in effects if what == "begin")
    for (name, attempt), count in counted.items():
        # An orchestrator of one's own may open several sessions in one process, a run opens one. A window
        # that is told that another one is at work pauses, and begins its piece anew when a person resumes.
        if work.kind == "run" and count > 1:
            yield f"{work.project}: {attempt} did {name} {count} times"
    done_in: dict[str, set[str]] = defaultdict(set)
    known: dict[tuple[str, str], float] = {}
    for task in completed:
        name, session_id = task["task_name"], task["session_id"]
        done_in[name].add(session_id)
        for one in record.by_task[task["task_id"]]:
            if one.well and one.body and one.body.get("status") == "completed":
                known[name, session_id] = min(one.answered or one.asked, known.get((name, session_id), inf))
    for what, name, attempt, session_id, at in effects:
        before = _ancestors(session_id, state) & done_in[name]
        if what == "begin" and before:
            yield (
                f"{work.project}: {attempt} began {name} at {at:.2f} for session {session_id}, "
                f"though it was completed in {sorted(before)}, from which that session goes on"
            )
        if what == "begin" and at > known.get((name, session_id), inf) + SLACK_SECONDS:
            yield (
                f"{work.project}: {attempt} began {name} at {at:.2f} for session {session_id}, "
                f"though it was acknowledged as completed there at {known[name, session_id]:.2f}"
            )


def _parents(state: State) -> dict[str, str | None]:
    return {key: one.get("recovered_from") for key, one in state.sessions.items()}


def _ancestors(session_id: str, state: State) -> set[str]:
    found: set[str] = set()
    session = state.sessions.get(session_id)
    while session is not None and session.get("recovered_from"):
        found.add(session["recovered_from"])
        session = state.sessions.get(session["recovered_from"])
    return found


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
