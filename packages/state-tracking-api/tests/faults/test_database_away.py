"""The database frozen, killed and brought back under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pymongo import MongoClient

from api_harness.server import Server
from api_harness.servers import Document
from api_harness.traffic import Told, callers, until
from state_tracking_api.embedded import Mongod

# Below the outages that follow, so that the brake matters.
THRESHOLD_SECONDS = 8
OUTAGE_SECONDS = 12
SETTINGS = {
    "SCHEDULER": "on",
    "STALL_THRESHOLD_MS": str(THRESHOLD_SECONDS * 1000),
    "STALL_SCAN_INTERVAL_SECONDS": "1",
    "DB_TIMEOUT_MS": "3000",
    "REQUEST_TIMEOUT_MS": "6000",
}
# The request's timeout, and what it takes on a busy machine to say so.
BOUND_SECONDS = 9.0


@contextmanager
def serving(mongod: Mongod) -> Generator[Server]:
    """A server on this database that finds out quickly when it is away."""
    uri = f"{mongod.uri}&serverSelectionTimeoutMS=1000"
    with Server.start(MONGODB_URI=uri, **SETTINGS) as server:
        yield server


def assert_all_were_answered(told: Told) -> None:
    """Every request in bounded time and in the error format, and /health always."""
    assert told.malformed == []
    assert set(told.statuses) <= {200, 201, 503, 504}
    assert told.slowest < BOUND_SECONDS
    assert set(told.health) == {200}
    assert told.slowest_health < BOUND_SECONDS


def assert_nobody_was_marked(uri: str, told: Told) -> None:
    with MongoClient[Document](uri, tz_aware=True) as mongo:
        stored = list(mongo["claude-projects"].sessions.find())
    assert set(told.sessions) <= {session["session_id"] for session in stored}
    assert told.sessions
    marks = [event for session in stored for event in session["events"] if event["to"] == "stalled"]
    assert marks == []


@pytest.mark.slow
async def test_a_frozen_database_costs_504s_and_nothing_else(tmp_path: Path) -> None:
    with Mongod.start(tmp_path / "db") as mongod, serving(mongod) as server:
        async with callers(server.base_url, server.key, 10) as told:
            await until(told, 200, 100)
            os.kill(mongod.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(OUTAGE_SECONDS)  # this is the outage
            finally:
                os.kill(mongod.pid, signal.SIGCONT)
            await until(told, 200, 200)
        assert told.statuses[504] + told.statuses[503] > 0
        assert_all_were_answered(told)
        assert_nobody_was_marked(mongod.uri, told)


@pytest.mark.slow
async def test_a_killed_database_costs_503s_and_the_service_recovers_without_a_restart(
    tmp_path: Path,
) -> None:
    with Mongod.start(tmp_path / "db") as mongod:
        port = mongod.port
        with serving(mongod) as server:
            async with callers(server.base_url, server.key, 10) as told:
                await until(told, 200, 100)
                os.kill(mongod.pid, signal.SIGKILL)
                # In the end the circuit is open and answers at once.
                await until(told, 503, 100)
                mongod.stop()
                with Mongod.start(tmp_path / "db", port) as back:
                    await until(told, 200, 200, seconds=90)
                    assert server.process.poll() is None
                    assert_nobody_was_marked(back.uri, told)
            assert_all_were_answered(told)
            opened = [line for line in server.lines if line["message"] == "Circuit of the database opened"]
            closed = [line for line in server.lines if line["message"] == "Circuit of the database closed"]
            assert opened
            assert closed
