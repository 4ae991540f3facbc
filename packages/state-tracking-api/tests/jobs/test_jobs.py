"""Background jobs: leases, at once, killed half-way, and when they are due."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure
from structlog.testing import capture_logs

from api_harness.api import Api, Json, ago
from api_harness.server import clean_environment, run, wait_until
from api_harness.servers import Document, Documents, Servers
from operations import silence
from operations.failpoints import end, failing, running
from state_tracking_api import background, jobs, presence, settings
from state_tracking_api.embedded import Mongod
from state_tracking_api.errors import ServiceUnavailable
from state_tracking_api.settings import Settings
from state_tracking_api.storage import Storage

COMMAND = Path(sys.executable).with_name("state-tracking-api")


@pytest.fixture
def configured(mongod: Mongod, own: Servers) -> Settings:
    """Settings on a fresh database."""
    return settings.load(mongodb_uri=mongod.uri, mongodb_database=own.database().name, api_keys=str(uuid4()))


@pytest_asyncio.fixture
async def storage(configured: Settings) -> AsyncGenerator[Storage]:
    """A fresh database, set up."""
    opened = Storage(configured)
    await opened.prepare()
    yield opened
    await opened.close()


async def test_a_lease_is_held_by_one_of_many(storage: Storage) -> None:
    inside = 0
    most = 0
    held: list[bool] = []
    entered, decided = asyncio.Event(), asyncio.Event()

    async def contend() -> None:
        nonlocal inside, most
        async with jobs.lease(storage, "contended") as mine:
            held.append(mine)
            if len(held) == 20:
                decided.set()
            if mine:
                inside += 1
                most = max(most, inside)
                await entered.wait()
                inside -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(contend())
        await decided.wait()
        entered.set()
    assert held.count(True) == 1
    assert most == 1


async def test_a_lease_is_free_again_when_its_holder_is_done_or_fails(storage: Storage) -> None:
    async def fail() -> None:
        async with jobs.lease(storage, "failing") as mine:
            assert mine
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with jobs.lease(storage, "failing") as mine:
        assert mine


async def test_a_lease_of_a_dead_holder_runs_out(storage: Storage) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await storage.jobs.insert_one({"_id": "orphaned", "lease_owner": "dead", "lease_until": past})
    async with jobs.lease(storage, "orphaned") as mine:
        assert mine


async def test_a_job_that_runs_elsewhere_is_skipped(storage: Storage, configured: Settings) -> None:
    async with jobs.lease(storage, "cleanup") as mine:
        assert mine
        assert "skipped" in await jobs.run(storage, configured, "cleanup")
    assert await jobs.run(storage, configured, "cleanup") == {"deleted_sessions": 0, "deleted_tasks": 0}


@pytest.mark.parametrize("name", ["cleanup", "check-consistency"])
async def test_a_job_that_is_the_trial_of_the_circuit_reports_back(
    storage: Storage, configured: Settings, name: str
) -> None:
    seconds = 0.0
    storage.breaker._monotonic = lambda: seconds
    for _ in range(5):
        admitted = storage.breaker.admits()
        assert admitted
        storage.breaker.failed(admitted)
    with pytest.raises(ServiceUnavailable, match="circuit open"):
        await jobs.run(storage, configured, name)
    seconds = 30.0
    await jobs.run(storage, configured, name)
    assert storage.breaker.state == "closed"


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        ("2026-01-18T02:00:01Z", "2026-01-19T01:59:59Z", False),
        ("2026-01-18T02:00:01Z", "2026-01-19T02:00:00Z", True),
        ("2026-01-19T02:00:00Z", "2026-01-19T23:00:00Z", False),
        ("2026-01-16T02:00:00Z", "2026-01-19T01:00:00Z", True),
    ],
)
def test_the_cleanup_is_due_daily_at_two_and_made_up_for(
    configured: Settings, last: str, now: str, due: bool
) -> None:
    job = jobs.JOBS["cleanup"]
    assert job.due(configured, datetime.fromisoformat(now), datetime.fromisoformat(last)) == due


def job(name: str, configured: Settings, *more: str) -> subprocess.CompletedProcess[str]:
    """Run `state-tracking-api job` against the database of these settings."""
    environment = {
        "MONGODB_URI": configured.mongodb_uri.get_secret_value(),
        "MONGODB_DATABASE": configured.mongodb_database,
        "API_KEYS": str(uuid4()),
    }
    return run("job", name, *more, environment=environment)


@pytest.mark.parametrize("name", sorted(jobs.JOBS))
def test_every_job_runs_from_outside_and_prints_its_result(name: str, configured: Settings) -> None:
    done = job(name, configured)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_an_unknown_job_is_refused_with_the_names_of_all(configured: Settings) -> None:
    done = job("tidy", configured)
    assert done.returncode == 2
    assert "detect-failures" in done.stderr


def test_a_job_without_a_database_says_so_and_fails() -> None:
    nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"
    done = run("job", "cleanup", environment={"MONGODB_URI": nowhere, "API_KEYS": str(uuid4())})
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cleanup failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_ten_instances_mark_each_silent_session_once(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        silent = [api.session()["session_id"] for _ in range(30)]
    database["sessions"].update_many({}, {"$set": {"last_heartbeat": ago(minutes=5)}})
    instances = [own.start(database, SCHEDULER="on") for _ in range(3)]

    def all_marked() -> bool:
        return database["sessions"].count_documents({"status": "stalled"}) == len(silent)

    wait_until(all_marked, "every silent session is stalled")
    for session in database["sessions"].find():
        assert [event["to"] for event in session["events"]] == ["active", "stalled"]
    marks = [
        line["context"]["session_id"]
        for instance in instances
        for line in instance.lines
        if line["message"] == "Stalled session detected"
    ]
    assert sorted(marks) == sorted(silent)


@pytest.mark.slow
def test_silence_is_noticed_while_a_cleanup_takes_its_time(
    own: Servers, mongo: MongoClient[Document]
) -> None:
    database = own.database()
    database.jobs.insert_one({"_id": "cleanup", "last_run": ago(days=3)})
    cleaning = {"_id": "cleanup", "lease_owner": {"$type": "string"}}
    # It ends with a look for orphans among the tasks, which lasts.
    with failing(mongo, database, "tasks", "aggregate", blockConnection=True, blockTimeMS=60_000):
        server = own.start(database, SCHEDULER="on")
        with Api(server.base_url, server.key) as api:
            session = api.session()
        wait_until(lambda: database.jobs.find_one(cleaning), "the cleanup is under way")
        mine = {"session_id": session["session_id"]}
        database.sessions.update_one(mine, {"$set": {"last_heartbeat": ago(minutes=5)}})
        wait_until(lambda: database.sessions.find_one(mine | {"status": "stalled"}), "it is marked")
        assert database.jobs.find_one(cleaning), "the cleanup is under way still"
        end(mongo, running(mongo, database, "aggregate"))
    found = database.jobs.find_one({"_id": "presence"})
    assert found
    assert found["back_at"] is None, "the service was there all the time"


async def test_an_outage_is_said_once_by_many_though_the_answer_to_the_first_sign_was_lost(
    storage: Storage, configured: Settings
) -> None:
    away_after, grace = timedelta(seconds=10), configured.stall_threshold
    with capture_logs() as said:
        for _ in range(2):
            await presence.note(storage, away_after, grace)
            a_minute_ago = [{"$set": {"seen_at": {"$subtract": ["$seen_at", 60_000]}}}]
            await storage.jobs.update_one({"_id": "presence"}, a_minute_ago)
            await presence.note(storage, away_after, grace)  # nobody gets to know what came of it
            signs = (jobs._note_presence(storage, configured, away_after) for _ in range(10))
            await asyncio.gather(*signs)
    outages = [line for line in said if line["event"].startswith("The service was away")]
    assert len(outages) == 2
    assert outages[0]["back_at"] < outages[1]["back_at"]


async def test_a_clock_that_jumps_ahead_makes_nobody_silent(storage: Storage, configured: Settings) -> None:
    living = silence.session(datetime.now(UTC))
    await storage.sessions.insert_one(living)
    ahead = await jobs.run(
        storage, configured, "detect-failures", now=lambda: datetime.now(UTC) + timedelta(hours=1)
    )
    assert ahead["marked_stalled"] == 0


@pytest.mark.parametrize(
    ("failure", "judges_silence", "pause"),
    [
        (ZeroDivisionError(), False, 60),
        (OperationFailure("refused"), False, 60),
        (OperationFailure("refused"), True, 5),
        (AutoReconnect("away"), False, 0),
    ],
    ids=repr,
)
async def test_a_job_that_fails_is_left_alone_for_a_while(
    storage: Storage,
    configured: Settings,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    judges_silence: bool,
    pause: int,
) -> None:
    attempts = rounds = 0
    moment = datetime.now(UTC)
    looked = asyncio.Condition()

    async def fail(*_: object) -> Json:
        nonlocal attempts
        attempts += 1
        raise failure

    async def look(*_: object) -> Json:
        nonlocal rounds
        async with looked:
            rounds += 1
            looked.notify_all()
        return {}

    async def three_rounds() -> int:
        nonlocal attempts
        attempts, until = 0, rounds + 3
        async with looked, asyncio.timeout(60):
            await looked.wait_for(lambda: rounds >= until)
        return attempts

    def always(_settings: Settings, _now: datetime, _last: datetime) -> bool:
        return True

    both = {
        name: jobs.Job(name, work, always, judges_silence=judges_silence)
        for name, work in (("failing", fail), ("looking", look))
    }
    monkeypatch.setattr(jobs, "JOBS", both)
    monkeypatch.setattr(jobs, "WAKE_SECONDS", 0.001)
    scheduler = asyncio.create_task(jobs.Scheduler(storage, configured, lambda: moment).run())
    try:
        if pause:
            assert await three_rounds() == 1
            moment += timedelta(seconds=pause - 1)
            assert await three_rounds() == 0
            moment += timedelta(seconds=1)
            assert await three_rounds() == 1
        else:
            assert await three_rounds() >= 2
    finally:
        await background.end(scheduler)


@pytest.mark.slow
async def test_the_scheduler_ends_at_whatever_moment_it_is_told_to(
    storage: Storage, configured: Settings
) -> None:
    """Of a single cancellation each, one in twenty was lost in the driver, and the server never ended."""
    for moment in range(100):
        scheduler = asyncio.create_task(jobs.Scheduler(storage, configured).run())
        await asyncio.sleep(moment / 3000)  # any moment of its first two rounds
        scheduler.cancel()
        ended, _ = await asyncio.wait({scheduler}, timeout=30)
        assert ended, f"cancelled after {moment / 3:.1f} ms it goes on"


@pytest.mark.slow
def test_a_cleanup_killed_half_way_is_finished_by_the_next(own: Servers, mongod: Mongod) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = api.session()
    _fill_with_expired(database, 3_000, session["session_id"])
    killed = subprocess.Popen(
        [COMMAND, "job", "cleanup"],
        env=clean_environment(
            {
                "MONGODB_URI": mongod.uri,
                "MONGODB_DATABASE": database.name,
                "API_KEYS": str(uuid4()),
            }
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: database["sessions"].count_documents({}) < 3_000, "the cleanup has begun")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    _no_session_without_its_tasks(database)
    with Api(server.base_url, server.key) as api:
        # What the killed one had open stays locked until its transaction's lifetime is over.
        wait_until(lambda: api.post("/api/sessions/cleanup").status_code == 200, "it is cleaned up", 60)
    assert [kept["session_id"] for kept in database["sessions"].find()] == [session["session_id"]]
    assert database["tasks"].count_documents({}) == 0


def _fill_with_expired(database: Documents, count: int, like: str) -> None:
    """Sessions that ended forty days ago, each with a task."""
    model = database["sessions"].find_one({"session_id": like})
    assert model is not None
    old = ago(days=40)
    sessions = [
        {
            **{name: value for name, value in model.items() if name != "_id"},
            "session_id": str(uuid4()),
            "status": "completed",
            "completed_at": old,
        }
        for _ in range(count)
    ]
    database["sessions"].insert_many(sessions)
    database["tasks"].insert_many(
        {
            "task_id": str(uuid4()),
            "session_id": session["session_id"],
            "project_id": session["project_id"],
            "task_name": "old",
            "status": "completed",
            "created_at": old,
            "updated_at": old,
        }
        for session in sessions
    )


def _no_session_without_its_tasks(database: Documents) -> None:
    # Of one moment: the last transaction of the killed one may be committed between two reads.
    with database.client.start_session(snapshot=True) as moment:
        ended = database["sessions"].find({"status": "completed"}, session=moment)
        sessions = {session["session_id"] for session in ended}
        assert {task["session_id"] for task in database["tasks"].find(session=moment)} == sessions
