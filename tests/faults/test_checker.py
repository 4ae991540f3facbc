"""Each rule of the checker, shown a record or data that break it alone, says so in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fault_harness.checker import check
from fault_harness.clients import Attempt, Work
from fault_harness.history import Json, Operation
from fault_harness.mutants import MUTANTS
from fault_harness.rounds import bug_is_found
from fault_harness.state import Document, State, wrong_steps, wrong_with

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW, DONE = (f"{number:08}-0000-4000-8000-000000000000" for number in (1, 2, 3))
TASK = "00000009-0000-4000-8000-000000000000"
"""The task of NEW; each item of the orchestration is a task of DONE."""


def moment(seconds: float) -> datetime:
    """So many seconds into the round."""
    return BEGAN + timedelta(seconds=seconds)


def text(seconds: float) -> str:
    """The same as answers have it."""
    return moment(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def steps(*statuses: tuple[float, str]) -> Document:
    """What a document has that went through these: its events, and its present status."""
    before: str | None = None
    events: list[Document] = []
    for at, status in statuses:
        events.append({"at": moment(at), "from": before, "to": status, "reason": None})
        before = status
    return {"status": before, "events": events}


def session(session_id: str, project: str, machine: str, *statuses: tuple[float, str]) -> Document:
    """A stored session."""
    at, status = statuses[-1]
    return {
        "session_id": session_id,
        "project_id": project,
        "machine_id": machine,
        "docker_slot": None,
        "last_heartbeat": moment(statuses[0][0]),
        "completed_at": moment(at) if status in {"completed", "failed"} else None,
        "metadata": {},
        **steps(*statuses),
    }


def task(task_id: str, session_id: str, name: str, *statuses: tuple[float, str]) -> Document:
    """A stored task."""
    return {
        "task_id": task_id,
        "session_id": session_id,
        "task_name": name,
        "metadata": {},
        **steps(*statuses),
    }


def machine(machine_id: str, *active: str) -> Document:
    """A stored machine."""
    return {"machine_id": machine_id, "active_sessions": list(active), "metadata": {}}


@dataclass
class Round:
    """A round in which all went well: OLD failed and went on as NEW, and an orchestration was carried out."""

    directory: Path
    state: State = field(
        default_factory=lambda: State.of(
            [
                session(OLD, "p", "m-0", (1, "active"), (5, "failed"), (6, "completed"))
                | {"recovered_by": NEW, "metadata": {"error_message": "fell over"}},
                session(NEW, "p", "m-1", (6, "active"))
                | {"recovered_from": OLD, "docker_slot": 1, "last_heartbeat": moment(8)},
                session(DONE, "orchestrated", "m-2", (1, "active"), (9, "completed")),
            ],
            [
                task(TASK, NEW, "something", (6, "pending"), (7, "in_progress")),
                *(
                    task(f"of-{item}", DONE, item, (2, "pending"), (3, "in_progress"), (4, "completed"))
                    for item in ("a", "b")
                ),
            ],
            [machine("m-0"), machine("m-1", NEW), machine("m-2")],
        )
    )
    operations: list[Operation] = field(default_factory=list[Operation])
    effects: list[str] = field(default_factory=list[str])
    kind: str = "run"

    def asks(
        self, at: float, method: str, path: str, body: Any = None, *, code: int = 200, **answer: Any
    ) -> None:
        """Somebody asked this, and was answered half a second later."""
        number = len(self.operations)
        who = ("caller", "server-0", method, f"/api/{path}", body)
        self.operations.append(
            Operation(number, *who, at, at + 0.5, code, answer if code < 400 else {"error": "…"})
        )

    def works(self, item: str, begin: float, *, attempt: str = "here#0") -> None:
        """A process did a piece of the orchestration, for DONE."""
        self.effects += [
            f"begin {item} {attempt} {DONE} {begin:.2f}",
            f"end {item} {attempt} {DONE} {begin + 0.5:.2f}",
        ]

    def found(self) -> list[str]:
        """All that is said of it, as at the end of a real one."""
        (self.directory / "effects").write_text("\n".join(self.effects))
        work = Work("orchestrated", self.kind, ["a", "b"], self.directory)
        work.attempts = [Attempt("here#0", "run", "here", 0), Attempt("here#1", "run", "here", 0)]
        state = deepcopy(self.state)
        return [*wrong_with(state), *wrong_steps(state), *check(self.operations, state, [work])]


@pytest.fixture
def round_(tmp_path: Path) -> Round:
    one = Round(tmp_path)
    one.asks(0, "POST", "machines", {"machine_id": "m-0"}, code=201, machine_id="m-0")
    one.asks(1, "POST", "sessions", {}, code=201, session_id=OLD)
    one.asks(4.5, "POST", f"sessions/{OLD}/mark-failed", **failed("fell over"))
    one.asks(6, "POST", f"sessions/{OLD}/recover", code=201, session_id=NEW)
    one.asks(6.6, "POST", f"sessions/{OLD}/heartbeat", code=409)
    one.asks(6.6, "POST", "tasks", {}, code=201, task_id=TASK, session_id=NEW)
    one.asks(7, "PATCH", f"tasks/{TASK}", {"status": "in_progress"}, session_id=NEW, updated_at=text(7))
    one.asks(8, "POST", f"sessions/{NEW}/heartbeat", **beaten(8))
    one.asks(8, "GET", f"sessions/{NEW}", **beaten(8))
    one.works("a", 2)
    one.works("b", 3)
    return one


def failed(why: str) -> Json:
    """An answer to mark-failed."""
    return {"session_id": OLD, "status": "failed", "metadata": {"error_message": why}}


def beaten(at: float, status: str = "active", session_id: str = NEW) -> Json:
    """An answer to a heartbeat."""
    return {"session_id": session_id, "status": status, "last_heartbeat": text(at)}


def test_a_round_in_which_all_went_well_is_not_complained_about(round_: Round) -> None:
    assert round_.found() == []


def test_what_a_read_shows_is_no_acknowledgement(round_: Round) -> None:
    """A primary that has been replaced shows what is older, and what will be rolled back."""
    round_.asks(8.6, "GET", f"sessions/{OLD}", **beaten(4, "active", OLD))
    round_.asks(8.6, "GET", f"sessions/{NEW}", **beaten(7))
    round_.asks(8.6, "GET", f"sessions/{NEW}", **beaten(9, "completed"))
    round_.asks(9.5, "POST", f"sessions/{NEW}/heartbeat", **beaten(8))
    assert round_.found() == []


def test_what_was_deleted_is_not_missed(round_: Round) -> None:
    round_.asks(6.6, "POST", "tasks", {}, code=201, task_id=DONE, session_id=NEW)
    round_.asks(8, "DELETE", f"tasks/{DONE}", code=204)
    round_.asks(8, "POST", "sessions", {}, code=201, session_id=TASK)
    round_.asks(9, "DELETE", f"sessions/{TASK}", code=204)
    assert round_.found() == []


Break = Callable[[Round], object]
MARKED = {"metadata": {"mark-1": 1}}


def said(*args: Any, **named: Any) -> Break:
    """One more request is answered so."""
    return lambda one: one.asks(*args, **named)


def gone(kind: str, key: str) -> Break:
    """Something is not stored."""
    return lambda one: vars(one.state)[kind].pop(key)


def stored(kind: str, key: str, **fields: Any) -> Break:
    """Something is stored otherwise."""
    return lambda one: vars(one.state)[kind][key].update(fields)


def added(kind: str, **fields: Any) -> Break:
    """Something is stored that should not be there."""
    key = fields[f"{kind[:-1]}_id"]
    return lambda one: vars(one.state)[kind].update({key: fields})


def both(*breaks: Break) -> Break:
    """What is only wrong together."""
    return lambda one: [each(one) for each in breaks]


def another(machine_id: str, **fields: Any) -> Break:
    """One more live session, with its machine saying so."""
    one = session(DONE[::-1], fields.pop("project_id", "q"), machine_id, (8, "active")) | fields
    return both(
        added("sessions", **one),
        lambda at: at.state.machines[machine_id]["active_sessions"].append(one["session_id"]),
    )


def handed_over(carried: str) -> Break:
    """OLD had a task, of which NEW is to have a copy."""
    left = task("left", OLD, "left", (2, "pending")) | {"metadata": {"carried_to": carried}}
    return added("tasks", **left)


def copied(key: str) -> Break:
    """NEW has a copy of that task."""
    copy = task(key, NEW, "left", (6, "pending")) | {"metadata": {"recovered_from_task": "left"}}
    return added("tasks", **copy)


def archived(**noted: Any) -> Break:
    """The archival of DONE was acknowledged; `noted` is stored of it."""
    return both(
        said(10, "POST", f"sessions/{DONE}/archive", session_id=DONE, status="completed"),
        stored("sessions", DONE, metadata=noted),
    )


OTHER = DONE.replace("3", "4")
RULES: dict[str, tuple[Break, str]] = {
    # What was acknowledged is stored.
    "session lost": (
        said(2, "POST", "sessions", {}, code=201, session_id=OTHER),
        f"session {OTHER} is not there, though nobody deleted it",
    ),
    "session lost after it was changed": (
        said(2, "PATCH", f"sessions/{OTHER}", {"status": "paused"}, session_id=OTHER),
        f"session {OTHER} is not there, though nobody deleted it",
    ),
    "session lost after a machine's recovery": (
        both(
            said(2, "POST", f"sessions/{OTHER}/recover", code=201, session_id=TASK),
            said(8, "DELETE", f"sessions/{OTHER}", code=204),
        ),
        f"session {TASK} is not there, though nobody deleted it",
    ),
    "deleted session still there": (
        said(10, "DELETE", f"sessions/{DONE}", code=204),
        "was acknowledged, and the session is still there",
    ),
    "heartbeat lost": (
        said(9, "POST", f"sessions/{NEW}/heartbeat", **beaten(9)),
        "was acknowledged with last_heartbeat 2026-01-01T00:00:09.000Z; stored is 2026-01-01T00:00:08",
    ),
    "mark lost": (
        said(8, "POST", f"sessions/{NEW}/heartbeat", MARKED, **beaten(8)),
        "was acknowledged, and its metadata mark-1 is not stored",
    ),
    "status lost": (
        said(8, "PATCH", f"sessions/{NEW}", {"status": "paused"}, session_id=NEW, status="paused"),
        "was acknowledged as paused, which never happened to what is stored",
    ),
    "error message lost": (
        stored("sessions", OLD, metadata={}),
        "acknowledged with the error message 'fell over'; stored is None",
    ),
    "preparation lost": (
        said(5.5, "POST", f"sessions/{OLD}/prepare-recovery", {}, session_id=OLD),
        "was acknowledged, and nothing of it is stored",
    ),
    "archival lost": (
        both(archived(), *(stored("tasks", f"of-{item}", archived=True) for item in "ab")),
        "was acknowledged, and the session is not archived",
    ),
    "task not archived with its session": (
        both(archived(archived=True), stored("tasks", "of-a", archived=True)),
        "the tasks ['of-b'] are not archived with their session",
    ),
    "task lost": (gone("tasks", TASK), f"task {TASK} is not there"),
    "deleted task still there": (
        said(8, "DELETE", f"tasks/{TASK}", code=204),
        "was acknowledged, and the task is still there",
    ),
    "task claimed twice": (
        said(7, "PATCH", f"tasks/{TASK}", {"status": "in_progress"}, session_id=NEW, updated_at=text(7)),
        f"task {TASK} was acknowledged 2 times as in_progress",
    ),
    "machine lost": (gone("machines", "m-0"), "machine m-0 is not there"),
    "machine's mark lost": (
        said(8, "PATCH", "machines/m-0", MARKED, machine_id="m-0"),
        "was acknowledged, and its metadata mark-1 is not stored",
    ),
    # One owner.
    "two successors given": (
        both(
            said(7, "POST", f"sessions/{OLD}/recover", session_id=OTHER),
            said(8, "DELETE", f"sessions/{OTHER}", code=204),
        ),
        f"session {OLD} was given 2 successors",
    ),
    "successor made twice": (
        said(7, "POST", f"sessions/{OLD}/recover", code=201, session_id=NEW),
        f"the successor of session {OLD} was created 2 times",
    ),
    "another successor than acknowledged": (
        both(
            said(2, "POST", f"sessions/{DONE}/recover", code=201, session_id=OTHER),
            said(8, "DELETE", f"sessions/{OTHER}", code=204),
        ),
        f"session {DONE} names None, acknowledged was",
    ),
    "two successors stored": (
        another("m-2", recovered_from=OLD),
        f"session {OLD} has 2 successors",
    ),
    "successor not named": (
        another("m-2", recovered_from=DONE),
        f"session {DONE} does not know its successor",
    ),
    "recovered and alive": (
        both(
            stored("sessions", NEW, recovered_by=DONE),
            stored("sessions", DONE, recovered_from=NEW),
            stored("tasks", TASK, **steps((6, "pending"), (7, "in_progress"), (8, "blocked"))),
        ),
        f"session {NEW} was recovered and is active: two owners",
    ),
    "recovered and alive, its successor deleted": (
        stored("sessions", NEW, recovered_by=OTHER),
        f"session {NEW} names a successor and is active",
    ),
    "heartbeat of a fenced session": (
        both(
            stored("sessions", NEW, metadata={"recovery_prepared_at": text(7.1)}),
            said(7.1, "POST", f"sessions/{NEW}/prepare-recovery", {"clear_machine_assignment": True}),
        ),
        "was acknowledged after the session had been fenced off",
    ),
    "slot held twice": (another("m-1", docker_slot=1), "slot 1 of m-1 is held by 2 live sessions"),
    "active twice": (another("m-1", project_id="p"), "p has 2 active sessions on m-1"),
    # Ended is ended.
    "answered as alive after its end": (
        said(7, "POST", f"sessions/{OLD}/heartbeat", **beaten(1, "active", OLD)),
        "was answered with active after the end of the session was acknowledged",
    ),
    "task claimed after its session's end": (
        said(7, "PATCH", "tasks/" + OTHER, {"status": "in_progress"}, session_id=OLD, updated_at=text(7)),
        f"task {OTHER} was claimed after its session had ended",
    ),
    "completed and alive again": (
        stored("sessions", DONE, **steps((1, "active"), (8, "completed"), (9, "active"), (9, "completed"))),
        f"session {DONE} went from completed to active",
    ),
    "left failed without a successor": (
        stored("sessions", DONE, **steps((1, "active"), (8, "failed"), (9, "completed"))),
        f"session {DONE} left failed without a successor",
    ),
    "another status than its events": (
        stored("tasks", TASK, status="pending"),
        f"task {TASK} is pending, its last event says in_progress",
    ),
    "ended without a time": (
        stored("sessions", DONE, completed_at=None),
        f"session {DONE} is completed, completed_at None",
    ),
    # Times only go forwards.
    "an earlier heartbeat": (
        said(9, "POST", f"sessions/{NEW}/heartbeat", **beaten(7)),
        "was shown last_heartbeat 2026-01-01T00:00:07.000Z, after 2026-01-01T00:00:08.000Z was acknowledged",
    ),
    # active_sessions is exact, and no task is without its session.
    "too many active": (
        stored("machines", "m-0", active_sessions=[OLD]),
        f"active_sessions of m-0 is not exact: too many ['{OLD}'], missing []",
    ),
    "too few active": (
        stored("machines", "m-1", active_sessions=[]),
        f"active_sessions of m-1 is not exact: too many [], missing ['{NEW}']",
    ),
    "task without a session": (
        added("tasks", **task("lost", OTHER, "lost", (2, "pending"))),
        f"task lost has no session {OTHER}",
    ),
    "at a task that is done": (
        both(
            stored("sessions", NEW, current_task_id="done"),
            added("tasks", **task("done", NEW, "done", (6, "pending"), (7, "completed"))),
        ),
        f"session {NEW} is at task done, which is completed",
    ),
    "in progress under a recovered session": (
        added("tasks", **task("left", OLD, "left", (2, "pending"), (3, "in_progress"))),
        f"task left is in progress under recovered session {OLD}",
    ),
    "in progress under a failed session": (
        both(
            added("sessions", **session(OTHER, "q", "m-0", (1, "active"), (2, "failed"))),
            added("tasks", **task("left", OTHER, "left", (1, "pending"), (1, "in_progress"))),
        ),
        f"task left is in progress under failed session {OTHER}",
    ),
    "carried twice": (
        both(handed_over("copy"), copied("copy"), copied("again")),
        f"task left was carried 2 times to session {NEW}",
    ),
    "carried to nowhere": (
        handed_over("copy"),
        "task left is said to be carried to copy, which is not there",
    ),
    # The work is finished.
    "item not recorded": (gone("tasks", "of-b"), "orchestrated: b is not recorded as completed"),
    "item never done": (
        lambda one: one.effects.__delitem__(slice(2, None)),
        "orchestrated: b was never done",
    ),
    "item done twice by one run": (
        lambda one: one.works("b", 4),
        "orchestrated: here#0 did b 2 times",
    ),
    "item done again after its acknowledgement": (
        both(
            said(4, "PATCH", f"tasks/{OTHER}", {"status": "completed"}, session_id=DONE, updated_at=text(4)),
            gone("tasks", "of-b"),
            added("tasks", **task(OTHER, DONE, "b", (2, "pending"), (4, "completed"))),
            lambda one: one.works("b", 5, attempt="here#1"),
        ),
        "here#1 began b at 5.00",
    ),
    "item done again by a successor": (
        both(
            stored("sessions", DONE, recovered_from=OTHER),
            added(
                "sessions",
                **session(OTHER, "orchestrated", "m-0", (1, "active"), (2, "failed"), (3, "completed")),
                recovered_by=DONE,
            ),
            added("tasks", **task("before", OTHER, "b", (1, "pending"), (2, "completed"))),
        ),
        f"here#0 began b at 3.00 for session {DONE}, though it was completed in ['{OTHER}']",
    ),
    "never completed": (
        stored("sessions", DONE, **steps((1, "active"), (9, "failed"))),
        "orchestrated: no session is completed",
    ),
    # A server says what is the case.
    "500": (said(8, "GET", "sessions", code=500), "was answered with 500"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_broken_gives_one_sentence(round_: Round, rule: str) -> None:
    break_it, sentence = RULES[rule]
    break_it(round_)
    (found,) = round_.found()
    assert sentence in found


def test_a_bug_is_found_by_its_own_sentence_alone(round_: Round) -> None:
    another("m-2", recovered_from=OLD)(round_)
    assert [mutant for mutant in MUTANTS if bug_is_found(mutant, round_.found())] == [
        "recover-reads-then-writes"
    ]
