"""Deleting what is past its retention (PRD 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from state_tracking_api import log, machines
from state_tracking_api.clock import iso_or_none
from state_tracking_api.lifecycle import ENDED, Document, Stamp
from state_tracking_api.metadata import Json
from state_tracking_api.settings import Settings
from state_tracking_api.storage import Storage, Transaction

BATCH = 200


async def cleanup(
    storage: Storage, settings: Settings, stamp: Stamp, older_than_days: int | None = None
) -> Json:
    """Delete sessions that ended long ago, with their tasks; archived ones stay (PRD 3.4).

    Also removes tasks whose session is gone (the TTL index may have been faster) and takes ids that are gone
    off machines. `older_than_days` defaults to RETENTION_DAYS.
    """
    days = settings.retention_days if older_than_days is None else older_than_days
    expired = {
        "status": {"$in": [str(status) for status in ENDED]},
        "completed_at": {"$lte": stamp.now - timedelta(days=days)},
        "metadata.archived": {"$ne": True},
    }
    deleted_sessions = deleted_tasks = 0
    while True:
        found = storage.sessions.find(expired, {"_id": 1}).limit(BATCH)
        batch = [session["_id"] async for session in found]
        if not batch:
            break
        sessions_gone, tasks_gone = await _delete_batch(storage, {"_id": {"$in": batch}, **expired})
        deleted_sessions += sessions_gone
        deleted_tasks += tasks_gone
    deleted_tasks += await delete_orphans(storage)
    await _tidy_machines(storage, stamp)
    return {"deleted_sessions": deleted_sessions, "deleted_tasks": deleted_tasks}


async def _delete_batch(storage: Storage, condition: Mapping[str, Any]) -> tuple[int, int]:
    async def work(txn: Transaction) -> tuple[list[Document], int]:
        fields = {"_id": 1, "session_id": 1, "project_id": 1, "completed_at": 1}
        gone = await storage.sessions.find(condition, fields, session=txn).to_list()
        ids = [session["session_id"] for session in gone]
        tasks = await storage.tasks.delete_many({"session_id": {"$in": ids}}, session=txn)
        await storage.sessions.delete_many({"_id": {"$in": [s["_id"] for s in gone]}}, session=txn)
        return gone, tasks.deleted_count

    gone, tasks = await storage.transaction(work)
    for session in gone:
        log.get().info(
            "Session cleaned up",
            session_id=session["session_id"],
            project_id=session["project_id"],
            completed_at=iso_or_none(session["completed_at"]),
        )
    return len(gone), tasks


async def delete_orphans(storage: Storage) -> int:
    """Delete tasks of sessions that are gone; a session's id never comes back, so reading first is safe."""
    grouped = await storage.tasks.aggregate(
        [
            {"$sort": {"session_id": 1, "status": 1}},
            {"$group": {"_id": "$session_id"}},
            {
                "$lookup": {
                    "from": "sessions",
                    "localField": "_id",
                    "foreignField": "session_id",
                    "pipeline": [{"$project": {"_id": 1}}],
                    "as": "session",
                }
            },
            {"$match": {"session": []}},
        ],
        hint="session_id_1_status_1",
    )
    deleted = 0
    async for group in grouped:
        deleted += (await storage.tasks.delete_many({"session_id": group["_id"]})).deleted_count
    return deleted


async def _tidy_machines(storage: Storage, stamp: Stamp) -> None:
    occupied = storage.machines.find({"active_sessions": {"$ne": []}}, {"machine_id": 1}, hint="machine_id_1")
    async for machine in occupied:
        await machines.sync(storage, machine["machine_id"], stamp)
