"""Failure detection: who has fallen silent, and what follows from it (PRD 3.2)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from state_tracking_api import health, log, presence, sessions, transitions
from state_tracking_api.lifecycle import Document, MachineStatus, SessionStatus, Stamp, silence
from state_tracking_api.metadata import Json
from state_tracking_api.settings import Settings
from state_tracking_api.storage import Storage

BATCH = 500


async def detect_failures(storage: Storage, settings: Settings, stamp: Stamp) -> Json:
    """Mark active sessions stalled that have been silent for longer than their threshold (PRD 3.2).

    Returns how many were marked, their ids, and how long it took in milliseconds.
    """
    started = time.monotonic()
    outage = await presence.latest_outage(storage) if settings.outage_grace else None
    silent = health.overdue(stamp.now, settings.stall_threshold, outage)
    marked: list[str] = []
    latest = datetime.min.replace(tzinfo=UTC)
    while True:
        # Not sorted: of many that are silent all would be read for each batch. The index begins with the
        # longest silent.
        batch = await storage.sessions.find(silent, {"_id": 1}).limit(BATCH).to_list()
        if not batch:
            break
        candidates = [session["_id"] for session in batch]
        for session in await transitions.stall_silent(storage, candidates, silent, stamp):
            marked.append(session["session_id"])
            latest = max(latest, session["last_heartbeat"])
            log.get().warning(
                "Stalled session detected",
                session_id=session["session_id"],
                project_id=session["project_id"],
                machine_id=session["machine_id"],
                time_since_heartbeat_ms=sessions.milliseconds(silence(session, stamp.now)),
            )
    if marked:
        await _look_for_outage(storage, latest, stamp)
    return {
        "marked_stalled": len(marked),
        "session_ids": marked,
        "duration_ms": round((time.monotonic() - started) * 1000, 3),
    }


async def _look_for_outage(storage: Storage, latest: datetime, stamp: Stamp) -> None:
    """Say so where most sessions fell silent within a minute: that tells of a fault on the way to us.

    `latest` is when the last of those that have just been marked was heard of.
    """
    within = {"$gt": latest - presence.SAME_MINUTE, "$lte": latest}
    silent = await storage.sessions.count_documents(
        {"status": str(SessionStatus.STALLED), "last_heartbeat": within}
    )
    alive = await storage.sessions.count_documents({"status": str(SessionStatus.ACTIVE)})
    if silent < presence.MIN_SUSPECTS or silent <= alive:
        return
    if await presence.suspect_outage(storage, stamp.now):
        log.get().warning("Most sessions fell silent within the same minute", silent=silent, alive=alive)


async def fail_abandoned(storage: Storage, settings: Settings, stamp: Stamp) -> Json:
    """Mark sessions failed that have been stalled for ABANDON_AFTER_HOURS; 0 turns this off.

    The time in which the service was away itself does not count.
    """
    failed = 0
    if settings.abandon_after_hours:
        latest = stamp.now - timedelta(hours=settings.abandon_after_hours)
        outage = await presence.latest_outage(storage)
        away = timedelta(0) if outage is None else outage.back_at - outage.gone_at
        back_at = stamp.now if outage is None else outage.back_at
        heard_before: Document = {"$lt": ["$last_heartbeat", back_at]}
        own: Document = {"$ifNull": ["$stall_threshold_ms", settings.stall_threshold_ms]}
        uncounted = {"$add": [own, {"$cond": [heard_before, sessions.milliseconds(away), 0]}]}
        abandoned: Document = {
            "status": str(SessionStatus.STALLED),
            "last_heartbeat": {"$lt": latest},
            "$expr": {"$lt": ["$last_heartbeat", {"$subtract": [latest, uncounted]}]},
        }
        reason = f"Abandoned: silent for more than {settings.abandon_after_hours} hours"
        async for session in storage.sessions.find(abandoned, {"session_id": 1}):
            failed += await sessions.fail_if(storage, session["session_id"], abandoned, stamp, reason)
    return {"marked_failed": failed}


async def mark_machines_offline(storage: Storage, settings: Settings, stamp: Stamp) -> Json:
    """Mark online machines offline that have sent no heartbeat for MACHINE_OFFLINE_THRESHOLD_MS.

    A machine on which a session still beats is not silent. After an outage of the service every machine has
    the whole time again.
    """
    threshold = timedelta(milliseconds=settings.machine_offline_threshold_ms)
    outage = await presence.latest_outage(storage) if settings.outage_grace else None
    marked: list[str] = []
    if outage is None or stamp.now - outage.back_at > threshold:
        cutoff = stamp.now - threshold
        silent = {"status": str(MachineStatus.ONLINE), "last_heartbeat": {"$lt": cutoff}}
        async for machine in storage.machines.find(silent, {"machine_id": 1}):
            machine_id = machine["machine_id"]
            beating = {**transitions.on_machine(machine_id), "last_heartbeat": {"$gte": cutoff}}
            if await storage.sessions.find_one(beating, {"_id": 1}) is not None:
                continue
            change = {"$set": {"status": str(MachineStatus.OFFLINE), "updated_at": stamp.now}}
            changed = await storage.machines.update_one({"machine_id": machine_id, **silent}, change)
            if changed.modified_count:
                marked.append(machine_id)
                log.get().warning("Machine went offline", machine_id=machine_id)
    return {"marked_offline": len(marked), "machine_ids": marked}
