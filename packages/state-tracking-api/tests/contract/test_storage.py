"""What must be unique is unique by an index, whoever writes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import DuplicateKeyError, WriteError

from api_harness.api import Api, Json, ago, expect, unique, uuid4
from api_harness.servers import Document, Documents
from state_tracking_api.lifecycle import EVENTS_KEPT, REASON_KEPT


def stored(database: Documents, session: Json) -> Document:
    """The session as the database has it."""
    found = database.sessions.find_one({"session_id": session["session_id"]})
    assert found
    return found


def copy_of(database: Documents, session: Json, **changes: Any) -> Document:
    """Another session of the same place and slot, as another writer might store it."""
    copy = deepcopy(stored(database, session)) | {"session_id": uuid4(), "project_id": unique("project")}
    copy["_id"] = ObjectId() if isinstance(copy["_id"], ObjectId) else copy["session_id"]
    return copy | changes


def test_two_active_sessions_of_one_place_cannot_be_stored(api: Api, database: Documents) -> None:
    session = api.session()
    with pytest.raises(DuplicateKeyError):
        database.sessions.insert_one(copy_of(database, session, project_id=session["project_id"]))
    database.sessions.insert_one(
        copy_of(database, session, project_id=session["project_id"], status="paused")
    )


@pytest.mark.parametrize(
    ("before", "method", "action", "body"),
    [
        ("active", "PATCH", "", {"status": "paused"}),
        ("stalled", "POST", "/heartbeat", None),
        ("stalled", "POST", "/heartbeat", {"metadata": {"a": 1}}),
        ("stalled", "POST", "/heartbeat", {"metadata": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}}),
        ("active", "POST", "/mark-failed", {"error_message": "x" * 30_000}),
    ],
    ids=["patch", "heartbeat", "heartbeat with metadata", "heartbeat with deep metadata", "long message"],
)
def test_a_session_whose_status_changes_without_end_does_not_grow_without_end(
    api: Api, database: Documents, before: str, method: str, action: str, body: Json | None
) -> None:
    session = api.session_in(before)
    mine = {"session_id": session["session_id"]}
    first = {"at": ago(days=1), "from": None, "to": "active", "actor": "key:x", "reason": None}
    database.sessions.update_one(mine, {"$set": {"events": [first] * EVENTS_KEPT}})
    expect(api.request(method, f"/api/sessions/{session['session_id']}{action}", json=body), 200)
    events = stored(database, session)["events"]
    assert len(events) == EVENTS_KEPT
    assert [event["from"] for event in events[-2:]] == [None, before]
    assert len(events[-1]["reason"]) <= REASON_KEPT


def test_a_task_that_is_tried_without_end_does_not_grow_without_end(api: Api, database: Documents) -> None:
    session = api.session()
    task = api.task_in(session, "failed")
    old = {"at": ago(days=1), "from": "blocked", "to": "failed", "actor": "key:x", "reason": None}
    database.tasks.update_one({"task_id": task["task_id"]}, {"$set": {"events": [old] * EVENTS_KEPT}})
    api.set_task(task, "blocked")
    found = database.tasks.find_one({"task_id": task["task_id"]})
    assert found
    assert len(found["events"]) == EVENTS_KEPT
    assert found["events"][-1]["to"] == "blocked"


def test_two_live_sessions_on_one_slot_cannot_be_stored(api: Api, database: Documents) -> None:
    session = api.session(docker_slot=4)
    for status in ("active", "paused", "stalled"):
        with pytest.raises(DuplicateKeyError):
            database.sessions.insert_one(copy_of(database, session, status=status))


def test_two_successors_of_one_session_cannot_be_stored(api: Api, database: Documents) -> None:
    session = api.session_in("stalled")
    successor = expect(api.recover(session), 201)
    with pytest.raises(DuplicateKeyError):
        database.sessions.insert_one(copy_of(database, successor, machine_id=unique("machine")))


@pytest.mark.parametrize(
    ("collection", "change"),
    [
        ("sessions", {"docker_slot": -1}),
        ("sessions", {"metadata": None}),
        ("sessions", {"project_id": ""}),
        ("tasks", {"status": None}),
        ("tasks", {"metadata": [1]}),
        ("machines", {"docker_slots": [-1]}),
        ("machines", {"active_sessions": [1]}),
        ("machines", {"hostname": ""}),
    ],
    ids=str,
)
def test_no_writer_can_change_a_document_into_what_the_schema_forbids(
    api: Api, database: Documents, collection: str, change: Document
) -> None:
    session = api.session()
    task, machine = api.task(session), api.machine()
    key = {"sessions": "session_id", "tasks": "task_id", "machines": "machine_id"}[collection]
    query = {key: {"sessions": session, "tasks": task, "machines": machine}[collection][key]}
    with pytest.raises(WriteError) as refusal:
        database[collection].update_one(query, {"$set": change})
    assert refusal.value.code == 121
    with pytest.raises(WriteError):
        database[collection].update_one(query, {"$unset": {key: ""}})
