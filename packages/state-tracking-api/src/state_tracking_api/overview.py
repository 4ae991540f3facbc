"""What a person looks at: sessions by how much they need somebody, one session in full, machines by slot.

Each view is one or two aggregations on indexes, so that a page may ask again every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from state_tracking_api import health, machines, presence, sessions, tasks
from state_tracking_api.clock import iso, iso_or_none
from state_tracking_api.errors import NotFound
from state_tracking_api.lifecycle import (
    LIVE,
    Document,
    MachineStatus,
    SessionStatus,
    TaskStatus,
    is_overdue,
    stall_threshold,
)
from state_tracking_api.metadata import Json
from state_tracking_api.storage import Storage

# So many names are suggested for a filter; a filter may name others.
MAX_NAMES = 200
# So many tasks of a session are shown, so many predecessors and successors are followed.
MAX_TASKS = 500
MAX_CHAIN = 50
_MESSAGE_LENGTH = 300

_ACTIVE, _PAUSED = str(SessionStatus.ACTIVE), str(SessionStatus.PAUSED)
_STALLED, _FAILED = str(SessionStatus.STALLED), str(SessionStatus.FAILED)
_COMPLETED = str(SessionStatus.COMPLETED)

Pipeline = list[dict[str, Any]]


async def overview(
    storage: Storage,
    now: datetime,
    default: timedelta,
    *,
    project_id: str | None,
    machine_id: str | None,
    status: SessionStatus | None,
    limit: int,
    offset: int,
) -> Json:
    """Counts by state and a page of sessions: stalled first, then failed, active, paused, completed.

    An active session that is past its threshold counts as stalled, marked so or not (PRD 2.4). The counts are
    those of the project and machine, whatever the status. An archived failure needs nobody any more, so it
    comes last.
    """
    filters: Document = {}
    if project_id is not None:
        filters["project_id"] = project_id
    if machine_id is not None:
        filters["machine_id"] = machine_id
    silent = health.overdue(now, default, await presence.latest_outage(storage))
    counts, rows, suspected = await asyncio.gather(
        _counts(storage, filters, silent),
        _rows(storage, filters, silent, status, limit, offset),
        presence.is_outage_suspected(storage, now),
    )
    return {
        "counts": counts,
        "sessions": [_row(found, default) for found in rows],
        "total": sum(counts.values()) if status is None else counts[status],
        "limit": limit,
        "offset": offset,
        "suspected_outage": suspected,
    }


async def _counts(storage: Storage, filters: Document, silent: Document) -> dict[str, int]:
    options: dict[str, Any] = {} if filters else {"hint": "status_1_last_heartbeat_1"}
    grouped, late = await asyncio.gather(
        storage.sessions.aggregate(
            [{"$match": filters}, {"$group": {"_id": "$status", "count": {"$sum": 1}}}],
            **options,
        ),
        storage.sessions.count_documents({**filters, **silent}),
    )
    counts = {str(status): 0 for status in SessionStatus}
    async for group in grouped:
        counts[group["_id"]] = group["count"]
    late = min(late, counts[_ACTIVE])
    counts[_ACTIVE] -= late
    counts[_STALLED] += late
    return counts


async def names(storage: Storage) -> Json:
    """Projects and machines that there are sessions of: what a filter may be set to."""
    projects, machine_ids = await asyncio.gather(
        _names(storage, "project_id", "project_id_1_status_1"), _names(storage, "machine_id", "machine_id_1")
    )
    return {"projects": projects, "machines": machine_ids}


async def _names(storage: Storage, field: str, hint: str) -> list[str]:
    """The first values of a field in alphabetical order; the index is skipped through, not scanned."""
    found = await storage.sessions.aggregate(
        [
            {"$sort": {field: 1}},
            {"$group": {"_id": f"${field}"}},
            {"$sort": {"_id": 1}},
            {"$limit": MAX_NAMES},
        ],
        hint=hint,
    )
    return [group["_id"] async for group in found]


def branches(silent: Document) -> list[tuple[SessionStatus, Document, str, int]]:
    """The order of the rows: as what they count, filter, field that they are sorted by, direction."""
    not_archived = {"metadata.archived": {"$ne": True}}
    return [
        (SessionStatus.STALLED, {"status": _STALLED}, "last_heartbeat", 1),
        (SessionStatus.STALLED, silent, "last_heartbeat", 1),
        (SessionStatus.FAILED, {"status": _FAILED, **not_archived}, "completed_at", -1),
        (SessionStatus.ACTIVE, {"status": _ACTIVE, "$nor": [silent]}, "created_at", -1),
        (SessionStatus.PAUSED, {"status": _PAUSED}, "created_at", -1),
        (SessionStatus.COMPLETED, {"status": _COMPLETED}, "completed_at", -1),
        (SessionStatus.FAILED, {"status": _FAILED, "metadata.archived": True}, "completed_at", -1),
    ]


def _page_of(
    filters: Document, silent: Document, status: SessionStatus | None, limit: int, offset: int
) -> Pipeline:
    """Each branch comes sorted from its own index and is cut there; what is sorted together is small."""
    parts: list[Pipeline] = []
    for number, (counted_as, condition, field, direction) in enumerate(branches(silent)):
        if status is not None and counted_as != status:
            continue
        # Marked or not yet marked, a stalled session is as urgent as it has been silent.
        rank = 0 if counted_as is SessionStatus.STALLED else number
        parts.append(
            [
                {"$match": {**filters, **condition}},
                {"$sort": {field: direction}},
                {"$limit": offset + limit},
                {"$project": {"events": 0, "beats": 0}},
                {"$set": {"rank": rank, "order": {"$multiply": [{"$toLong": f"${field}"}, direction]}}},
            ]
        )
    unions = [{"$unionWith": {"coll": "sessions", "pipeline": part}} for part in parts[1:]]
    return [
        *parts[0],
        *unions,
        {"$sort": {"rank": 1, "order": 1, "session_id": 1}},
        {"$skip": offset},
        {"$limit": limit},
    ]


async def _rows(
    storage: Storage,
    filters: Document,
    silent: Document,
    status: SessionStatus | None,
    limit: int,
    offset: int,
) -> list[Document]:
    by_status = [{"$group": {"_id": "$status", "count": {"$sum": 1}}}]
    name = [{"$project": {"_id": 0, "task_name": 1}}]
    found = await storage.sessions.aggregate(
        [
            *_page_of(filters, silent, status, limit, offset),
            _lookup("session_id", "session_id", by_status, "progress"),
            _lookup("current_task_id", "task_id", name, "current"),
        ]
    )
    return await found.to_list()


def _lookup(local: str, foreign: str, pipeline: Pipeline, to: str) -> dict[str, Any]:
    return {
        "$lookup": {
            "from": "tasks",
            "localField": local,
            "foreignField": foreign,
            "pipeline": pipeline,
            "as": to,
        }
    }


def _row(session: Document, default: timedelta) -> Json:
    stored = session.get("metadata", {})
    current: Sequence[Document] = session["current"]
    return {
        "session_id": session["session_id"],
        "project_id": session["project_id"],
        "machine_id": session["machine_id"],
        "docker_slot": session.get("docker_slot"),
        "status": session["status"],
        "is_stalled": session["rank"] == 0,
        "archived": stored.get("archived") is True,
        "last_heartbeat": iso(session["last_heartbeat"]),
        "stall_threshold_ms": sessions.milliseconds(stall_threshold(session, default)),
        "started_at": iso(session["started_at"]),
        "completed_at": iso_or_none(session.get("completed_at")),
        "current_task": current[0]["task_name"] if current else None,
        "tasks": _progress(session["progress"]),
        "error_message": _shortened(stored.get("error_message")),
        "recovered_from": session.get("recovered_from"),
        "recovered_by": session.get("recovered_by"),
    }


def _progress(groups: Sequence[Document]) -> dict[str, int]:
    counts = {str(status): 0 for status in TaskStatus}
    counts.update({group["_id"]: group["count"] for group in groups})
    return counts


def _shortened(message: Any) -> str | None:
    if not isinstance(message, str):
        return None
    return message if len(message) <= _MESSAGE_LENGTH else f"{message[:_MESSAGE_LENGTH]}…"


async def detail(storage: Storage, session_id: str, now: datetime, default: timedelta) -> Json:
    """One session with its tasks, the sessions before and after it, and whether it counts as stalled.

    Tasks come in the order in which they were created, at most MAX_TASKS of them; `task_counts` has all.
    Raises NotFound.
    """
    graph, found, counted, outage = await asyncio.gather(
        storage.sessions.aggregate(_with_chain(session_id)),
        storage.tasks.find({"session_id": session_id}, {"_id": 0, "events": 0})
        .sort([("created_at", 1), ("task_id", 1)])
        .limit(MAX_TASKS)
        .to_list(),
        storage.tasks.aggregate(
            [{"$match": {"session_id": session_id}}, {"$group": {"_id": "$status", "count": {"$sum": 1}}}]
        ),
        presence.latest_outage(storage),
    )
    session = next(iter(await graph.to_list()), None)
    if session is None:
        raise NotFound(f"Session {session_id} does not exist")
    before = sorted(session["before"], key=_depth, reverse=True)
    after = sorted(session["after"], key=_depth)
    late = is_overdue(session, now, default, outage)
    return {
        "session": sessions.presented(session),
        "is_stalled": late or session["status"] == SessionStatus.STALLED,
        "stall_threshold_ms": sessions.milliseconds(stall_threshold(session, default)),
        "tasks": [tasks.presented(task) for task in found],
        "task_counts": _progress(await counted.to_list()),
        "chain": [_link(link) for link in (*before, session, *after)],
    }


def _depth(link: Mapping[str, Any]) -> int:
    return int(link["depth"])


def _with_chain(session_id: str) -> Pipeline:
    """Both ways along `recovered_from` and `recovered_by`, each step by the unique index on session_id."""

    def along(field: str, to: str) -> dict[str, Any]:
        return {
            "$graphLookup": {
                "from": "sessions",
                "startWith": f"${field}",
                "connectFromField": field,
                "connectToField": "session_id",
                "as": to,
                "maxDepth": MAX_CHAIN,
                "depthField": "depth",
            }
        }

    left_out = {name: 0 for to in ("before", "after") for name in (f"{to}.events", f"{to}.beats")}
    return [
        {"$match": {"session_id": session_id}},
        {"$project": {"events": 0, "beats": 0}},
        along("recovered_from", "before"),
        along("recovered_by", "after"),
        {"$project": left_out},
    ]


def _link(session: Document) -> Json:
    return {
        "session_id": session["session_id"],
        "machine_id": session["machine_id"],
        "status": session["status"],
        "started_at": iso(session["started_at"]),
    }


async def fleet(
    storage: Storage,
    now: datetime,
    default: timedelta,
    *,
    status: MachineStatus | None,
    limit: int,
    offset: int,
) -> Json:
    """Machines, newest first, each with the live sessions that hold a place on it."""
    condition = {} if status is None else {"status": str(status)}
    found, total = await machines.page(storage, condition, limit, offset)
    outage = await presence.latest_outage(storage)
    live = storage.sessions.find(
        {
            "machine_id": {"$in": [machine["machine_id"] for machine in found]},
            "status": {"$in": [str(status) for status in LIVE]},
            "fenced": {"$ne": True},
        },
        {"events": 0, "beats": 0, "metadata": 0},
    ).sort([("created_at", 1), ("session_id", 1)])
    on: dict[str, list[Json]] = {machine["machine_id"]: [] for machine in found}
    async for session in live:
        late = is_overdue(session, now, default, outage)
        on[session["machine_id"]].append(
            {
                "session_id": session["session_id"],
                "project_id": session["project_id"],
                "docker_slot": session.get("docker_slot"),
                "status": session["status"],
                "is_stalled": late or session["status"] == SessionStatus.STALLED,
            }
        )
    shown = [{**machines.presented(machine), "sessions": on[machine["machine_id"]]} for machine in found]
    return {"machines": shown, "total": total, "limit": limit, "offset": offset}
