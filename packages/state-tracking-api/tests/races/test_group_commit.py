"""Heartbeats that share their round trips: each is answered as if it had been alone, whatever its company."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import pytest_asyncio
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from api_harness.api import Api, Json, ago, expect, uuid4
from api_harness.commands import Commands, counted
from api_harness.server import wait_until
from api_harness.servers import Document, Documents
from operations.failpoints import failing, running
from state_tracking_api import clock, group_commit, sessions
from state_tracking_api.embedded import Mongod
from state_tracking_api.errors import ApiError
from state_tracking_api.group_commit import TOGETHER, UNDER_WAY
from state_tracking_api.lifecycle import Stamp
from state_tracking_api.storage import Storage

MANY = 40


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def together_seconds() -> float:
    """How long a group may take: longer than a slow machine needs, so that nothing else sends them apart."""
    return 30


@pytest_asyncio.fixture
async def storage(
    mongod: Mongod,
    database: Documents,
    commands: Commands,
    together_seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncGenerator[Storage]:
    """The module's database as one server process has it."""
    monkeypatch.setattr(group_commit, "TOGETHER_TIMEOUT_SECONDS", together_seconds)
    patient = {"db_timeout_ms": 60_000, "request_timeout_ms": 100_000}
    async with counted(commands, mongod.uri, database.name, **patient) as opened:
        yield opened


@pytest.fixture
def beat(storage: Storage) -> Callable[..., Awaitable[Document]]:
    """Sends one heartbeat of a session by its id."""

    async def send(session_id: str, at: Stamp | None = None, **changes: object) -> Document:
        stamp = at or Stamp(clock.now(), "key:test")
        return await sessions.heartbeat(storage, session_id, stamp, changes=changes, patch=None)

    return send


Beat = Callable[..., Awaitable[Document]]


def _ids(api: Api, count: int) -> list[str]:
    return [str(api.session()["session_id"]) for _ in range(count)]


async def test_those_that_wait_share_two_commands(
    api: Api, beat: Beat, database: Documents, commands: Commands
) -> None:
    ids = _ids(api, MANY)
    stamp = Stamp(clock.now() + timedelta(seconds=1), "key:test")
    answers = await asyncio.gather(*(beat(one, stamp) for one in ids))
    assert commands.on("sessions") == {"findAndModify": UNDER_WAY, "update": 1, "find": 1}
    assert [answer["session_id"] for answer in answers] == ids
    assert {answer["last_heartbeat"] for answer in answers} == {stamp.now}
    for stored in database.sessions.find({"session_id": {"$in": ids}}):
        assert stored["last_heartbeat"] == stored["updated_at"] == stamp.now
        assert stored["beats"].count(stamp.now) == 1


async def test_more_than_a_command_takes_go_in_several(api: Api, beat: Beat, commands: Commands) -> None:
    (one,) = _ids(api, 1)
    times = [clock.now() + timedelta(milliseconds=n) for n in range(2 * TOGETHER)]
    answers = await asyncio.gather(*(beat(one, Stamp(at, "key:test")) for at in reversed(times)))
    assert commands.on("sessions")["update"] <= 3
    assert commands.on("sessions")["findAndModify"] == UNDER_WAY
    said = zip(answers, reversed(times), strict=True)
    assert all(answer["last_heartbeat"] >= at for answer, at in said)
    assert (await beat(one, Stamp(times[0], "key:test")))["last_heartbeat"] == times[-1]


async def test_one_alone_is_one_command(api: Api, beat: Beat, commands: Commands) -> None:
    for one in _ids(api, 3):
        await beat(one)
    assert commands.on("sessions") == {"findAndModify": 3}


def _of_every_kind(api: Api) -> dict[str, tuple[str, Json]]:
    """Sessions in every state in which a heartbeat may find one, and what it says besides."""
    kinds: dict[str, tuple[str, Json]] = {}
    for status in ("active", "paused", "stalled", "completed", "failed"):
        kinds[status] = api.session_in(status)["session_id"], {}
    recovered = api.session_in("stalled")
    expect(api.recover(recovered), 201)
    kinds["recovered"] = recovered["session_id"], {}
    fenced = api.session_in("stalled")
    expect(api.act(fenced, "prepare-recovery", {"clear_machine_assignment": True}), 200)
    kinds["fenced"] = fenced["session_id"], {}
    kinds["unknown"] = uuid4(), {}
    kinds["at work"] = api.session()["session_id"], {"current_task_id": "of another tracker"}
    kinds["without work"] = api.session()["session_id"], {"current_task_id": None}
    late = api.session()
    done = api.task_in(late, "in_progress")
    api.set_task(done, "completed")
    kinds["late"] = late["session_id"], {"current_task_id": done["task_id"]}
    return kinds


async def _outcome(beating: Awaitable[Document]) -> Json:
    try:
        found = await beating
    except ApiError as error:
        return {"error": type(error).__name__, "keys": sorted(error.extra)}
    kept = ("status", "last_heartbeat", "updated_at", "completed_at", "metadata", "recovered_by")
    named = found.get("current_task_id") is not None
    return {**{name: found.get(name) for name in kept}, "has a task": named, "fields": sorted(found)}


async def test_each_is_answered_as_if_it_were_alone(
    api: Api, beat: Beat, database: Documents, commands: Commands
) -> None:
    stamp = Stamp(clock.now() + timedelta(seconds=30), "key:test")
    alone, together = _of_every_kind(api), _of_every_kind(api)
    one_by_one = {kind: await _outcome(beat(one, stamp, **says)) for kind, (one, says) in alone.items()}
    company = [beat(one, stamp) for one in _ids(api, UNDER_WAY)]
    commands.sent.clear()
    answers = await asyncio.gather(
        *company, *(_outcome(beat(one, stamp, **says)) for one, says in together.values())
    )
    at_once = dict(zip(together, answers[len(company) :], strict=True))
    assert commands.on("sessions")["update"] == 1
    assert at_once == one_by_one
    assert {kind for kind, found in at_once.items() if "error" not in found} == {
        *("active", "paused", "stalled", "at work", "without work", "late")
    }
    stored = {one["session_id"]: one for one in database.sessions.find()}
    for kind, (one, _) in alone.items():
        same, other = stored.get(one, {}), stored.get(together[kind][0], {})
        assert other.get("status") == same.get("status")
        for field in ("last_heartbeat", "updated_at"):
            assert (other.get(field) == stamp.now) == (same.get(field) == stamp.now), (kind, field)


@pytest.mark.parametrize("together_seconds", [1])
async def test_one_that_waits_for_a_lock_holds_up_nobody_else(
    api: Api, beat: Beat, database: Documents, mongo: MongoClient[Document], commands: Commands
) -> None:
    locked, *free = _ids(api, 12)
    stamp = Stamp(clock.now(), "key:test")
    with mongo.start_session() as other, other.start_transaction():
        database.sessions.update_one({"session_id": locked}, {"$set": {"held": True}}, session=other)
        company = [asyncio.ensure_future(beat(one, stamp)) for one in _ids(api, UNDER_WAY)]
        held = asyncio.ensure_future(beat(locked, stamp))
        await asyncio.gather(*company, *(beat(one, stamp) for one in free))
        assert not held.done()
        # Nor is anything sent together for a while: it would be sent twice.
        commands.sent.clear()
        await asyncio.gather(*(beat(one, stamp) for one in free))
        assert commands.on("sessions") == {"findAndModify": len(free)}
        assert not held.done()
        other.commit_transaction()
    assert (await held)["last_heartbeat"] == stamp.now


async def test_where_all_under_way_wait_for_locks_the_others_do_not(
    api: Api, beat: Beat, database: Documents, mongo: MongoClient[Document]
) -> None:
    locked = _ids(api, UNDER_WAY)
    free = _ids(api, 5)
    stamp = Stamp(clock.now(), "key:test")
    with mongo.start_session() as other, other.start_transaction():
        within = {"session_id": {"$in": locked}}
        database.sessions.update_many(within, {"$set": {"held": True}}, session=other)
        held = [asyncio.ensure_future(beat(one, stamp)) for one in locked]
        await asyncio.to_thread(
            wait_until,
            lambda: len(running(mongo, database, "findAndModify")) == len(locked),
            "they wait for the lock",
        )
        await asyncio.gather(*(beat(one, stamp) for one in free))
        assert not any(one.done() for one in held)
        other.commit_transaction()
    assert {one["last_heartbeat"] for one in await asyncio.gather(*held)} == {stamp.now}


async def test_whoever_goes_away_takes_nobody_along(api: Api, beat: Beat, database: Documents) -> None:
    ids = _ids(api, 10)
    stamp = Stamp(clock.now() + timedelta(seconds=1), "key:test")
    beating = [asyncio.ensure_future(beat(one, stamp)) for one in ids]
    await asyncio.sleep(0)
    beating[UNDER_WAY + 1].cancel()
    answers = await asyncio.gather(*beating, return_exceptions=True)
    assert isinstance(answers.pop(UNDER_WAY + 1), asyncio.CancelledError)
    assert all(isinstance(answer, dict) for answer in answers)
    left = {"session_id": ids.pop(UNDER_WAY + 1), "beats": stamp.now}
    assert database.sessions.count_documents(left) == 0
    assert database.sessions.count_documents({"session_id": {"$in": ids}, "beats": stamp.now}) == len(ids)


@pytest.mark.parametrize("command", ["update", "find"])
async def test_where_they_cannot_go_together_each_goes_alone(
    api: Api, beat: Beat, database: Documents, mongo: MongoClient[Document], command: str
) -> None:
    ids = _ids(api, 10)
    stamp = Stamp(clock.now() + timedelta(seconds=1), "key:test")
    with failing(mongo, database, "sessions", command, errorCode=96):  # OperationFailed
        await asyncio.gather(*(beat(one, stamp) for one in ids))
    stored = database.sessions.find({"session_id": {"$in": ids}})
    assert [one["last_heartbeat"] for one in stored] == [stamp.now] * len(ids)
    for one in ids:
        shown = expect(api.get(f"/api/sessions/{one}/events"), 200)["heartbeats"]
        assert shown.count(clock.iso(stamp.now)) == 1


async def test_one_that_the_database_refuses_does_not_send_the_others_twice(
    api: Api, beat: Beat, database: Documents, commands: Commands
) -> None:
    refused, *others = _ids(api, 10)
    # As a document of an older version may be, and a pushed beat then breaks the update.
    database.sessions.update_one(
        {"session_id": refused}, {"$set": {"beats": "none"}}, bypass_document_validation=True
    )
    stamp = Stamp(clock.now() + timedelta(seconds=1), "key:test")
    company = [asyncio.ensure_future(beat(one, stamp)) for one in _ids(api, UNDER_WAY)]
    await asyncio.sleep(0)
    commands.sent.clear()
    answers = await asyncio.gather(*(beat(one, stamp) for one in (refused, *others)), return_exceptions=True)
    await asyncio.gather(*company)
    assert isinstance(answers[0], PyMongoError)
    assert all(isinstance(answer, dict) for answer in answers[1:])
    assert commands.on("sessions")["findAndModify"] <= UNDER_WAY + 1


@asynccontextmanager
async def _written_not_read(
    api: Api, beat: Beat, database: Documents, mongo: MongoClient[Document], **says: object
) -> AsyncGenerator[tuple[str, asyncio.Future[Document]]]:
    """A session and its heartbeat: written, and not read while the last of its group waits for a lock."""
    first, *others = _ids(api, 4)
    stamp = Stamp(clock.now() + timedelta(seconds=1), "key:test")
    with mongo.start_session() as other, other.start_transaction():
        locked = {"session_id": others[-1]}
        database.sessions.update_one(locked, {"$set": {"held": True}}, session=other)
        company = [asyncio.ensure_future(beat(one, stamp)) for one in _ids(api, UNDER_WAY)]
        beating = asyncio.ensure_future(beat(first, stamp, **says))
        company += [asyncio.ensure_future(beat(one, stamp)) for one in others]
        written = {"session_id": first, "last_heartbeat": stamp.now, **says}
        await asyncio.to_thread(
            wait_until, lambda: database.sessions.count_documents(written) == 1, "its part is written"
        )
        yield first, beating
        other.commit_transaction()
    await asyncio.gather(*company)


async def test_what_others_have_said_since_is_not_taken_back(
    api: Api, beat: Beat, database: Documents, mongo: MongoClient[Document]
) -> None:
    """Where all were written, the task that one named may be another one by the time of the reading."""
    held = _written_not_read(api, beat, database, mongo, current_task_id="first")
    async with held as (overtaken, beating):
        expect(api.patch(f"/api/sessions/{overtaken}", json={"current_task_id": "second"}), 200)
    await beating
    assert (database.sessions.find_one({"session_id": overtaken}) or {})["current_task_id"] == "second"


async def test_one_that_ends_in_between_is_not_told_that_it_lives(
    api: Api, beat: Beat, database: Documents, mongo: MongoClient[Document]
) -> None:
    """After the update, before the reading: what is answered must be true of one moment in between."""
    async with _written_not_read(api, beat, database, mongo) as (ended, beating):
        expect(api.act({"session_id": ended}, "mark-failed", {"error_message": "x"}), 200)
    with pytest.raises(ApiError, match="failed"):
        await beating
    assert (database.sessions.find_one({"session_id": ended}) or {})["status"] == "failed"


async def test_the_silent_are_revived_and_their_time_is_kept(
    api: Api, beat: Beat, database: Documents
) -> None:
    """Among many, those that were marked stalled, with their event: the update of all passes over them."""
    silent = [api.session_in("stalled")["session_id"] for _ in range(5)]
    database.sessions.update_many(
        {"session_id": {"$in": silent}}, {"$set": {"last_heartbeat": ago(minutes=10)}}
    )
    stamp = Stamp(clock.now(), "key:test")
    answers = await asyncio.gather(*(beat(one, stamp) for one in [*_ids(api, 5), *silent]))
    assert {answer["status"] for answer in answers} == {"active"}
    for stored in database.sessions.find({"session_id": {"$in": silent}}):
        assert (stored["events"][-1]["from"], stored["events"][-1]["to"]) == ("stalled", "active")
        assert stored["last_heartbeat"] == stamp.now
