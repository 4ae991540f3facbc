"""Who counts as silent: thresholds of one's own, machines, abandonment; the query and the rule agree."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pymongo import MongoClient

from api_harness.api import Api, Json, expect, expect_error, uuid4
from api_harness.server import run
from api_harness.servers import Document, Documents, Servers
from operations.reading import metric
from operations.silence import now, session, sessions
from state_tracking_api import lifecycle
from state_tracking_api.embedded import Mongod
from state_tracking_api.health import overdue
from state_tracking_api.lifecycle import Outage


def job(own: Servers, database: Documents, name: str, **environment: str) -> None:
    """Run a job once from the command line."""
    chosen = {"MONGODB_URI": own.uri, "MONGODB_DATABASE": database.name, "API_KEYS": uuid4()} | environment
    done = run("job", name, environment=chosen)
    assert done.returncode == 0, done.stderr


def status_of(database: Documents, identifier: str) -> str:
    """The stored status."""
    found = database.sessions.find_one({"session_id": identifier})
    assert found
    return found["status"]


def health(api: Api, identifier: str) -> Json:
    return expect(api.get(f"/api/sessions/{identifier}/health"), 200)


def test_a_sessions_own_threshold_wins_everywhere(own: Servers) -> None:
    database = own.database()
    server = own.start(database)  # the default is three minutes
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
        minute_ago, five_ago = (now() - timedelta(minutes=minutes) for minutes in (1, 5))
        [strict] = sessions(database, 1, minute_ago, stall_threshold_ms=30_000)
        [patient] = sessions(database, 1, five_ago, stall_threshold_ms=600_000)
        [default] = sessions(database, 1, minute_ago)
        for identifier, stalled, threshold in (
            (strict, True, 30_000),
            (patient, False, 600_000),
            (default, False, 180_000),
        ):
            found = health(api, identifier)
            assert (found["is_stalled"], found["is_healthy"]) == (stalled, not stalled)
            assert found["stall_threshold_ms"] == threshold
        counted = expect(api.get("/api/sessions/health"), 200)
        assert (counted["active_sessions"], counted["stalled_sessions"]) == (2, 1)
        listed = expect(api.get("/api/sessions/stalled"), 200)["stalled_sessions"]
        assert [one["session_id"] for one in listed] == [strict]
        assert metric(api, "stalled_sessions_count") == 1
        assert expect(api.post("/api/sessions/detect-failures"), 200)["session_ids"] == [strict]


def test_a_threshold_is_set_at_creation_and_changed_by_patch(api: Api) -> None:
    created = api.session(stall_threshold_ms=10_000)
    assert created["stall_threshold_ms"] == 10_000
    path = f"/api/sessions/{created['session_id']}"
    changed = expect(api.patch(path, json={"stall_threshold_ms": 86_400_000}), 200)
    assert (
        changed["stall_threshold_ms"]
        == health(api, created["session_id"])["stall_threshold_ms"]
        == 86_400_000
    )
    for wrong in (9_999, 86_400_001, 0, "10000", True, 10_000.5):
        expect_error(api.patch(path, json={"stall_threshold_ms": wrong}), 400, fields=("stall_threshold_ms",))


def test_a_successor_has_its_predecessors_threshold(api: Api) -> None:
    stalled = api.session_in("stalled", stall_threshold_ms=20_000)
    assert expect(api.recover(stalled), 201)["stall_threshold_ms"] == 20_000


@pytest.mark.slow
def test_who_is_stalled_for_longer_than_abandon_after_hours_has_failed(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
        stalled = {"status": "stalled"}
        hours = timedelta(hours=1)
        [abandoned] = sessions(database, 1, now() - 25 * hours, **stalled)
        [waiting] = sessions(database, 1, now() - 23 * hours, **stalled)
        [paused] = sessions(database, 1, now() - 25 * hours, status="paused")
        day = 24 * 3600 * 1000
        [patient] = sessions(database, 1, now() - 25 * hours, stall_threshold_ms=day, **stalled)
        job(own, database, "fail-abandoned", ABANDON_AFTER_HOURS="0")
        assert status_of(database, abandoned) == "stalled", "0 turns it off"
        job(own, database, "fail-abandoned")
        assert status_of(database, abandoned) == "failed"
        assert status_of(database, waiting) == "stalled"
        assert status_of(database, paused) == "paused"
        assert status_of(database, patient) == "stalled", "it has been stalled for an hour only"
        failed = api.read_session(abandoned)
        assert "24 hours" in failed["metadata"]["error_message"]
        last = expect(api.get(f"/api/sessions/{abandoned}/events"), 200)["events"][-1]
        assert (last["to"], last["actor"]) == ("failed", "job:fail-abandoned")
        job(own, database, "fail-abandoned", ABANDON_AFTER_HOURS="22")
        assert status_of(database, waiting) == "failed"


@pytest.mark.slow
def test_the_services_own_absence_does_not_abandon_anybody(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
        outage = {"gone_at": now() - timedelta(hours=26), "back_at": now() - timedelta(hours=1)}
        database.jobs.insert_one({"_id": "presence", **outage})
        [stalled] = sessions(database, 1, now() - timedelta(hours=27), status="stalled")
        [dead] = sessions(database, 1, now() - timedelta(hours=50), status="stalled")
        job(own, database, "fail-abandoned")
        assert (status_of(database, stalled), status_of(database, dead)) == ("stalled", "failed")


@pytest.mark.slow
def test_machines_that_say_nothing_go_offline_unless_a_session_on_them_beats(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        machines = {name: api.machine() for name in ("silent", "recent", "busy", "in_maintenance")}
        ids = {name: machine["machine_id"] for name, machine in machines.items()}
        expect(api.patch(f"/api/machines/{ids['in_maintenance']}", json={"status": "maintenance"}), 200)
        api.session(machine_id=ids["busy"])
        for name, minutes in (("silent", 6), ("recent", 4), ("busy", 6), ("in_maintenance", 6)):
            last = {"$set": {"last_heartbeat": now() - timedelta(minutes=minutes)}}
            database.machines.update_one({"machine_id": ids[name]}, last)
        job(own, database, "mark-machines-offline")
        statuses = {name: api.read_machine(machine)["status"] for name, machine in machines.items()}
        assert statuses == {
            "silent": "offline",
            "recent": "online",
            "busy": "online",
            "in_maintenance": "maintenance",
        }
        job(own, database, "mark-machines-offline", MACHINE_OFFLINE_THRESHOLD_MS="180000")
        assert api.read_machine(machines["recent"])["status"] == "offline"
        expect(api.post(f"/api/machines/{ids['silent']}/heartbeat"), 200)
        assert api.read_machine(machines["silent"])["status"] == "online"


NOW = datetime(2026, 1, 19, 12, 0, tzinfo=UTC)
# Whole milliseconds, as the database stores them, many of them on the edges of the rules.
SPANS = st.one_of(
    st.integers(0, 120_000), st.sampled_from([0, 1, 9_999, 10_000, 10_001, 30_000, 60_000, 60_001, 90_000])
).map(lambda milliseconds: timedelta(milliseconds=milliseconds))
THRESHOLDS = st.sampled_from([10_000, 30_000, 60_000])
OUTAGES = st.none() | st.tuples(SPANS, SPANS).map(
    lambda spans: Outage(gone_at=NOW - spans[0] - spans[1], back_at=NOW - spans[0])
)


@st.composite
def stored(draw: st.DrawFn) -> Document:
    """A session that was created before it was last heard of."""
    last = NOW - draw(SPANS)
    status = draw(st.sampled_from(["active", "active", "active", "paused", "stalled", "failed"]))
    own = draw(st.none() | THRESHOLDS)
    return session(last, created_at=last - draw(SPANS), status=status, stall_threshold_ms=own)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scratch(mongod: Mongod) -> AsyncGenerator[Documents]:
    """A database without validators and indexes."""
    with MongoClient[Document](mongod.uri, tz_aware=True) as mongo:
        name = f"test-{uuid4()}"
        yield mongo[name]
        mongo.drop_database(name)


@pytest.mark.slow
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=st.lists(stored(), min_size=1, max_size=25), outage=OUTAGES, default=THRESHOLDS)
def test_the_query_for_overdue_sessions_and_the_rule_agree(
    scratch: Documents, made: list[Document], outage: Outage | None, default: int
) -> None:
    threshold = timedelta(milliseconds=default)
    scratch.sessions.delete_many({})
    scratch.sessions.insert_many(made)
    by_query = {one["session_id"] for one in scratch.sessions.find(overdue(NOW, threshold, outage))}
    by_rule = {one["session_id"] for one in made if lifecycle.is_overdue(one, NOW, threshold, outage)}
    assert by_query == by_rule


def test_a_scan_looks_at_the_silent_and_at_nobody_else(own: Servers) -> None:
    """What it costs must not grow with all that is stored."""
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
        silent = len(sessions(database, 150, now() - timedelta(hours=1)))
        sessions(database, 1500, now())
        database.command("profile", 2)
        assert expect(api.post("/api/sessions/detect-failures"), 200)["marked_stalled"] == silent
        database.command("profile", 0)
    recorded = database["system.profile"].find({"ns": f"{database.name}.sessions"})
    # Found, marked, and read again.
    assert sum(entry.get("docsExamined", 0) for entry in recorded) <= 3 * silent
