"""SIGTERM under load: in-flight requests are finished, leases released, exit code 0 within 10 seconds."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from pymongo import MongoClient

from api_harness.api import Api
from api_harness.load import Crowd, at_once
from api_harness.server import EXIT_SECONDS, Server, wait_until
from api_harness.servers import Document, Servers
from operations.failpoints import failing, running
from state_tracking_api.embedded import Mongod


@pytest.mark.slow
async def test_what_is_in_flight_is_finished_and_the_exit_is_clean(
    own: Servers, mongo: MongoClient[Document]
) -> None:
    database = own.database()
    server = own.start(database, SCHEDULER="on", STALL_SCAN_INTERVAL_SECONDS="1")
    server.line_where(lambda line: line["message"] == "Background job executed", "a job")
    with Api(server.base_url, server.key) as api:
        paths = [f"/api/sessions/{api.session()['session_id']}/heartbeat" for _ in range(20)]
    with mongo.start_session() as other, other.start_transaction():
        # Every heartbeat waits for this transaction's lock on its session.
        database.sessions.update_many({}, {"$set": {"docker_slot": None, "held": True}}, session=other)

        def end() -> None:
            wait_until(
                lambda: len(running(mongo, database, "findAndModify")) >= 20, "all heartbeats are there"
            )
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not server.accepts(), "the server takes no more connections")
            other.abort_transaction()

        async with Crowd(server.base_url, server.key) as crowd:
            ending = asyncio.create_task(asyncio.to_thread(end))
            answers = await at_once(*(crowd.request("POST", path) for path in paths))
            await ending
    assert [answer.status_code for answer in answers] == [200] * 20
    server.assert_clean_exit()
    assert database.jobs.find_one({"lease_owner": {"$type": "string"}}) is None, "every lease is released"
    assert server.lines[-1]["message"] == "Server stopped"


@pytest.mark.slow
def test_a_lease_that_is_held_at_the_end_is_released(own: Servers, mongo: MongoClient[Document]) -> None:
    database = own.database()
    server = own.start(database, SCHEDULER="on", STALL_SCAN_INTERVAL_SECONDS="1")
    idle = {"_id": "mark-machines-offline", "last_run": {"$exists": True}, "lease_owner": None}
    wait_until(lambda: database.jobs.find_one(idle), "the job's first run, which notes its end, is over")
    # A job that does not come to its end: its queries for machines last.
    held = {"_id": "mark-machines-offline", "lease_owner": {"$type": "string"}}
    delay = {"blockConnection": True, "blockTimeMS": 6000}
    with failing(mongo, database, "machines", "find", **delay):
        database.jobs.update_one({"_id": held["_id"]}, {"$unset": {"last_run": ""}})
        wait_until(lambda: database.jobs.find_one(held), "the lease is held")
        server.stop()
    assert database.jobs.find_one(held) is None


def in_flight(server: Server, path: str) -> socket.socket:
    """A request whose answer nobody waits for; to be closed."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nX-API-Key: {server.key}\r\nContent-Length: 0\r\n\r\n"
    connection.sendall(head.encode())
    return connection


@pytest.mark.slow
def test_with_a_frozen_database_the_end_comes_within_10_seconds_too(tmp_path: Path) -> None:
    with Mongod.start(tmp_path / "db") as mongod:
        settings = {"SCHEDULER": "on", "STALL_SCAN_INTERVAL_SECONDS": "1"}
        server = Server.start(MONGODB_URI=mongod.uri, **settings)
        server.line_where(lambda line: line["message"] == "Background job executed", "a job")
        with Api(server.base_url, server.key) as api:
            session = api.session()
        os.kill(mongod.pid, signal.SIGSTOP)
        requests = [in_flight(server, f"/api/sessions/{session['session_id']}/heartbeat") for _ in range(3)]
        requests += [in_flight(server, f"/api/sessions/{session['session_id']}/mark-stalled")]
        try:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(EXIT_SECONDS) == 0
        finally:
            os.kill(mongod.pid, signal.SIGCONT)
            server.kill()
            for request in requests:
                request.close()
