"""PRD 1.1: what the database itself accepts, finds by an index, and forgets in time."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import WriteError

from api_harness.api import Api, ago, expect_error, uuid4
from api_harness.server import wait_until
from api_harness.servers import Document, Documents

DOCUMENT_VALIDATION_FAILURE = 121


def twin(documents: Documents, collection: str, key: str, known_id: str) -> Document:
    """A document of the server's under another id: what a writer past the API might store."""
    found = documents[collection].find_one({key: known_id})
    assert found
    copy = deepcopy(found)
    copy[key] = uuid4()
    copy["_id"] = ObjectId() if isinstance(copy["_id"], ObjectId) else copy[key]
    return copy


def refused(documents: Documents, collection: str, document: Document) -> bool:
    """Whether the collection's validator refuses `document`."""
    try:
        documents[collection].insert_one(document)
    except WriteError as error:
        if error.code != DOCUMENT_VALIDATION_FAILURE:
            raise
        return True
    return False


def assert_schema(
    documents: Documents, collection: str, document: Document, required: set[str], wrong: dict[str, Any]
) -> None:
    """The document is accepted; without any of `required`, or with any value of `wrong`, it is refused."""
    accepted_without = {
        name
        for name in required
        if not refused(documents, collection, {k: v for k, v in document.items() if k != name})
    }
    accepted_with = {
        name for name, value in wrong.items() if not refused(documents, collection, document | {name: value})
    }
    assert (accepted_without, accepted_with) == (set(), set())
    assert not refused(documents, collection, document)


@pytest.mark.prd("1.1.a")
def test_1_1_a_a_session_needs_every_required_field_in_its_type(api: Api, database: Documents) -> None:
    session = api.session_in("completed")
    assert_schema(
        database,
        "sessions",
        twin(database, "sessions", "session_id", session["session_id"]),
        required={
            "session_id",
            "project_id",
            "machine_id",
            "last_heartbeat",
            "status",
            "started_at",
            "created_at",
            "updated_at",
        },
        wrong={
            "session_id": 1,
            "project_id": None,
            "machine_id": ["m"],
            "docker_slot": "1",
            "last_heartbeat": "2026-01-01T00:00:00.000Z",
            "status": "unknown",
            "started_at": 5,
            "completed_at": "yesterday",
            "current_task_id": 7,
            "metadata": "text",
            "created_at": None,
            "updated_at": "now",
        },
    )


@pytest.mark.prd("1.1.b")
def test_1_1_b_a_task_needs_every_required_field_and_a_known_status(api: Api, database: Documents) -> None:
    task = api.task(api.session())
    assert_schema(
        database,
        "tasks",
        twin(database, "tasks", "task_id", task["task_id"]),
        required={"task_id", "session_id", "project_id", "task_name", "status", "created_at", "updated_at"},
        wrong={
            "task_id": 1,
            "session_id": None,
            "project_id": 2,
            "task_name": {"text": "x"},
            "status": "done",
            "github_issue_id": 12,
            "started_at": "now",
            "completed_at": 0,
            "error_message": 1,
            "created_at": "now",
            "updated_at": None,
        },
    )


@pytest.mark.prd("1.1.c")
def test_1_1_c_a_machine_needs_every_required_field_and_its_slots_are_a_list(
    api: Api, database: Documents
) -> None:
    machine = api.machine()
    assert_schema(
        database,
        "machines",
        twin(database, "machines", "machine_id", machine["machine_id"]),
        required={
            "machine_id",
            "hostname",
            "docker_slots",
            "active_sessions",
            "status",
            "last_heartbeat",
            "created_at",
            "updated_at",
        },
        wrong={
            "machine_id": 1,
            "hostname": None,
            "docker_slots": "1,2,3",
            "active_sessions": "none",
            "status": "asleep",
            "last_heartbeat": "now",
            "metadata": [],
            "created_at": 1,
            "updated_at": None,
        },
    )
    assert refused(
        database,
        "machines",
        twin(database, "machines", "machine_id", machine["machine_id"]) | {"docker_slots": ["1"]},
    )


@pytest.mark.prd("1.1.d")
def test_1_1_d_a_session_with_an_invalid_status_is_refused_by_the_database_and_by_the_api(
    api: Api, database: Documents
) -> None:
    session = api.session()
    with pytest.raises(WriteError) as refusal:
        database.sessions.update_one(
            {"session_id": session["session_id"]}, {"$set": {"status": "hibernating"}}
        )
    assert refusal.value.code == DOCUMENT_VALIDATION_FAILURE
    answer = api.patch(f"/api/sessions/{session['session_id']}", json={"status": "hibernating"})
    expect_error(answer, 400, fields=("status",))


def stages(plan: Document) -> set[str]:
    """Every stage of a query plan, of either of the database's engines."""
    below = [plan[name] for name in ("inputStage", "queryPlan") if name in plan] + plan.get("inputStages", [])
    return {plan.get("stage", "")}.union(*map(stages, below))


@pytest.mark.prd("1.1.e")
@pytest.mark.parametrize(
    ("collection", "query"),
    [
        ("sessions", {"session_id": "s"}),
        ("sessions", {"project_id": "p", "status": "active"}),
        ("sessions", {"machine_id": "m"}),
        ("sessions", {"last_heartbeat": {"$lt": datetime(2026, 1, 1, tzinfo=UTC)}}),
        ("tasks", {"task_id": "t"}),
        ("tasks", {"session_id": "s", "status": "pending"}),
        ("tasks", {"project_id": "p"}),
        ("machines", {"machine_id": "m"}),
        ("machines", {"status": "online"}),
        ("machines", {"last_heartbeat": {"$lt": datetime(2026, 1, 1, tzinfo=UTC)}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_1_1_e_queries_on_the_identifying_fields_use_an_index(
    api: Api, database: Documents, collection: str, query: Document
) -> None:
    api.get("/api/sessions")
    plan = database[collection].find(query).explain()["queryPlanner"]["winningPlan"]
    assert stages(plan) & {"IXSCAN", "EXPRESS_IXSCAN"}, plan


@pytest.mark.prd("1.1.f")
def test_1_1_f_a_session_completed_31_days_ago_is_removed_by_the_database_itself(
    api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    old, recent, archived = (api.session_in("completed") for _ in range(3))
    live = api.session()
    task = api.task_in(api.session(), "completed")
    api.act(archived, "archive")
    long_ago = {"$set": {"completed_at": ago(days=31)}}
    for session in (old, archived):
        database.sessions.update_one({"session_id": session["session_id"]}, long_ago)
    database.tasks.update_one({"task_id": task["task_id"]}, long_ago)
    still_kept = {"$set": {"completed_at": datetime.now(UTC) - timedelta(days=29)}}
    database.sessions.update_one({"session_id": recent["session_id"]}, still_kept)

    mongo.admin.command("setParameter", 1, ttlMonitorEnabled=True)
    try:
        wait_until(
            lambda: (
                database.sessions.count_documents({"session_id": old["session_id"]}) == 0
                and database.tasks.count_documents({"task_id": task["task_id"]}) == 0
            ),
            "the TTL monitor removes the old session and the old task",
        )
    finally:
        mongo.admin.command("setParameter", 1, ttlMonitorEnabled=False)
    for kept in (recent, archived, live):
        api.read_session(kept)
