"""How many round trips to the database each kind of request takes: the table in docs/BENCHMARKS.md."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from api_harness.api import Api, Json, unique
from api_harness.commands import Commands, counted
from api_harness.servers import Documents
from state_tracking_api import clock, machines, recovery, sessions, tasks
from state_tracking_api.embedded import Mongod
from state_tracking_api.lifecycle import MachineStatus, SessionStatus, Stamp, TaskStatus
from state_tracking_api.storage import Storage

STAMP = Stamp(clock.now(), "key:test")


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest_asyncio.fixture
async def storage(mongod: Mongod, database: Documents, commands: Commands) -> AsyncGenerator[Storage]:
    """The module's database as one server process has it."""
    async with counted(commands, mongod.uri, database.name) as opened:
        yield opened


async def test_a_heartbeat_takes_one(api: Api, storage: Storage, commands: Commands) -> None:
    await sessions.heartbeat(storage, api.session()["session_id"], STAMP, changes={}, patch=None)
    assert commands.sent == {"findAndModify sessions": 1}


async def test_one_that_wakes_a_stalled_session_takes_two(
    api: Api, storage: Storage, commands: Commands
) -> None:
    session = api.session_in("stalled")
    await sessions.heartbeat(storage, session["session_id"], STAMP, changes={}, patch=None)
    assert commands.sent == {"findAndModify sessions": 2}


async def test_a_patch_without_a_status_takes_one(api: Api, storage: Storage, commands: Commands) -> None:
    said: Json = {"changes": {"current_task_id": "one"}, "patch": {"a": 1}}
    await sessions.patch(storage, api.session()["session_id"], STAMP, status=None, **said)
    assert commands.sent == {"findAndModify sessions": 1}


async def test_reading_takes_one(api: Api, storage: Storage, commands: Commands) -> None:
    await sessions.get(storage, api.session()["session_id"])
    assert commands.sent == {"find sessions": 1}


async def test_lists_of_everything_share_their_count(api: Api, storage: Storage, commands: Commands) -> None:
    before = (await sessions.page(storage, {}, 1, 0))[1]
    api.session()
    commands.sent.clear()
    pages = await asyncio.gather(*(sessions.page(storage, {}, 1, 0) for _ in range(20)))
    assert {total for _, total in pages} == {before + 1}
    assert commands.sent == {"find sessions": 20, "aggregate sessions": 1}


async def test_the_states_are_counted_in_one_each_by_its_place_in_the_index(
    api: Api, storage: Storage, commands: Commands, database: Documents
) -> None:
    for status in ("completed", "failed", "failed"):
        api.session_in(status)
    counts = await sessions.count_by_status(storage)
    assert commands.sent == {"aggregate sessions": 1}
    assert counts == {
        str(status): database.sessions.count_documents({"status": str(status)}) for status in SessionStatus
    }
    assert counts["failed"] >= 2


Work = Callable[[Storage], Awaitable[object]]


@dataclass(frozen=True)
class Row:
    """A transaction: what makes it possible on a machine and is not counted, and what it sends."""

    given: Callable[[Api, str], Work]
    sent: str
    unregistered: str | None = ""
    """What comes on top where the machine is not registered; None where there has to be one."""


WITHOUT_WORK = "session to failed, or `mark-failed`; no task in progress"
WITH_WORK = "the same with tasks in progress"
LEAVES = "update machine_locks"
JOINS = "find machines, update machine_locks"
FROM = {
    "in_progress": "pending",
    "completed": "in_progress",
    "failed": "in_progress",
    "blocked": "in_progress",
}


def _creating(api: Api, machine: str) -> Work:
    del api
    return lambda storage: sessions.create(storage, STAMP, project_id=unique("project"), machine_id=machine)


def _session_to(status: str, *, working: bool = False) -> Callable[[Api, str], Work]:
    def given(api: Api, machine: str) -> Work:
        session = api.session(machine_id=machine)
        if working:
            api.task_in(session, "in_progress")
        to = SessionStatus(status)
        return lambda storage: sessions.patch(
            storage, session["session_id"], STAMP, status=to, changes={}, patch=None
        )

    return given


def _on_session(
    call: Callable[..., Awaitable[object]], status: str = "active", task: str = "pending", **how: Any
) -> Callable[[Api, str], Work]:
    """Something done to a session in a status, which has a task in one."""

    def given(api: Api, machine: str) -> Work:
        session = api.session(machine_id=machine)
        api.task_in(session, task)
        if status != "active":
            api.set_session(session, status)
        return lambda storage: call(storage, session["session_id"], STAMP, **how)

    return given


def _creating_a_task(api: Api, machine: str) -> Work:
    session = api.session(machine_id=machine)
    about = {"session_id": session["session_id"], "project_id": session["project_id"]}
    return lambda storage: tasks.create(storage, STAMP, **about, task_name="Write it")


def _task_to(status: str) -> Callable[[Api, str], Work]:
    def given(api: Api, machine: str) -> Work:
        task = api.task_in(api.session(machine_id=machine), FROM[status])
        why = "broken" if status == "failed" else None
        to = TaskStatus(status)
        return lambda storage: tasks.patch(
            storage, task["task_id"], STAMP, status=to, error_message=why, patch=None
        )

    return given


def _patching_a_task(api: Api, machine: str) -> Work:
    task = api.task(api.session(machine_id=machine))
    return lambda storage: tasks.patch(
        storage, task["task_id"], STAMP, status=None, error_message=None, patch={"a": 1}
    )


def _deleting_a_task(api: Api, machine: str) -> Work:
    task = api.task_in(api.session(machine_id=machine), "in_progress")
    return lambda storage: tasks.delete(storage, task["task_id"], STAMP)


def _registering(api: Api, machine: str) -> Work:
    del api, machine
    return _registration(unique("machine"), unique("host"))


def _registering_again(api: Api, machine: str) -> Work:
    return _registration(machine, api.read_machine(machine)["hostname"])


def _registration(machine: str, hostname: str) -> Work:
    return lambda storage: machines.register(
        storage, STAMP, hostname=hostname, docker_slots=[0], machine_id=machine, metadata=None
    )


def _on_machine(call: Callable[..., Awaitable[object]], **how: Any) -> Callable[[Api, str], Work]:
    def given(api: Api, machine: str) -> Work:
        del api
        return lambda storage: call(storage, machine, STAMP, **how)

    return given


RECOVER: Json = {
    "docker_slot": None,
    "reset_failed_tasks": True,
    "carry_open_tasks": True,
}
PATCH_MACHINE: Json = {"status": MachineStatus.MAINTENANCE, "patch": None}


def _recovering(api: Api, machine: str) -> Work:
    elsewhere = unique("machine")
    if api.get(f"/api/machines/{machine}").is_success:
        elsewhere = api.machine()["machine_id"]
    return _on_session(recovery.recover, "stalled", **RECOVER | {"new_machine_id": elsewhere})(api, machine)


TRANSACTIONS = {
    "create a session": Row(_creating, "update machines, insert sessions", JOINS),
    "session to paused": Row(_session_to("paused"), "find sessions, findAndModify sessions"),
    "session to completed": Row(
        _session_to("completed"), "find sessions, update machines, findAndModify sessions", LEAVES
    ),
    WITHOUT_WORK: Row(
        _on_session(sessions.mark_failed, error_message="lost", patch=None),
        "find sessions, update machines, find tasks, findAndModify sessions",
        LEAVES,
    ),
    WITH_WORK: Row(
        _session_to("failed", working=True),
        "find sessions, update machines, find tasks, update tasks, findAndModify sessions",
        LEAVES,
    ),
    "`mark-stalled`": Row(_on_session(sessions.mark_stalled), "find sessions, findAndModify sessions"),
    "`prepare-recovery`": Row(
        _on_session(recovery.prepare, "stalled", clear_machine_assignment=False),
        "find sessions, findAndModify sessions, find tasks",
    ),
    "`prepare-recovery` that clears the assignment": Row(
        _on_session(recovery.prepare, "stalled", clear_machine_assignment=True),
        "find sessions, update machines, findAndModify sessions, find tasks",
        LEAVES,
    ),
    "`recover` of a session with tasks, however many": Row(
        _recovering,
        "find sessions, update machines, update sessions, update machines, insert sessions, "
        "find tasks, insert tasks, update tasks",
        f"{LEAVES}, {JOINS}",
    ),
    "`archive`": Row(
        _on_session(recovery.archive, "completed"), "find sessions, findAndModify sessions, update tasks"
    ),
    "delete a session": Row(
        _on_session(sessions.delete), "findAndModify sessions, delete tasks, update machines", LEAVES
    ),
    "create a task": Row(_creating_a_task, "update sessions, insert tasks"),
    "task to any status": Row(_task_to("blocked"), "find tasks, update sessions, findAndModify tasks"),
    "metadata of a task": Row(_patching_a_task, "find tasks, findAndModify tasks"),
    "delete a task": Row(_deleting_a_task, "findAndModify tasks, update sessions"),
    "register a machine": Row(
        _registering,
        "find machines, find sessions, update machine_locks, insert machines",
        None,
    ),
    "register it again": Row(
        _registering_again, "find machines, find sessions, findAndModify machines", None
    ),
    "heartbeat of a machine": Row(
        _on_machine(machines.heartbeat, patch=None),
        "find machines, find sessions, findAndModify machines",
        None,
    ),
    "status or metadata of a machine": Row(
        _on_machine(machines.patch, **PATCH_MACHINE, docker_slots=None),
        "find machines, findAndModify machines",
        None,
    ),
    "slots of a machine": Row(
        _on_machine(machines.patch, **PATCH_MACHINE, docker_slots=[0]),
        "find machines, find sessions, findAndModify machines",
        None,
    ),
    "delete a machine": Row(
        _on_machine(machines.delete),
        "find machines, find sessions, update machine_locks, delete machines",
        None,
    ),
}
"""By their rows of the table in docs/BENCHMARKS.md; each also sends its commit."""


WHERE = [
    pytest.param(title, registered, id=f"{title}, {'registered' if registered else 'unregistered'}")
    for title, row in TRANSACTIONS.items()
    for registered in ([True] if row.unregistered is None else [True, False])
]


def _commands(title: str, *, registered: bool = True) -> Counter[str]:
    row = TRANSACTIONS[title]
    more = "" if registered else row.unregistered or ""
    return Counter(f"{row.sent}, {more}".strip(", ").split(", ")) + Counter(["commitTransaction"])


@pytest.mark.parametrize(("title", "registered"), WHERE)
async def test_a_transaction_sends_what_its_row_says(
    api: Api, storage: Storage, commands: Commands, title: str, registered: bool
) -> None:
    machine = api.machine()["machine_id"] if registered else unique("machine")
    await TRANSACTIONS[title].given(api, machine)(storage)
    assert commands.sent == _commands(title, registered=registered)


@pytest.mark.parametrize("status", FROM)
async def test_every_transition_of_a_task_sends_the_same(
    api: Api, storage: Storage, commands: Commands, status: str
) -> None:
    await _task_to(status)(api, unique("machine"))(storage)
    assert commands.sent == _commands("task to any status")


@pytest.mark.parametrize("working", [True, False], ids=["working", "idle"])
async def test_a_session_fails_by_a_patch_as_by_mark_failed(
    api: Api, storage: Storage, commands: Commands, working: bool
) -> None:
    mark = _on_session(
        sessions.mark_failed,
        task="in_progress" if working else "pending",
        error_message="lost",
        patch=None,
    )
    for fail in (mark, _session_to("failed", working=working)):
        work = fail(api, api.machine()["machine_id"])
        await work(storage)
        assert commands.sent == _commands(WITH_WORK if working else WITHOUT_WORK)
        commands.sent.clear()


def test_the_table_in_the_documents_is_this_one() -> None:
    page = (Path(__file__).parents[4] / "docs/BENCHMARKS.md").read_text()
    told = page.partition("Round trips to the database")[2].partition("\n## ")[0]
    shown = re.findall(r"^\| (.+) \| (\d+) \| (\d*) \|$", told, re.MULTILINE)
    assert {title: (known, unknown) for title, *(known, unknown) in shown} == {
        title: (
            str(_commands(title).total()),
            "" if row.unregistered is None else str(_commands(title, registered=False).total()),
        )
        for title, row in TRANSACTIONS.items()
    }


@pytest.mark.parametrize("many", [1, 20])
async def test_a_recovery_sends_the_same_however_many_tasks_there_are(
    api: Api, storage: Storage, commands: Commands, many: int
) -> None:
    session = api.session()
    for _ in range(many):
        api.task(session)
    api.set_session(session, "stalled")
    to: Json = RECOVER | {"new_machine_id": unique("machine")}
    await recovery.recover(storage, session["session_id"], STAMP, **to)
    assert commands.sent == _commands("`recover` of a session with tasks, however many", registered=False)
