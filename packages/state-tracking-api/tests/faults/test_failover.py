"""A replica set of three whose primary is killed under 20 clients: nothing that was acknowledged is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pymongo import MongoClient

from api_harness.api import uuid4
from api_harness.replica_set import three_nodes
from api_harness.server import Server, run, wait_until
from api_harness.servers import Document
from api_harness.traffic import callers, until


@pytest.mark.slow
async def test_every_acknowledged_write_survives_the_primary_and_every_invariant_holds(
    tmp_path: Path,
) -> None:
    with (
        three_nodes(tmp_path) as replica_set,
        Server.start(MONGODB_URI=replica_set.uri, SCHEDULER="on") as server,
    ):
        async with callers(server.base_url, server.key, 20) as told:
            await until(told, 201, 100)
            killed = replica_set.kill_primary()
            await until(told, 201, 200, seconds=90)
        # A member that is busy may not answer in time when it is asked which one it is.
        wait_until(lambda: replica_set.primary() not in {None, killed}, "there is another primary")
        assert told.malformed == []
        assert set(told.statuses) <= {200, 201, 503, 504}
        assert set(told.health) == {200}

        with MongoClient[Document](replica_set.uri, tz_aware=True) as mongo:
            database = mongo["claude-projects"]
            stored = {session["session_id"]: session for session in database.sessions.find()}
            tasks = {task["task_id"] for task in database.tasks.find({}, {"task_id": 1})}
        assert len(told.sessions) == 20
        assert set(told.sessions) <= stored.keys()
        assert set(told.tasks) <= tasks
        assert len(told.tasks) >= 280
        for identifier, beat in told.last_beat.items():
            last = stored[identifier]["last_heartbeat"].isoformat(timespec="milliseconds")
            assert last.replace("+00:00", "Z") >= beat
        assert {session["status"] for session in stored.values()} == {"active"}

        environment = {"MONGODB_URI": replica_set.uri, "API_KEYS": uuid4()}
        check = run("job", "check-consistency", environment=environment)
        assert check.returncode == 0, check.stderr
        assert json.loads(check.stdout) == {"violations": [], "repaired": [], "left": 0}
