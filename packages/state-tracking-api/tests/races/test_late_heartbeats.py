"""A heartbeat that was held up on its way must not make a session look more silent than it is."""

from __future__ import annotations

import threading
from datetime import UTC

import pytest
from pymongo import MongoClient

from api_harness.api import Api, Json, expect, moment
from api_harness.server import wait_until
from api_harness.servers import Document, Documents
from operations.failpoints import running


@pytest.mark.parametrize("body", [None, {"metadata": {"late": True}}])
def test_a_heartbeat_that_arrives_late_does_not_take_the_time_back(
    api: Api, database: Documents, mongo: MongoClient[Document], body: Json | None
) -> None:
    """As on a server that was suspended between taking the time and writing it down."""
    session = api.session()
    late: list[Json] = []

    def beat() -> None:
        late.append(expect(api.act(session, "heartbeat", body), 200))

    early = threading.Thread(target=beat)
    with mongo.start_session() as other, other.start_transaction():
        # The heartbeat has its time and waits for this transaction's lock.
        query = {"session_id": session["session_id"]}
        database.sessions.update_one(query, {"$set": {"held": True}}, session=other)
        early.start()
        wait_until(lambda: running(mongo, database, "findAndModify"), "the heartbeat is held up")
        # What a later heartbeat leaves, by another server.
        now = mongo.admin.command("hello")["localTime"].replace(tzinfo=UTC)
        database.sessions.update_one(
            query, {"$set": {"last_heartbeat": now, "updated_at": now}}, session=other
        )
        other.commit_transaction()
    early.join()
    (answer,) = late
    assert moment(answer["last_heartbeat"]) == now
    assert moment(api.read_session(session)["last_heartbeat"]) == now
    assert moment(answer["updated_at"]) == now
