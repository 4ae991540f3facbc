"""GET /api/analytics/summary and the same figures for Prometheus, of a history that is known."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from pymongo import MongoClient

from api_harness.api import Api, Json, ago, expect, expect_error, same_but, uuid4
from api_harness.servers import Document, Documents, Servers
from operations.failpoints import failing
from operations.reading import read_metrics
from state_tracking_api import app, settings
from state_tracking_api.app import create_app
from state_tracking_api.embedded import Mongod

PROJECT = "history"
START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=6)


def at(minutes: float) -> datetime:
    """A moment of the history."""
    return START + timedelta(minutes=minutes)


def session(status: str, *steps: tuple[float, str, str | None, str], **more: object) -> Document:
    """A session as it is stored; each step is (minute, status, reason, actor), the first one its start."""
    events: list[Document] = []
    before: str | None = None
    for minute, to, reason, actor in steps:
        event: Document = {"at": at(minute), "from": before, "to": to, "reason": reason, "actor": actor}
        if to == "stalled":
            event["silent_since"] = at(minute - more["silent"])  # type: ignore[operator]
        events.append(event)
        before = to
    ended = status in {"completed", "failed"}
    fields = {
        "session_id": uuid4(),
        "project_id": PROJECT,
        "machine_id": uuid4(),
        "status": status,
        "last_heartbeat": events[-1]["at"],
        "started_at": events[0]["at"],
        "created_at": events[0]["at"],
        "updated_at": events[-1]["at"],
        "completed_at": events[-1]["at"] if ended else None,
        "metadata": {},
        "recovered_by": None,
        "recovered_from": None,
        "events": events,
    }
    return fields | {name: value for name, value in more.items() if name != "silent"}


def task(status: str, minutes: float | None = None) -> Document:
    """A task as it is stored; `minutes` is how long it took."""
    return {
        "task_id": uuid4(),
        "session_id": "any",
        "project_id": PROJECT,
        "task_name": "t",
        "status": status,
        "started_at": None if minutes is None else at(0),
        "completed_at": None if minutes is None else at(minutes),
        "metadata": {},
        "created_at": at(0),
        "updated_at": at(0),
        "events": [],
    }


JOB, KEY = "job:detect-failures", "key:ci"
SILENT = "silent for longer than its threshold"


def history() -> list[Document]:
    """Ten sessions.

    Three complete (10, 20 and 60 minutes), one of them after a false alarm; two are recovered, one of them
    from a failure; three fail for good; one is stalled; one runs. A stall by hand has no time to detect.
    """
    start = (0, "active", "started", KEY)
    oom = "out of memory"
    return [
        session("completed", start, (10, "completed", "patched", KEY)),
        session("completed", start, (20, "completed", "patched", KEY)),
        session(
            "completed",
            start,
            (30, "stalled", SILENT, JOB),
            (31, "active", "heartbeat", KEY),
            (60, "completed", "patched", KEY),
            silent=3,
        ),
        session(
            "completed",
            start,
            (30, "stalled", SILENT, JOB),
            (40, "completed", "recovered by session x", KEY),
            silent=4,
            recovered_by=uuid4(),
        ),
        session(
            "completed",
            start,
            (30, "failed", oom, KEY),
            (40, "completed", "recovered by session y", KEY),
            recovered_by=uuid4(),
        ),
        session("failed", start, (30, "failed", f"{oom}\nwith a stack trace", KEY)),
        session("failed", start, (45, "failed", "no disk", KEY)),
        session("failed", start, (50, "stalled", SILENT, JOB), (90, "failed", oom, KEY), silent=10),
        session("stalled", start, (30, "stalled", "marked by hand", KEY), silent=1),
        session("active", start),
    ]


@pytest.fixture(scope="module")
def past(api: Api, database: Documents) -> Documents:
    """The module's database with the history in it, and with what is not of it."""
    expect(api.get("/api/sessions"), 200)
    database.sessions.insert_many(history())
    old = session("failed", (-60 * 24 * 60, "active", "started", KEY), (-59 * 24 * 60, "failed", "old", KEY))
    database.sessions.insert_one(old)
    database.tasks.insert_many(
        [task("completed", 5), task("completed", 15), task("failed", 1), task("pending")]
    )
    counts = {"_id": "hour", "hour": at(0).replace(minute=0, second=0), "received": 1000, "failed": 10}
    database.heartbeat_counts.insert_one(counts)
    return database


def summary(api: Api, **query: str) -> Json:
    return expect(api.get("/api/analytics/summary", params=query), 200)


@pytest.mark.usefixtures("past")
def test_a_known_history_gives_exactly_its_figures(api: Api) -> None:
    found = summary(api, project_id=PROJECT)
    minute = 60_000
    # Of five sessions that were recovered or failed for good, two were recovered.
    assert found["recovery"] == {"recovered": 2, "candidates": 5, "rate": 0.4}
    assert found["sessions"] == {
        "started": 10,
        "completed": 3,
        "failed": 4,
        "recovered": 2,
        "completion_rate": 0.5,
        # 10, 20, 30, 45, 60 and 90 minutes: those that ended and were not recovered.
        "duration_ms": {"p50": 30 * minute, "p95": 90 * minute, "max": 90 * minute},
    }
    assert found["detection"] == {
        "stalls": 4,
        "time_to_detect_ms": {"p50": 4 * minute, "p95": 10 * minute, "max": 10 * minute},
        "within_target_rate": 0.6667,
    }
    assert found["false_positives"] == {"count": 1, "rate": 0.25}
    assert found["failure_reasons"] == [
        {"reason": "out of memory", "count": 3},
        {"reason": "no disk", "count": 1},
    ]
    assert found["tasks"] == {
        "created": 4,
        "completed": 2,
        "failed": 1,
        "completion_rate": 0.6667,
        "duration_ms": {"p50": 5 * minute, "p95": 15 * minute, "max": 15 * minute},
    }
    assert found["heartbeats"] == {"received": 1000, "failed": 10, "success_rate": 0.99}


@pytest.mark.usefixtures("past")
def test_the_series_adds_up_to_the_figures(api: Api) -> None:
    found = summary(api, project_id=PROJECT)
    totals = {
        name: sum(bucket[name] for bucket in found["series"]) for name in ("started", "failed", "stalls")
    }
    assert totals == {"started": 10, "failed": 4, "stalls": 4}


@pytest.mark.usefixtures("past")
def test_another_project_and_another_time_have_other_figures(api: Api) -> None:
    assert summary(api, project_id="another")["sessions"]["started"] == 0
    later = summary(api, project_id=PROJECT, since=at(35).isoformat())
    assert later["sessions"]["started"] == 0
    assert later["detection"]["stalls"] == 1
    assert later["recovery"] == {"recovered": 2, "candidates": 4, "rate": 0.5}
    everything = summary(api, since=ago(days=70).isoformat())
    assert {"reason": "old", "count": 1} in everything["failure_reasons"]


@pytest.mark.usefixtures("past")
def test_prometheus_has_the_same_figures(api: Api) -> None:
    found = summary(api, since=ago(hours=24).isoformat())
    exposed = read_metrics(api)
    expected = {
        "recovery_rate": found["recovery"]["rate"],
        "time_to_detect_p50_ms": found["detection"]["time_to_detect_ms"]["p50"],
        "time_to_detect_p95_ms": found["detection"]["time_to_detect_ms"]["p95"],
        "false_positive_rate": found["false_positives"]["rate"],
        "heartbeat_success_rate": found["heartbeats"]["success_rate"],
        "session_completion_rate": found["sessions"]["completion_rate"],
        "task_completion_rate": found["tasks"]["completion_rate"],
    }
    assert expected["recovery_rate"] == 0.4
    assert {name: exposed.value("success_metric", name=name) for name in expected} == expected


@pytest.mark.parametrize("reason", ["\x1c", " \x1d\r\n\x1e\x1f"])
def test_a_reason_of_nothing_but_separators_is_none(api: Api, reason: str) -> None:
    failed = api.session()
    expect(api.act(failed, "mark-failed", {"error_message": reason}), 200)
    found = summary(api, project_id=failed["project_id"])
    assert found["failure_reasons"] == [{"reason": "no reason given", "count": 1}]
    read_metrics(api)
    api.delete(f"/api/sessions/{failed['session_id']}")  # no part of the other tests' figures


def test_without_a_history_nothing_is_divided_by_zero(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        found = summary(api)
        assert found["recovery"] == {"recovered": 0, "candidates": 0, "rate": None}
        assert found["detection"]["time_to_detect_ms"] == {"p50": None, "p95": None, "max": None}
        assert math.isnan(read_metrics(api).value("success_metric", name="recovery_rate"))


def test_real_heartbeats_are_counted_over_all_instances(own: Servers) -> None:
    database = own.database()
    servers = [own.start(database) for _ in range(2)]
    for server in servers:
        with Api(server.base_url, server.key) as api:
            live, ended = api.session(), api.session_in("completed")
            for _ in range(5):
                expect(api.act(live, "heartbeat"), 200)
            expect_error(api.act(ended, "heartbeat"), 409)
        server.stop()
    reader = own.start(database)
    with Api(reader.base_url, reader.key) as api:
        # A refusal is an answer as it should be: the heartbeat came, and the process was told.
        assert summary(api)["heartbeats"] == {"received": 12, "failed": 0, "success_rate": 1.0}


@pytest.mark.slow
def test_the_last_heartbeats_are_counted_though_the_database_is_slow(
    own: Servers, mongo: MongoClient[Document]
) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = api.session()
        for _ in range(5):
            expect(api.act(session, "heartbeat"), 200)
    with failing(mongo, database, "heartbeat_counts", "update", blockConnection=True, blockTimeMS=1200):
        server.stop()
    assert sum(hour["received"] for hour in database.heartbeat_counts.find()) == 5


async def test_failed_heartbeats_are_kept_until_the_database_is_back(
    mongod: Mongod, database: Documents
) -> None:
    configured = settings.load(mongodb_uri=mongod.uri, mongodb_database=database.name, api_keys=uuid4())
    resources = create_app(configured).state.resources
    breaker = resources.storage.breaker
    admitted = breaker.admits()
    assert admitted
    for _ in range(5):
        breaker.failed(admitted)
        resources.metrics.count_heartbeat(503)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    await app._store_heartbeats(resources, lambda: moment, 10)
    breaker.succeeded()
    await app._store_heartbeats(resources, lambda: moment, 10)
    await resources.storage.close()
    stored = database.heartbeat_counts.find_one({"hour": moment})
    assert stored
    assert (stored["received"], stored["failed"]) == (5, 5)


@pytest.mark.parametrize(
    "since",
    [
        *("yesterday", "2026-01-01", "2026-01-01T00:00:00", "0.5", ""),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
    ],
)
@pytest.mark.parametrize("path", ["/api/analytics/summary", "/api/dashboard/trends"])
def test_a_since_that_is_no_moment_is_refused(api: Api, path: str, since: str) -> None:
    expect_error(api.get(path, params={"since": since}), 400, fields=("since",))


@pytest.mark.usefixtures("past")
@pytest.mark.parametrize("hours", [1, 72], ids=["by the hour", "by the day"])
@pytest.mark.parametrize("offset", ["+05:30", "-09:00"])
def test_a_since_is_the_same_moment_whatever_its_offset(api: Api, hours: int, offset: str) -> None:
    zone = datetime.fromisoformat(f"2026-01-01T00:00:00{offset}").tzinfo
    since = START - timedelta(hours=hours)
    plain, shifted = (
        summary(api, project_id=PROJECT, since=each.isoformat()) for each in (since, since.astimezone(zone))
    )
    assert sum(bucket["started"] for bucket in shifted["series"]) == 10
    same_but(plain, shifted, "until")
