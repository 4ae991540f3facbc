"""Collections, their validators and indexes (PRD 1.1), and how a database is brought up to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pymongo
from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import CollectionInvalid, OperationFailure

from state_tracking_api.lifecycle import LIVE, Document, MachineStatus, SessionStatus, TaskStatus

SECONDS_PER_DAY = 24 * 60 * 60
_COUNTS_KEPT_DAYS = 90
_INDEX_NOT_FOUND = 27

# What setting up meets where another instance does the same at this moment; it is then looked at again.
_OVERTAKEN = {
    26: "NamespaceNotFound",
    27: "IndexNotFound",
    48: "NamespaceExists",
    85: "IndexOptionsConflict",
    86: "IndexKeySpecsConflict",
    112: "WriteConflict",
    117: "ConflictingOperationInProgress",
    276: "IndexBuildAborted",
}
ATTEMPTS = 20
INDEX_BUILD_SECONDS = 3600

# Names of the unique indexes that domain code reacts to.
ONE_ACTIVE_SESSION = "one_active_session"
ONE_SESSION_PER_SLOT = "one_session_per_slot"
ONE_SUCCESSOR = "one_successor"

# What is read of a session or a task; what is recorded for the timeline and for late heartbeats stays behind.
WITHOUT_EVENTS = {"_id": 0, "events": 0, "beats": 0, "left_tasks": 0}


@dataclass(frozen=True)
class Index:
    """One index: its keys as (field, direction) pairs, and its options."""

    keys: Sequence[tuple[str, int]]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """The given name, else the one that MongoDB would choose."""
        return str(self.options.get("name") or "_".join(f"{key}_{direction}" for key, direction in self.keys))


def _on(*fields: str, **options: Any) -> Index:
    return Index([(name, ASCENDING) for name in fields], options)


def _listing(tie_breaker: str, *filters: str, **options: Any) -> Index:
    """Serves a list: filtered by equality, newest first, the id as tie-breaker."""
    keys = [(name, ASCENDING) for name in filters]
    return Index([*keys, ("created_at", DESCENDING), (tie_breaker, DESCENDING)], options)


_LIVE = {"$in": [str(status) for status in LIVE]}
_TEXT = {"bsonType": "string", "minLength": 1}
_DATE = {"bsonType": "date"}
_OPTIONAL_DATE = {"bsonType": ["date", "null"]}
_OPTIONAL_TEXT = {"bsonType": ["string", "null"]}
_SLOT = {"bsonType": ["int", "long"], "minimum": 0}
_OPTIONAL_NUMBER = {"bsonType": ["int", "long", "null"], "minimum": 0}
_EVENTS = {"bsonType": "array"}


def _schema(required: Sequence[str], properties: Mapping[str, Any]) -> Document:
    return {"$jsonSchema": {"bsonType": "object", "required": list(required), "properties": dict(properties)}}


VALIDATORS: Mapping[str, Document] = {
    "sessions": _schema(
        (
            *("session_id", "project_id", "machine_id", "status"),
            *("last_heartbeat", "started_at", "created_at", "updated_at"),
        ),
        {
            "session_id": _TEXT,
            "project_id": _TEXT,
            "machine_id": _TEXT,
            "docker_slot": _OPTIONAL_NUMBER,
            "status": {"enum": [str(status) for status in SessionStatus]},
            "last_heartbeat": _DATE,
            "current_task_id": _OPTIONAL_TEXT,
            "started_at": _DATE,
            "completed_at": _OPTIONAL_DATE,
            "metadata": {"bsonType": "object"},
            "created_at": _DATE,
            "updated_at": _DATE,
            "recovered_from": _OPTIONAL_TEXT,
            "recovered_by": _OPTIONAL_TEXT,
            "stall_threshold_ms": _OPTIONAL_NUMBER,
            "fenced": {"bsonType": "bool"},
            "left_tasks": {"bsonType": "array", "items": {"bsonType": "string"}},
            "events": _EVENTS,
        },
    ),
    "tasks": _schema(
        ("task_id", "session_id", "project_id", "task_name", "status", "created_at", "updated_at"),
        {
            "task_id": _TEXT,
            "session_id": _TEXT,
            "project_id": _TEXT,
            "github_issue_id": _OPTIONAL_TEXT,
            "task_name": _TEXT,
            "status": {"enum": [str(status) for status in TaskStatus]},
            "started_at": _OPTIONAL_DATE,
            "completed_at": _OPTIONAL_DATE,
            "error_message": _OPTIONAL_TEXT,
            "metadata": {"bsonType": "object"},
            "created_at": _DATE,
            "updated_at": _DATE,
            "archived": {"bsonType": "bool"},
            "events": _EVENTS,
        },
    ),
    "machines": _schema(
        (
            *("machine_id", "hostname", "docker_slots", "active_sessions"),
            *("status", "last_heartbeat", "created_at", "updated_at"),
        ),
        {
            "machine_id": _TEXT,
            "hostname": _TEXT,
            "docker_slots": {"bsonType": "array", "items": _SLOT, "uniqueItems": True},
            "active_sessions": {"bsonType": "array", "items": {"bsonType": "string"}, "uniqueItems": True},
            "status": {"enum": [str(status) for status in MachineStatus]},
            "last_heartbeat": _DATE,
            "metadata": {"bsonType": "object"},
            "created_at": _DATE,
            "updated_at": _DATE,
        },
    ),
    # Leases and last runs of the background jobs, one document a job.
    "jobs": _schema(
        ("_id",), {"lease_owner": _OPTIONAL_TEXT, "lease_until": _OPTIONAL_DATE, "last_run": _OPTIONAL_DATE}
    ),
    # How many heartbeats came in an hour, over all instances.
    "heartbeat_counts": _schema(("_id", "hour", "received", "failed"), {"hour": _DATE}),
    # What transactions write where there is no machine document to conflict on; see transitions.py.
    "machine_locks": _schema(("_id", "touched_at"), {"touched_at": _DATE}),
}


def indexes(retention_days: int) -> Mapping[str, Sequence[Index]]:
    """Every index by collection: the PRD's (1.1), those that hold uniqueness, and those that serve lists."""
    expiry = retention_days * SECONDS_PER_DAY
    return {
        "sessions": [
            _on("session_id", unique=True),
            _on("project_id", "status"),
            _on("machine_id"),
            _on("last_heartbeat"),
            # Equality with null also matches a missing field: everything but archived sessions expires.
            _on(
                "completed_at", expireAfterSeconds=expiry, partialFilterExpression={"metadata.archived": None}
            ),
            _on(
                "project_id",
                "machine_id",
                name=ONE_ACTIVE_SESSION,
                unique=True,
                partialFilterExpression={"status": str(SessionStatus.ACTIVE)},
            ),
            _on(
                "machine_id",
                "docker_slot",
                name=ONE_SESSION_PER_SLOT,
                unique=True,
                partialFilterExpression={"status": _LIVE, "docker_slot": {"$gte": 0}},
            ),
            _on(
                "recovered_from",
                name=ONE_SUCCESSOR,
                unique=True,
                partialFilterExpression={"recovered_from": {"$type": "string"}},
            ),
            _on("status", "last_heartbeat"),
            _on("status", "completed_at"),
            _on("events.at"),
            _on("status", "stall_threshold_ms", partialFilterExpression={"stall_threshold_ms": {"$gt": 0}}),
            _listing("session_id"),
            _listing("session_id", "status"),
            _listing("session_id", "project_id"),
            _listing("session_id", "machine_id"),
            _listing("session_id", "metadata.archived", partialFilterExpression={"metadata.archived": True}),
        ],
        "tasks": [
            _on("task_id", unique=True),
            _on("session_id", "status"),
            _on("project_id"),
            _on("completed_at", expireAfterSeconds=expiry, partialFilterExpression={"archived": None}),
            _listing("task_id"),
            _listing("task_id", "status"),
            _listing("task_id", "project_id"),
            _listing("task_id", "session_id"),
        ],
        "machines": [
            _on("machine_id", unique=True),
            _on("status"),
            _on("last_heartbeat"),
            _listing("machine_id"),
            _listing("machine_id", "status"),
        ],
        "jobs": [],
        "heartbeat_counts": [_on("hour", expireAfterSeconds=_COUNTS_KEPT_DAYS * SECONDS_PER_DAY)],
        "machine_locks": [_on("touched_at", expireAfterSeconds=SECONDS_PER_DAY)],
    }


async def apply(database: AsyncDatabase[Document], retention_days: int) -> None:
    """Create what is missing and change what differs; any number of instances may do so at once."""
    for attempt in range(ATTEMPTS):
        try:
            await _apply(database, retention_days)
        except OperationFailure as error:
            if error.code not in _OVERTAKEN or attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311
        else:
            return


async def _apply(database: AsyncDatabase[Document], retention_days: int) -> None:
    present = {found["name"]: found async for found in await database.list_collections()}
    for name, validator in VALIDATORS.items():
        if name not in present:
            try:
                await database.create_collection(name, validator=validator)
            except CollectionInvalid:
                pass  # another instance was faster; it has the same validator or the next start brings it
            else:
                continue
        if present.get(name, {}).get("options", {}).get("validator") != validator:
            await database.command("collMod", name, validator=validator)
    for name, wanted in indexes(retention_days).items():
        await _apply_indexes(database[name], wanted)


async def _apply_indexes(collection: AsyncCollection[Document], wanted: Sequence[Index]) -> None:
    present = await collection.index_information()
    for index in wanted:
        found = present.get(index.name)
        if found is not None:
            if _same(found, index):
                continue
            if _same({**found, "expireAfterSeconds": index.options.get("expireAfterSeconds")}, index):
                change = {"name": index.name, "expireAfterSeconds": index.options["expireAfterSeconds"]}
                await collection.database.command("collMod", collection.name, index=change)
                continue
            try:
                await collection.drop_index(index.name)
            except OperationFailure as error:
                if error.code != _INDEX_NOT_FOUND:
                    raise
        # Of a large collection that takes longer than any query may.
        with pymongo.timeout(INDEX_BUILD_SECONDS):
            await collection.create_index(list(index.keys), **index.options)


def _same(found: Mapping[str, Any], index: Index) -> bool:
    options = ("unique", "expireAfterSeconds", "partialFilterExpression")
    return [tuple(pair) for pair in found["key"]] == list(index.keys) and all(
        found.get(option) == index.options.get(option) for option in options
    )
