"""What a person looks at: sessions by how much they need somebody, one session in full, machines by slot.

Each view is a few queries on indexes, so that a page may ask again every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from state_tracking_api import health, machines, metadata, presence, sessions, tasks
from state_tracking_api.clock import iso, iso_or_none
from state_tracking_api.errors import NotFound
from state_tracking_api.lifecycle import (
    LIVE,
    Document,
    MachineStatus,
    SessionStatus,
    TaskStatus,
    is_stalled,
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

# Long, and of no use to a list.
_LEFT_OUT = {"events": 0, "beats": 0}


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
    counts, suspected = await asyncio.gather(
        _counts(storage, filters, silent), presence.is_outage_suspected(storage, now)
    )
    wanted = counts if status is None else {str(status): counts[status]}
    total = sum(wanted.values())
    rows = await _rows(storage, filters, silent, wanted, min(limit, total - offset), offset)
    return {
        "counts": counts,
        "sessions": [_row(found, default) for found in rows],
        "total": total,
        "limit": limit,
        "offset": offset,
        "suspected_outage": suspected,
    }


async def _counts(storage: Storage, filters: Document, silent: Document) -> dict[str, int]:
    counts, late = await asyncio.gather(
        _count_some(storage, filters) if filters else sessions.count_by_status(storage),
        storage.sessions.count_documents({**filters, **silent}),
    )
    late = min(late, counts[_ACTIVE])
    counts[_ACTIVE] -= late
    counts[_STALLED] += late
    return counts


async def _count_some(storage: Storage, filters: Document) -> dict[str, int]:
    counts = {str(status): 0 for status in SessionStatus}
    by_status = {"$group": {"_id": "$status", "count": {"$sum": 1}}}
    async for group in await storage.sessions.aggregate([{"$match": filters}, by_status]):
        counts[group["_id"]] = group["count"]
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
    """The order of the rows: as what they count, filter, field that they are sorted by, direction.

    Marked or not yet marked, a stalled session is as urgent as it has been silent.
    """
    not_archived = {"metadata.archived": {"$ne": True}}
    stalled: Document = {"$or": [{"status": _STALLED}, *silent["$or"]]}
    return [
        (SessionStatus.STALLED, stalled, "last_heartbeat", 1),
        (SessionStatus.FAILED, {"status": _FAILED, **not_archived}, "completed_at", -1),
        (SessionStatus.ACTIVE, {"status": _ACTIVE, "$nor": [silent]}, "created_at", -1),
        (SessionStatus.PAUSED, {"status": _PAUSED}, "created_at", -1),
        (SessionStatus.COMPLETED, {"status": _COMPLETED}, "completed_at", -1),
        (SessionStatus.FAILED, {"status": _FAILED, "metadata.archived": True}, "completed_at", -1),
    ]


async def _rows(
    storage: Storage,
    filters: Document,
    silent: Document,
    counts: Mapping[str, int],
    limit: int,
    offset: int,
) -> list[Document]:
    """One branch after the other, each sorted by its own index, until there are as many as `limit`.

    Only those that `counts` has somebody in are asked.
    """
    rows: dict[str, Document] = {}
    for counted_as, condition, field, direction in branches(silent):
        if len(rows) >= limit:
            break
        if not counts.get(counted_as):
            continue
        chosen = {**filters, **condition}
        found = storage.sessions.find(chosen, _LEFT_OUT).sort(field, direction).skip(offset)
        empty = True
        async for session in found.limit(limit - len(rows)):
            empty = False
            # Whoever has changed its state since the branch before is shown once, where it was.
            rows.setdefault(session["session_id"], {**session, "counted_as": counted_as})
        if not empty:
            offset = 0
        elif offset > 0:
            offset = max(0, offset - await storage.sessions.count_documents(chosen))
    if rows:
        await _add_tasks(storage, rows)
    return list(rows.values())


async def _add_tasks(storage: Storage, rows: Mapping[str, Document]) -> None:
    """Put `progress` and `current` into each row: two queries for the page, not two for each row."""
    current = [row["current_task_id"] for row in rows.values() if row.get("current_task_id")]
    counted, named = await asyncio.gather(
        storage.tasks.aggregate(
            [
                {"$match": {"session_id": {"$in": list(rows)}}},
                {
                    "$group": {
                        "_id": {"session": "$session_id", "status": "$status"},
                        "count": {"$sum": 1},
                    }
                },
            ],
            hint="session_id_1_status_1",
        ),
        storage.tasks.find({"task_id": {"$in": current}}, {"_id": 0, "task_id": 1, "task_name": 1}).to_list(),
    )
    names_of = {task["task_id"]: task["task_name"] for task in named}
    for row in rows.values():
        row["progress"] = {str(status): 0 for status in TaskStatus}
        row["current"] = names_of.get(row.get("current_task_id"))
    async for group in counted:
        rows[group["_id"]["session"]]["progress"][group["_id"]["status"]] = group["count"]


def _row(session: Document, default: timedelta) -> Json:
    stored = metadata.stored_in(session)
    return {
        "session_id": session["session_id"],
        "project_id": session["project_id"],
        "machine_id": session["machine_id"],
        "docker_slot": session.get("docker_slot"),
        "status": session["status"],
        "is_stalled": session["counted_as"] is SessionStatus.STALLED,
        "archived": stored.get("archived") is True,
        "last_heartbeat": iso(session["last_heartbeat"]),
        "stall_threshold_ms": sessions.milliseconds(stall_threshold(session, default)),
        "started_at": iso(session["started_at"]),
        "completed_at": iso_or_none(session.get("completed_at")),
        "current_task": session["current"],
        "tasks": session["progress"],
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
    return {
        "session": sessions.presented(session),
        "is_stalled": is_stalled(session, now, default, outage),
        "stall_threshold_ms": sessions.milliseconds(stall_threshold(session, default)),
        "tasks": [tasks.presented(task) for task in found],
        "task_counts": _progress(await counted.to_list()),
        "chain": [_link(link, is_stalled(link, now, default, outage)) for link in (*before, session, *after)],
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
        {"$project": _LEFT_OUT},
        along("recovered_from", "before"),
        along("recovered_by", "after"),
        {"$project": left_out},
    ]


def _link(session: Document, stalled: bool) -> Json:
    return {
        "session_id": session["session_id"],
        "machine_id": session["machine_id"],
        "status": session["status"],
        "is_stalled": stalled,
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
        {**_LEFT_OUT, "metadata": 0},
    ).sort([("created_at", 1), ("session_id", 1)])
    on: dict[str, list[Json]] = {machine["machine_id"]: [] for machine in found}
    async for session in live:
        on[session["machine_id"]].append(
            {
                "session_id": session["session_id"],
                "project_id": session["project_id"],
                "docker_slot": session.get("docker_slot"),
                "status": session["status"],
                "is_stalled": is_stalled(session, now, default, outage),
            }
        )
    shown = [{**machines.presented(machine), "sessions": on[machine["machine_id"]]} for machine in found]
    return {"machines": shown, "total": total, "limit": limit, "offset": offset}
