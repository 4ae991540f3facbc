"""What must change together changes in one transaction: a failure half-way leaves everything as it was.

The database is told to fail every write to one collection, so that each operation is broken at each of the
collections that it writes to, whatever its order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from api_harness.api import Api, Json, ago, expect, unique
from api_harness.servers import Document, Documents

COLLECTIONS = ("sessions", "tasks", "machines")
WRITES = ["insert", "update", "delete", "findAndModify", "bulkWrite"]
UNKNOWN_ERROR = 8


@contextmanager
def failing_writes(mongo: MongoClient[Document], database: Documents, collection: str) -> Generator[None]:
    """Every write to the collection fails with an error that no retry mends."""
    data = {
        "failCommands": WRITES,
        "errorCode": UNKNOWN_ERROR,
        "namespace": f"{database.name}.{collection}",
    }
    mongo.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=data)
    try:
        yield
    finally:
        mongo.admin.command("configureFailPoint", "failCommand", mode="off")


def everything(database: Documents) -> dict[str, list[Any]]:
    """All documents of the three collections."""
    return {name: list(database[name].find().sort("_id")) for name in COLLECTIONS}


class Scene:
    """A session in the middle of its work on a registered machine, and another machine to go to."""

    def __init__(self, api: Api, database: Documents) -> None:
        self.api = api
        self.database = database
        self.machine = api.machine()
        self.elsewhere = api.machine()
        self.session = api.session(machine_id=self.machine["machine_id"], docker_slot=1)
        self.tasks = [
            api.task_in(self.session, status)
            for status in ("completed", "failed", "blocked", "pending", "in_progress")
        ]
        self.path = f"/api/sessions/{self.session['session_id']}"

    def stalled(self) -> Json:
        return self.api.set_session(self.session, "stalled")

    def ended_long_ago(self) -> None:
        self.api.set_session(self.session, "completed")
        query = {"session_id": self.session["session_id"]}
        self.database.sessions.update_one(query, {"$set": {"completed_at": ago(days=50)}})


Step = Callable[[Scene], object]
Call = Callable[[Scene], httpx.Response]


def nothing(_: Scene) -> None:
    """No preparation."""


OPERATIONS: dict[str, tuple[Step, Call, tuple[str, ...]]] = {
    "create": (
        nothing,
        lambda s: s.api.post(
            "/api/sessions", json={"project_id": unique("p"), "machine_id": s.machine["machine_id"]}
        ),
        ("sessions", "machines"),
    ),
    "delete": (nothing, lambda s: s.api.delete(s.path), COLLECTIONS),
    "complete": (
        nothing,
        lambda s: s.api.patch(s.path, json={"status": "completed"}),
        ("sessions", "machines"),
    ),
    "fail": (nothing, lambda s: s.api.patch(s.path, json={"status": "failed"}), COLLECTIONS),
    "mark-failed": (
        nothing,
        lambda s: s.api.act(s.session, "mark-failed", {"error_message": "x"}),
        COLLECTIONS,
    ),
    "recover": (
        Scene.stalled,
        lambda s: s.api.recover(s.session, new_machine_id=s.elsewhere["machine_id"]),
        COLLECTIONS,
    ),
    "prepare-recovery": (
        Scene.stalled,
        lambda s: s.api.act(s.session, "prepare-recovery", {"clear_machine_assignment": True}),
        ("sessions", "machines"),
    ),
    "start a task": (
        nothing,
        lambda s: s.api.patch(f"/api/tasks/{s.tasks[3]['task_id']}", json={"status": "in_progress"}),
        ("sessions", "tasks"),
    ),
    "complete a task": (
        nothing,
        lambda s: s.api.patch(f"/api/tasks/{s.tasks[4]['task_id']}", json={"status": "completed"}),
        ("sessions", "tasks"),
    ),
    "delete a task": (
        nothing,
        lambda s: s.api.delete(f"/api/tasks/{s.tasks[4]['task_id']}"),
        ("sessions", "tasks"),
    ),
    "cleanup": (
        Scene.ended_long_ago,
        lambda s: s.api.post("/api/sessions/cleanup"),
        ("sessions", "tasks"),
    ),
}


@pytest.mark.parametrize(
    ("operation", "collection"),
    [(name, collection) for name, (_, _, touched) in OPERATIONS.items() for collection in touched],
)
def test_a_write_that_fails_half_way_leaves_everything_as_it_was(
    api: Api, database: Documents, mongo: MongoClient[Document], operation: str, collection: str
) -> None:
    prepare, call, _ = OPERATIONS[operation]
    scene = Scene(api, database)
    prepare(scene)
    before = everything(database)
    with failing_writes(mongo, database, collection):
        answer = call(scene)
    assert answer.status_code >= 500, f"{answer.status_code}: the write to {collection} was not part of it"
    assert everything(database) == before
    assert call(scene).is_success, "the same request succeeds once the database works again"


def test_without_the_fault_each_of_these_operations_succeeds(api: Api, database: Documents) -> None:
    for prepare, call, _ in OPERATIONS.values():
        scene = Scene(api, database)
        prepare(scene)
        assert call(scene).is_success


def test_a_transaction_that_collides_is_tried_again(
    api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    scene = Scene(api, database)
    write_conflict = {
        "failCommands": WRITES,
        "errorCode": 112,
        "errorLabels": ["TransientTransactionError"],
        "namespace": f"{database.name}.tasks",
    }
    mongo.admin.command("configureFailPoint", "failCommand", mode={"times": 2}, data=write_conflict)
    try:
        expect(api.delete(scene.path), 204)
    finally:
        mongo.admin.command("configureFailPoint", "failCommand", mode="off")
    assert api.tasks_of(scene.session) == []
