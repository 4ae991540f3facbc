"""Limits per key (PRD 5.2): windows, servers that share one limit, and a shared storage that is away."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import httpx
import pytest

from api_harness.api import Api, expect, expect_error, uuid4
from api_harness.server import wait_until
from api_harness.servers import Servers
from operations.log_lines import lines_of, logged, written
from operations.reading import metric
from operations.redis_server import RedisServer
from state_tracking_api import settings
from state_tracking_api.embedded import Mongod
from state_tracking_api.metrics import Metrics
from state_tracking_api.ratelimit import RateLimiter

LIMIT = 20
AWAY = "Rate limit storage is away; requests pass"
BACK = "Rate limit storage is back"


def reach_storage(api: Api) -> None:
    """Return when a request of this key was counted.

    The first ones may pass without: half a second is little for opening the connections and making what is
    counted in, on a machine that is busy. What passes is told that the whole limit is left.
    """

    def counted() -> bool:
        answer = api.get("/api/machines")
        return int(answer.headers["x-ratelimit-remaining"]) < int(answer.headers["x-ratelimit-limit"])

    wait_until(counted, "the storage of the counters is reached")


def both_count(own: Servers, storage_uri: str) -> Counter[int]:
    """The status codes of 30 requests that go by turns to two servers with one limit of 20."""
    key, warm, database = uuid4(), uuid4(), own.database()
    shared = {
        "API_KEYS": f"both={key},warm={warm}",
        "RATE_LIMIT_PER_MINUTE": str(LIMIT),
        "RATE_LIMIT_STORAGE_URI": storage_uri,
    }
    first, second = own.start(database, **shared), own.start(database, **shared)
    for server in (first, second):
        with Api(server.base_url, warm) as api:
            reach_storage(api)
    with Api(first.base_url, key) as one, Api(second.base_url, key) as other:
        answers = [api.get("/api/machines") for api, _ in zip(cycle((one, other)), range(30), strict=False)]
    left = [int(answer.headers["x-ratelimit-remaining"]) for answer in answers]
    assert left == [*reversed(range(LIMIT)), *[0] * 10]
    return Counter(answer.status_code for answer in answers)


@pytest.mark.slow
def test_two_servers_share_one_limit_through_redis(own: Servers, redis_server: RedisServer) -> None:
    assert both_count(own, redis_server.uri) == {200: LIMIT, 429: 10}


@pytest.mark.slow
def test_two_servers_share_one_limit_through_mongodb(own: Servers) -> None:
    uri = own.uri.replace("/?", f"/{own.database().name}?")
    assert both_count(own, uri) == {200: LIMIT, 429: 10}


@pytest.mark.slow
def test_while_redis_is_away_requests_pass_and_are_counted_and_afterwards_the_limit_holds_again(
    own: Servers, redis_server: RedisServer
) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE=str(LIMIT), RATE_LIMIT_STORAGE_URI=redis_server.uri)
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/machines"), 200)
        redis_server.kill()
        for _ in range(2 * LIMIT):
            answer = api.get("/api/machines")
            expect(answer, 200)
            assert answer.headers["x-ratelimit-limit"] == str(LIMIT)
        assert written(server, AWAY)["level"] == "WARN"
        assert metric(api, "rate_limit_storage_failures_total") >= 2 * LIMIT
        redis_server.start()

        def limited() -> httpx.Response | None:
            answer = api.get("/api/machines")
            return answer if answer.status_code == 429 else None

        lines_of(server, wait_until(limited, "the limit holds again"))
    told = [line["message"] for line in server.lines if line["message"] in (AWAY, BACK)]
    # More than once where the machine is so busy that Redis, too, takes half a second for an answer.
    assert told == [AWAY, BACK] * (len(told) // 2), "each is said when it changes"
    assert 1 <= told.count(AWAY) < LIMIT, "not with every request"


@pytest.mark.slow
def test_a_redis_that_hangs_holds_up_one_request_a_second_at_most(
    own: Servers, redis_server: RedisServer
) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE="5", RATE_LIMIT_STORAGE_URI=redis_server.uri)
    with Api(server.base_url, server.key) as api:
        reach_storage(api)
        redis_server.freeze()
        begun = time.monotonic()
        answers = [api.get("/api/machines") for _ in range(100)]
        elapsed = time.monotonic() - begun
    for answer in answers:
        expect(answer, 200)
    handled = [logged(server, answer, "Request handled")["context"]["duration_ms"] for answer in answers]
    held_up = [milliseconds for milliseconds in handled if milliseconds >= 490]
    assert 1 <= len(held_up) <= 1 + elapsed


@pytest.mark.slow
def test_while_the_counters_mongodb_is_away_requests_pass_and_afterwards_the_limit_holds_again(
    own: Servers, tmp_path: Path
) -> None:
    with Mongod.start(tmp_path / "counters") as counters:
        port = counters.port
        uri = counters.uri.replace("/?", "/limits?")
        server = own.start(RATE_LIMIT_PER_MINUTE=str(LIMIT), RATE_LIMIT_STORAGE_URI=uri)
        with Api(server.base_url, server.key) as api:
            expect(api.get("/api/machines"), 200)
            os.kill(counters.pid, signal.SIGKILL)
            for _ in range(2 * LIMIT):
                expect(api.get("/api/machines"), 200)
            assert metric(api, "rate_limit_storage_failures_total") >= 2 * LIMIT
            counters.stop()
            with Mongod.start(tmp_path / "counters", port):
                wait_until(lambda: api.get("/api/machines").status_code == 429, "the limit holds again", 40)


def test_health_is_never_limited(own: Servers) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE="1")
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/machines"), 200)
        expect_error(api.get("/api/machines"), 429)
        for _ in range(20):
            answer = api.get("/health")
            expect(answer, 200)
            assert "x-ratelimit-limit" not in answer.headers


def test_one_keys_requests_do_not_count_for_another(own: Servers) -> None:
    keys = {name: uuid4() for name in ("a", "b")}
    listed = ",".join(f"{name}={key}" for name, key in keys.items())
    server = own.start(API_KEYS=listed, RATE_LIMIT_PER_MINUTE="1")
    for key in keys.values():
        with Api(server.base_url, key) as api:
            expect(api.get("/api/machines"), 200)
            expect_error(api.get("/api/machines"), 429)


def test_a_request_with_a_wrong_key_counts_for_nobody(own: Servers) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE="1")
    with Api(server.base_url, uuid4()) as stranger, Api(server.base_url, server.key) as api:
        for _ in range(5):
            expect_error(stranger.get("/api/machines"), 401)
        expect(api.get("/api/machines"), 200)


async def test_a_burst_across_the_turn_of_a_minute_gets_no_double_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 1_800_000_059.5  # half a second before a full minute
    assert int(clock) % 60 == 59
    monkeypatch.setattr(time, "time", lambda: clock)
    configured = settings.load(
        mongodb_uri="mongodb://127.0.0.1", api_keys=uuid4(), rate_limit_per_minute=LIMIT
    )
    limiter = RateLimiter(configured, Metrics())
    first = [await limiter.hit("key") for _ in range(LIMIT)]
    assert all(allowance.allowed for allowance in first)
    window_ends = clock + 60
    for moment in (clock + 0.6, clock + 30, window_ends - 0.001):
        clock = moment
        allowance = await limiter.hit("key")
        assert not allowance.allowed
        assert allowance.ends_at == window_ends
        assert allowance.retry_after == max(1, -(-(window_ends - moment) // 1))
    clock = window_ends
    assert (await limiter.hit("key")).allowed
