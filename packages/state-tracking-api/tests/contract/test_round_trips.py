"""How many round trips to the database each kind of request takes: the table in docs/BENCHMARKS.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from api_harness.api import Api, unique
from api_harness.commands import Commands, counted
from api_harness.servers import Documents
from state_tracking_api import clock, recovery, sessions, tasks
from state_tracking_api.embedded import Mongod
from state_tracking_api.lifecycle import SessionStatus, Stamp, TaskStatus
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


async def test_creating_a_session_takes_five(storage: Storage, commands: Commands) -> None:
    await sessions.create(storage, STAMP, project_id=unique("project"), machine_id=unique("machine"))
    assert commands.sent == {
        "update machines": 1,
        "find machines": 1,
        "update machine_locks": 1,
        "insert sessions": 1,
        "commitTransaction": 1,
    }


async def test_a_transition_of_a_task_takes_four(api: Api, storage: Storage, commands: Commands) -> None:
    task = api.task(api.session())
    to = TaskStatus.BLOCKED
    await tasks.patch(storage, task["task_id"], STAMP, status=to, error_message=None, patch=None)
    assert commands.sent == {
        "find tasks": 1,
        "update sessions": 1,
        "findAndModify tasks": 1,
        "commitTransaction": 1,
    }


@pytest.mark.parametrize("many", [1, 20])
async def test_a_recovery_takes_twelve_however_many_tasks_there_are(
    api: Api, storage: Storage, commands: Commands, many: int
) -> None:
    session = api.session()
    for _ in range(many):
        api.task(session)
    api.set_session(session, "stalled")
    await recovery.recover(
        storage,
        session["session_id"],
        STAMP,
        new_machine_id=unique("machine"),
        docker_slot=None,
        reset_failed_tasks=False,
        carry_open_tasks=True,
    )
    assert sum(commands.sent.values()) == 12, commands.sent
