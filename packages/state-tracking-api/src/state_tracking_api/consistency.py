"""Whether the stored data keeps its promises, and repair of what can be derived (PRD 3.6, 4)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from state_tracking_api import log, machines, presence, transitions
from state_tracking_api.lifecycle import ENDED, LIVE, Document, SessionStatus, Stamp, TaskStatus
from state_tracking_api.metadata import Json
from state_tracking_api.settings import Settings
from state_tracking_api.storage import Storage, Transaction

# More of one kind than this are counted (and repaired), not listed.
LISTED = 100
# The clocks of several instances may differ by this much.
CLOCKS_DIFFER_MS = 1000

_LIVE = [str(status) for status in LIVE]
_ENDED = [str(status) for status in ENDED]


@dataclass(frozen=True)
class Check:
    """A promise: what finds its violations, and what mends one where the truth can be derived."""

    name: str
    collection: str
    id_field: str
    pipeline: list[Document]
    repair: Callable[[Storage, str, Stamp], Awaitable[None]] | None = None
    # Leaves out what was created longer ago than ended sessions are kept.
    within_retention: bool = False


def _lookup(source: str, local: str, foreign: str, fields: Mapping[str, int], name: str) -> Document:
    return {
        "$lookup": {
            "from": source,
            "localField": local,
            "foreignField": foreign,
            "pipeline": [{"$project": {"_id": 0, **fields}}],
            "as": name,
        }
    }


_ON_THIS_MACHINE: Document = {
    "$lookup": {
        "from": "sessions",
        "localField": "machine_id",
        "foreignField": "machine_id",
        "pipeline": [
            {"$match": {"status": {"$in": _LIVE}, "fenced": {"$ne": True}}},
            {"$project": {"_id": 0, "session_id": 1}},
        ],
        "as": "present",
    }
}


async def _clear_current_task(storage: Storage, session_id: str, stamp: Stamp) -> None:
    async def work(txn: Transaction) -> None:
        # The session may have gone on to another task since the check, or the task be in progress by now.
        live = {"session_id": session_id, "status": {"$in": _LIVE}}
        session = await storage.sessions.find_one(live, {"current_task_id": 1}, session=txn)
        current = None if session is None else session.get("current_task_id")
        task = await storage.tasks.find_one({"task_id": current}, session=txn) if current else None
        if task is None:
            return
        if task["session_id"] == session_id and task["status"] == TaskStatus.IN_PROGRESS:
            return
        change = {"$set": {"current_task_id": None, "updated_at": stamp.now}, "$inc": {"revision": 1}}
        await storage.sessions.update_one(live, change, session=txn)

    await storage.transaction(work, session_id)


async def _complete_timestamp(storage: Storage, session_id: str, stamp: Stamp) -> None:
    del stamp
    missing = {"session_id": session_id, "status": {"$in": _ENDED}, "completed_at": None}
    await storage.sessions.update_one(missing, [{"$set": {"completed_at": "$updated_at"}}])


async def _fail_task(storage: Storage, task_id: str, stamp: Stamp) -> None:
    task = await storage.tasks.find_one({"task_id": task_id}, {"session_id": 1})
    if task is None:
        return

    async def work(txn: Transaction) -> None:
        why = "Session failed"
        await transitions.fail_tasks_in_progress(storage, txn, task["session_id"], stamp, why)

    await storage.transaction(work)


async def _delete_orphan(storage: Storage, task_id: str, stamp: Stamp) -> None:
    del stamp
    # A session's id never comes back, so what was an orphan in the snapshot is one now.
    await storage.tasks.delete_one({"task_id": task_id})


def _after(earlier: str, later: str) -> Document:
    """Whether two times are in the wrong order; one that is unset never is."""
    return {
        "$and": [
            {"$gt": [f"${later}", None]},
            {"$gt": [f"${earlier}", {"$add": [f"${later}", CLOCKS_DIFFER_MS]}]},
        ]
    }


def _out_of_order(*pairs: tuple[str, str]) -> list[Document]:
    return [{"$match": {"$expr": {"$or": [_after(earlier, later) for earlier, later in pairs]}}}]


CHECKS = (
    Check(
        "a machine's active_sessions are exactly its live sessions",
        "machines",
        "machine_id",
        [
            _ON_THIS_MACHINE,
            {"$match": {"$expr": {"$not": [{"$setEquals": ["$active_sessions", "$present.session_id"]}]}}},
        ],
        machines.sync,
    ),
    Check(
        "a project has at most one active session on a machine",
        "sessions",
        "session_id",
        [
            {"$match": {"status": str(SessionStatus.ACTIVE)}},
            {
                "$group": {
                    "_id": {"project_id": "$project_id", "machine_id": "$machine_id"},
                    "session_id": {"$first": "$session_id"},
                    "count": {"$sum": 1},
                }
            },
            {"$match": {"count": {"$gt": 1}}},
        ],
    ),
    Check(
        "a session has at most one successor",
        "sessions",
        "session_id",
        [
            {"$match": {"recovered_from": {"$type": "string"}}},
            {"$group": {"_id": "$recovered_from", "session_id": {"$first": "$session_id"}, "n": {"$sum": 1}}},
            {"$match": {"n": {"$gt": 1}}},
        ],
    ),
    Check(
        "an ended session has completed_at",
        "sessions",
        "session_id",
        [{"$match": {"status": {"$in": _ENDED}, "completed_at": None}}],
        _complete_timestamp,
    ),
    Check(
        "no task is in progress under a failed session",
        "tasks",
        "task_id",
        [
            {"$match": {"status": str(TaskStatus.IN_PROGRESS)}},
            _lookup("sessions", "session_id", "session_id", {"status": 1}, "session"),
            {"$match": {"session.status": str(SessionStatus.FAILED)}},
        ],
        _fail_task,
    ),
    Check(
        "a task has a session",
        "tasks",
        "task_id",
        [
            _lookup("sessions", "session_id", "session_id", {"session_id": 1}, "session"),
            {"$match": {"session": []}},
        ],
        _delete_orphan,
        # The TTL index takes a session without its tasks, which then wait for the next cleanup.
        within_retention=True,
    ),
    Check(
        # A heartbeat may also name work that is no task of ours; that is no violation.
        "current_task_id is a task of the session and in progress",
        "sessions",
        "session_id",
        [
            {"$match": {"status": {"$in": _LIVE}, "current_task_id": {"$type": "string"}}},
            _lookup("tasks", "current_task_id", "task_id", {"session_id": 1, "status": 1}, "task"),
            {"$unwind": "$task"},
            {
                "$match": {
                    "$expr": {
                        "$or": [
                            {"$ne": ["$task.session_id", "$session_id"]},
                            {"$ne": ["$task.status", str(TaskStatus.IN_PROGRESS)]},
                        ]
                    }
                }
            },
        ],
        _clear_current_task,
    ),
    Check(
        "a session's times are in order",
        "sessions",
        "session_id",
        _out_of_order(
            ("started_at", "last_heartbeat"),
            ("started_at", "completed_at"),
            ("created_at", "updated_at"),
        ),
    ),
    Check(
        "a task's times are in order",
        "tasks",
        "task_id",
        _out_of_order(
            ("created_at", "started_at"),
            ("started_at", "completed_at"),
            ("created_at", "updated_at"),
        ),
    ),
)


async def check(storage: Storage, settings: Settings, stamp: Stamp, *, repair: bool = False) -> Json:
    """Look for violations, all in one snapshot of the data; mend what can be derived where told to.

    Returns the violations and what was repaired, the first hundred of each kind, and how many are left.
    """
    violations: list[Json] = []
    repaired: list[Json] = []
    left = 0
    for promise, broken in await _violated(storage, stamp.now - timedelta(days=settings.retention_days)):
        for identifier in broken[:LISTED]:
            violations.append({"check": promise.name, promise.id_field: identifier})
            log.get().error("Consistency violated", check=promise.name, **{promise.id_field: identifier})
        if len(broken) > LISTED:
            log.get().error("Consistency violated more often", check=promise.name, violations=len(broken))
        if not repair or promise.repair is None:
            left += len(broken)
            continue
        for identifier in broken:
            await promise.repair(storage, identifier, stamp)
        for identifier in broken[:LISTED]:
            repaired.append({"check": promise.name, promise.id_field: identifier})
            log.get().warning("Consistency repaired", check=promise.name, **{promise.id_field: identifier})
    await presence.note_check(storage, stamp.now, left)
    return {"violations": violations, "repaired": repaired, "left": left}


async def _violated(storage: Storage, retained_since: datetime) -> list[tuple[Check, list[str]]]:
    """Every check with the ids of what violates it."""
    retained = {"$match": {"created_at": {"$gt": retained_since}}}
    async with storage.client.start_session(snapshot=True) as snapshot:
        found: list[tuple[Check, list[str]]] = []
        for promise in CHECKS:
            chosen = [retained] if promise.within_retention else []
            pipeline = [*chosen, *promise.pipeline, {"$project": {promise.id_field: 1}}]
            cursor = await storage.database[promise.collection].aggregate(pipeline, session=snapshot)
            found.append((promise, [broken[promise.id_field] async for broken in cursor]))
        return found
