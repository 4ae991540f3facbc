"""PRD 5.2: errors in one format, limits per key, a circuit breaker, timeouts that cancel."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from api_harness.api import Api, expect, expect_error, unique, uuid4
from api_harness.server import Server, wait_until
from api_harness.servers import Document, Documents, Servers
from operations.failpoints import failing, failpoint, running
from operations.log_lines import logged, written
from state_tracking_api import settings
from state_tracking_api.embedded import Mongod


@pytest.mark.parametrize(
    "how",
    [
        {"errorCode": 43},
        *(
            {"errorCode": 8000, "errorLabels": [label]}
            for label in ("RetryableError", "SystemOverloadedError")
        ),
    ],
    ids=str,
)
def test_a_read_that_may_go_well_another_time_is_503(
    api: Api, database: Documents, mongo: MongoClient[Document], how: dict[str, Any]
) -> None:
    with failing(mongo, database, "sessions", "find", **how):
        answer = api.get("/api/sessions")
    expect_error(answer, 503)
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.prd("5.2.a")
def test_5_2_a_an_error_that_nobody_foresaw_has_all_the_fields(
    api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    with failing(mongo, database, "sessions", "find", errorCode=8000):
        body = expect_error(api.get("/api/sessions"), 500)
    assert body.keys() == {"statusCode", "error", "message", "timestamp", "path", "request_id"}
    assert body["path"] == "/api/sessions"
    for inside in ("Traceback", "mongo", "pymongo", "failpoint"):
        assert inside.lower() not in str(body).lower()


@pytest.mark.prd("5.2.b")
def test_5_2_b_a_missing_project_id_is_named(api: Api) -> None:
    body = expect_error(api.post("/api/sessions", json={"machine_id": "m"}), 400, fields=("project_id",))
    assert body["errors"] == [{"field": "project_id", "message": "is required"}]


@pytest.mark.prd("5.2.c")
def test_5_2_c_requests_101_to_110_within_a_minute_are_too_many(own: Servers) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE=None)
    begun = time.monotonic()
    with Api(server.base_url, server.key) as api:
        answers = [api.get("/api/machines") for _ in range(110)]
    assert time.monotonic() - begun < 60, "the machine is too slow for this test to mean anything"
    assert [answer.status_code for answer in answers] == [200] * 100 + [429] * 10
    for answer in answers[100:]:
        expect_error(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 60


@pytest.mark.prd("5.2.d")
def test_5_2_d_answers_say_what_is_left_of_the_limit(own: Servers) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE=None)
    with Api(server.base_url, server.key) as api:
        for left in (99, 98, 97):
            answer = api.get("/api/sessions")
            assert answer.headers["x-ratelimit-limit"] == "100"
            assert answer.headers["x-ratelimit-remaining"] == str(left)
            ends = int(answer.headers["x-ratelimit-reset"])
            assert 0 < ends - datetime.now(UTC).timestamp() <= 61


@pytest.mark.prd("5.2.e")
@pytest.mark.slow
def test_5_2_e_after_five_failures_to_connect_the_sixth_request_finds_the_circuit_open(
    tmp_path: Path,
) -> None:
    with Mongod.start(tmp_path / "db") as mongod:
        # The tests' own connection string, so that finding no server does not take the default of 5 seconds.
        uri = f"{mongod.uri}&serverSelectionTimeoutMS=300"
        with Server.start(MONGODB_URI=uri) as server, Api(server.base_url, server.key) as api:
            written(server, "Database is set up")  # for the first contact the 300 ms may be too short
            api.session()
            mongod.stop()
            for _ in range(5):
                expect_error(api.get("/api/sessions"), 503, says="database is away")
            refused = [api.get("/api/sessions") for _ in range(5)]
            for answer in refused:
                expect_error(answer, 503, says="circuit open")
                assert 1 <= int(answer.headers["retry-after"]) <= 30
            handled = [logged(server, answer, "Request handled")["context"] for answer in refused]
            assert min(line["duration_ms"] for line in handled) < 100, "it did not wait for the database"
            assert expect(api.get("/health"), 200)["status"] == "ok"


@pytest.mark.prd("5.2.f")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"DB_TIMEOUT_MS": "1500"}, "took too long"),
        ({"REQUEST_TIMEOUT_MS": "1500"}, "too"),
    ],
)
def test_5_2_f_a_query_that_takes_too_long_is_answered_504_and_cancelled_in_the_database(
    own: Servers, mongo: MongoClient[Document], limits: dict[str, str], says: str
) -> None:
    database = own.database()
    server = own.start(database, **limits)
    written(server, "Database is set up")
    with Api(server.base_url, server.key) as api:
        session = api.session()
        # It lasts until the failpoint is switched off, longer than the 30 seconds of the requirement, and can
        # be interrupted, as every query of mongod can while it works.
        delay = {"nss": f"{database.name}.sessions", "shouldCheckForInterrupt": True}
        with failpoint(mongo, "waitInFindBeforeMakingBatch", **delay):
            begun = time.monotonic()
            expect_error(api.get(f"/api/sessions/{session['session_id']}"), 504, says=says)
            assert time.monotonic() - begun < 10
            wait_until(lambda: not running(mongo, database, "find"), "the query has ended in the database", 5)
        # It was the query that failed, not the database: nothing is open, and the next one is answered.
        assert api.read_session(session) == session


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"DB_TIMEOUT_MS": "1500"}, {"REQUEST_TIMEOUT_MS": "1500"}])
def test_a_write_that_waits_too_long_is_answered_504_and_does_not_happen(
    own: Servers, mongo: MongoClient[Document], limits: dict[str, str]
) -> None:
    database = own.database()
    server = own.start(database, **limits)
    written(server, "Database is set up")
    with Api(server.base_url, server.key) as api, mongo.start_session() as other:
        session = api.session()
        with other.start_transaction():
            # The heartbeat waits for this transaction's lock on its session.
            database.sessions.update_one(
                {"session_id": session["session_id"]}, {"$set": {"docker_slot": 7}}, session=other
            )
            expect_error(api.act(session, "heartbeat", {"metadata": {"late": True}}), 504)
            wait_until(
                lambda: not running(mongo, database, "findAndModify"),
                "the write has ended in the database",
                5,
            )
            other.abort_transaction()
        assert api.read_session(session) == session


def test_the_default_timeouts_are_the_prds() -> None:
    chosen = settings.load(mongodb_uri="mongodb://127.0.0.1", api_keys=uuid4())
    assert (chosen.request_timeout_ms, chosen.db_timeout_ms) == (29_000, 10_000)


@pytest.mark.parametrize("status", [200, 400, 404, 405, 409, 413, 415, 500])
def test_every_authenticated_answer_has_the_rate_limit_headers(
    api: Api, database: Documents, mongo: MongoClient[Document], status: int
) -> None:
    place = {"project_id": unique("p"), "machine_id": unique("m")}
    if status == 409:
        api.session(**place)
    requests = {
        200: lambda: api.get("/metrics"),
        400: lambda: api.post("/api/sessions", json={}),
        404: lambda: api.get("/api/nothing"),
        405: lambda: api.delete("/api/sessions"),
        409: lambda: api.post("/api/sessions", json=place),
        413: lambda: api.post("/api/sessions", content=b" " * 2_000_000),
        415: lambda: api.post("/api/sessions", content="x", headers={"Content-Type": "text/plain"}),
        500: lambda: api.get("/api/sessions"),
    }
    if status == 500:
        with failing(mongo, database, "sessions", "find", errorCode=8000):
            answer = requests[status]()
    else:
        answer = requests[status]()
    assert answer.status_code == status, answer.text
    for name in ("limit", "remaining", "reset"):
        assert int(answer.headers[f"x-ratelimit-{name}"]) > 0
