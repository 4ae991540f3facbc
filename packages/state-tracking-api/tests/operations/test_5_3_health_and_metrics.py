"""PRD 5.3: health and metrics."""

from __future__ import annotations

import math
import re
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from pymongo import MongoClient

from api_harness import load
from api_harness.api import Api, ago, expect, expect_error, moment, uuid4
from api_harness.server import Server
from api_harness.servers import Document, Documents, Servers
from operations.failpoints import failing
from operations.reading import read_metrics
from state_tracking_api.embedded import Mongod


@pytest.mark.prd("5.3.a")
def test_5_3_a_health_says_ok_and_for_how_long(anonymous: Api) -> None:
    health = expect(anonymous.get("/health"), 200)
    assert health["status"] == "ok"
    assert health["uptime"] > 0


@pytest.mark.prd("5.3.b")
def test_5_3_b_detailed_health_has_asked_the_database(api: Api) -> None:
    health = expect(api.get("/health/detailed"), 200)
    database = health["dependencies"]["database"]
    assert database["connected"] is True
    assert 0 < database["response_time_ms"] < 5000


@pytest.mark.prd("5.3.c")
@pytest.mark.slow
def test_5_3_c_a_stopped_database_is_an_error_and_health_still_ok(tmp_path: Path) -> None:
    with Mongod.start(tmp_path / "db") as mongod, Server.start(MONGODB_URI=mongod.uri) as server:
        with Api(server.base_url, server.key) as api:
            assert expect(api.get("/health/detailed"), 200)["status"] == "ok"
            mongod.stop()
            begun = time.monotonic()
            health = expect(api.get("/health/detailed"), 503)
            assert time.monotonic() - begun < 10
            assert health["status"] == "error"
            assert health["dependencies"]["database"]["status"] == "error"
            assert health["dependencies"]["database"]["connected"] is False
            assert health.keys() >= {"timestamp", "uptime", "version", "environment"}
            assert expect(api.get("/health"), 200)["status"] == "ok"
            exposed = read_metrics(api)
        assert math.isnan(exposed.value("active_sessions_count")), "unknown, not yesterday's number"


@pytest.mark.prd("5.3.d")
def test_5_3_d_metrics_count_five_active_sessions(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        for _ in range(5):
            api.session()
        assert read_metrics(api).value("active_sessions_count") == 5


@pytest.mark.prd("5.3.e")
async def test_5_3_e_100_concurrent_health_checks_take_less_than_200_ms_at_p95(server: Server) -> None:
    limit = 0.2
    assert await load.p95_of(server.base_url, [("GET", "/health")] * 100, below=limit) < limit


@pytest.mark.prd("5.3.f")
def test_5_3_f_jobs_that_have_not_run_for_16_minutes_are_degraded(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        for minutes, status in ((9, "ok"), (16, "degraded")):
            last = ago(minutes=minutes)
            database.jobs.update_one({"_id": "detect-failures"}, {"$set": {"last_run": last}}, upsert=True)
            health = expect(api.get("/health/detailed"), 200)
            assert health["status"] == status
            jobs = health["dependencies"]["background_jobs"]
            assert jobs["status"] == status
            assert abs((moment(jobs["last_run"]) - last).total_seconds()) < 0.001


def test_found_violations_degrade_the_health(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        consistency = expect(api.get("/health/detailed"), 200)["dependencies"]["consistency"]
        assert consistency == {"status": "ok", "checked_at": None, "violations": None}
        found = {"$set": {"checked_at": ago(minutes=1), "violations": 2}}
        database.jobs.update_one({"_id": "check-consistency"}, found, upsert=True)
        health = expect(api.get("/health/detailed"), 200)
        assert health["status"] == health["dependencies"]["consistency"]["status"] == "degraded"
        assert health["dependencies"]["consistency"]["violations"] == 2


@pytest.mark.slow
def test_a_database_that_is_slow_to_answer_is_an_error_within_the_checks_5_seconds(
    own: Servers, mongo: MongoClient[Document]
) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        api.session()
        delay = {"blockConnection": True, "blockTimeMS": 8000}
        with failing(mongo, database, "sessions", "count", **delay):
            health = expect(api.get("/health/detailed"), 503)
        assert health["dependencies"]["database"]["status"] == "error"
        assert 4900 < health["dependencies"]["database"]["response_time_ms"] < 7000


def test_detailed_health_and_metrics_need_a_key_and_health_needs_none(anonymous: Api) -> None:
    expect_error(anonymous.get("/health/detailed"), 401)
    expect_error(anonymous.get("/metrics"), 401)
    expect(anonymous.get("/health"), 200)


def test_the_prds_metrics_are_there_under_their_names_with_help_and_type(api: Api) -> None:
    session = api.session()
    expect(api.act(session, "heartbeat"), 200)
    families = read_metrics(api).families
    types = {
        "api_requests": "counter",
        "active_sessions_count": "gauge",
        "stalled_sessions_count": "gauge",
        "heartbeat_latency_ms": "histogram",
        "database_query_duration_ms": "histogram",
        "build_info": "gauge",
        "database_circuit_state": "gauge",
        "rate_limit_storage_failures": "counter",
        "consistency_violations_count": "gauge",
        "suspected_outage": "gauge",
        "suspected_outages_count": "gauge",
        "success_metric": "gauge",
    }
    assert {name: families[name].type for name in types} == types
    assert all(families[name].documentation for name in types)
    text = api.get("/metrics").text
    for line in ("# TYPE api_requests_total counter", "# TYPE heartbeat_latency_ms histogram"):
        assert line in text
    assert re.search(
        r'^api_requests_total\{endpoint="/api/sessions",method="POST",status="201"\} ', text, re.MULTILINE
    )
    assert re.search(r'^heartbeat_latency_ms_bucket\{le="100.0"\} ', text, re.MULTILINE)


def test_the_endpoint_label_is_a_routes_template_and_nothing_that_a_client_made_up(own: Servers) -> None:
    server = own.start()
    made_up = uuid4()
    with Api(server.base_url, server.key) as api, Api(server.base_url, None) as anonymous:
        session = api.session()
        api.act(session, "heartbeat")
        api.get(f"/api/sessions/{session['session_id']}")
        api.get(f"/api/sessions/{made_up}/health")
        api.get(f"/api/machines/{made_up}")
        for client in (api, anonymous):
            client.get(f"/api/{made_up}")
            client.get(f"/{made_up}")
            client.request(f"M{made_up}"[:20], "/api/sessions")
        exposed = read_metrics(api)
        document = expect(api.get("/api/openapi.json"), 200)
    endpoints = exposed.labels("api_requests_total", "endpoint")
    assert endpoints <= {*document["paths"], "unmatched"}
    assert {"/api/sessions/{session_id}", "/api/sessions/{session_id}/heartbeat", "unmatched"} <= endpoints
    assert exposed.labels("api_requests_total", "method") <= {"GET", "POST", "OTHER"}


def test_every_answer_is_counted_once_with_its_status(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api, Api(server.base_url, None) as anonymous:
        for _ in range(3):
            api.session()
        for _ in range(2):
            expect_error(api.post("/api/sessions", json={}), 400)
        expect_error(anonymous.post("/api/sessions", json={}), 401)
        exposed = read_metrics(api)
    counted = {"endpoint": "/api/sessions", "method": "POST"}
    assert exposed.value("api_requests_total", **counted, status="201") == 3
    assert exposed.value("api_requests_total", **counted, status="400") == 2
    assert sum(exposed.values("api_requests_total", method="POST", status="401")) == 1


def test_the_histograms_count_every_heartbeat_and_query_and_their_buckets_fit(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        session = api.session()
        slowest = 0.0
        for _ in range(20):
            begin = time.perf_counter()
            expect(api.act(session, "heartbeat"), 200)
            slowest = max(slowest, (time.perf_counter() - begin) * 1000)
        exposed = read_metrics(api)
    assert exposed.value("heartbeat_latency_ms_count") == 20
    assert exposed.value("heartbeat_latency_ms_bucket", le="+Inf") == 20
    beats = exposed.labels("heartbeat_latency_ms_bucket", "le")
    assert {100, 500} <= {float(bound) for bound in beats}, "the PRD's example and its target"
    for bound in beats:
        if float(bound) >= slowest:
            counted = exposed.value("heartbeat_latency_ms_bucket", le=bound)
            assert counted == 20, f"none of them took longer than {slowest} ms, as seen from here"
    assert exposed.value("database_query_duration_ms_count", command="findAndModify") == 20
    assert exposed.value("database_query_duration_ms_bucket", command="findAndModify", le="+Inf") == 20
    bounds = {float(bound) for bound in exposed.labels("database_query_duration_ms_bucket", "le")}
    assert {100, 10_000} <= bounds, "the PRD's target and its timeout"


def test_build_info_is_the_installed_version(api: Api) -> None:
    installed = version("state-tracking-api")
    assert read_metrics(api).value("build_info", version=installed) == 1
    assert expect(api.get("/health/detailed"), 200)["version"] == installed


def test_gauges_are_the_same_on_every_instance(own: Servers, database: Documents) -> None:
    mine = own.database()
    first, second = own.start(mine), own.start(mine)
    with Api(first.base_url, first.key) as one, Api(second.base_url, second.key) as other:
        for _ in range(3):
            one.session()
        one.session_in("stalled")
        silent = one.session()
        mine.sessions.update_one(
            {"session_id": silent["session_id"]}, {"$set": {"last_heartbeat": ago(minutes=4)}}
        )
        for api in (one, other):
            exposed = read_metrics(api)
            assert exposed.value("active_sessions_count") == 3
            assert exposed.value("stalled_sessions_count") == 2, "marked or not"
