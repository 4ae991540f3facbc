"""Several worker processes behind one address give one true answer (PRD 5.3)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest

from api_harness.api import Api, expect
from api_harness.server import Server, wait_until
from api_harness.servers import Servers
from operations.reading import Exposition, read_metrics
from operations.redis_server import RedisServer

BEAT = {"endpoint": "/api/sessions/{session_id}/heartbeat", "method": "POST", "status": "200"}


def workers(server: Server) -> set[int]:
    """The process ids of the workers (spawned; the resource tracker of multiprocessing is none)."""
    found: set[int] = set()
    for child in psutil.Process(server.pid).children():
        with suppress(psutil.NoSuchProcess):  # a zombie is one
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def started(server: Server) -> int:
    """How many workers have said that they have started, the replaced ones too."""
    return len([line for line in server.lines if line["message"].startswith("Server started")])


def each_worker_in_turn(server: Server, times: int) -> list[Exposition]:
    """Metrics over new connections, which the kernel gives to any of the workers."""
    found: list[Exposition] = []
    for _ in range(times):
        with Api(server.base_url, server.key) as api:
            found.append(read_metrics(api))
    return found


@pytest.mark.slow
def test_workers_do_not_outlive_a_supervisor_that_is_killed(own: Servers, redis_server: RedisServer) -> None:
    server = Server.start(
        MONGODB_URI=own.uri,
        MONGODB_DATABASE=own.database().name,
        WORKERS="2",
        RATE_LIMIT_STORAGE_URI=redis_server.uri,
    )
    try:
        wait_until(lambda: len(workers(server)) == 2, "two workers")
        left = workers(server)
    finally:
        server.kill()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in left), "the workers have ended")
    assert not server.accepts()


@pytest.mark.slow
def test_a_worker_that_takes_its_time_is_not_replaced(own: Servers, redis_server: RedisServer) -> None:
    server = own.start(WORKERS="2", RATE_LIMIT_STORAGE_URI=redis_server.uri)
    wait_until(lambda: len(workers(server)) == 2, "two workers")
    begun = workers(server)
    # As slow as on a machine that does much else besides: longer than uvicorn's own patience of 5 seconds.
    slow = min(begun)
    os.kill(slow, signal.SIGSTOP)
    time.sleep(7)
    os.kill(slow, signal.SIGCONT)
    wait_until(lambda: started(server) == 2, "both have started", 60)
    assert workers(server) == begun


@pytest.mark.slow
def test_two_workers_add_up_and_a_killed_one_is_replaced(own: Servers, redis_server: RedisServer) -> None:
    server = own.start(
        WORKERS="2", RATE_LIMIT_STORAGE_URI=redis_server.uri, RATE_LIMIT_PER_MINUTE="500", SCHEDULER="on"
    )
    wait_until(lambda: len(workers(server)) == 2, "two workers")
    wait_until(lambda: started(server) == 2, "both have started", 60)
    with Api(server.base_url, server.key) as api:
        session = api.session()
    for _ in range(40):
        with Api(server.base_url, server.key) as api:
            expect(api.act(session, "heartbeat"), 200)
    # A request is counted after it is answered.
    wait_until(
        lambda: sum(each_worker_in_turn(server, 1)[0].values("api_requests_total", **BEAT)) >= 40,
        "all are counted",
    )
    for exposed in each_worker_in_turn(server, 8):
        assert exposed.value("api_requests_total", **BEAT) == 40
        assert exposed.value("heartbeat_latency_ms_count") == 40
        assert exposed.value("active_sessions_count") == 1
        assert exposed.value("database_circuit_state") == 0
        assert len(exposed.values("build_info")) == 1

    victim, survivor = sorted(workers(server))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(workers(server) - {victim}) == 2, "the killed worker is replaced")
    assert survivor in workers(server)

    def answers() -> bool:
        with Api(server.base_url, server.key) as api:
            return api.act(session, "heartbeat").status_code == 200

    wait_until(answers, "heartbeats are answered")
    for exposed in each_worker_in_turn(server, 4):
        assert exposed.value("api_requests_total", **BEAT) >= 41, "counters do not go back"
        assert exposed.value("active_sessions_count") == 1
    for line in list(server.lines):
        assert list(line) == ["timestamp", "level", "message", "context"]
