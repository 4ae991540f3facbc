"""How sessions are: who has fallen silent, and how many are in each state (PRD 2.4)."""

from __future__ import annotations

from datetime import datetime, timedelta

from state_tracking_api import presence, sessions
from state_tracking_api.clock import iso
from state_tracking_api.lifecycle import (
    Document,
    Outage,
    SessionStatus,
    is_healthy,
    is_stalled,
    silence,
    stall_threshold,
)
from state_tracking_api.metadata import Json
from state_tracking_api.storage import Storage


def overdue(now: datetime, default: timedelta, outage: Outage | None) -> Document:
    """Active sessions that have been silent for longer than their threshold, as a filter (PRD 2.4).

    The same rule as `lifecycle.is_overdue`; a test holds the two together.
    """
    active = str(SessionStatus.ACTIVE)
    by_default: Document = {
        "status": active,
        "stall_threshold_ms": None,
        "last_heartbeat": {"$lt": now - default},
    }
    own = "$stall_threshold_ms"
    conditions: list[Document] = [{"$lt": ["$last_heartbeat", {"$subtract": [now, own]}]}]
    if outage is not None:
        if now - outage.back_at <= default:
            graced = {"$gte": outage.gone_at - default, "$lt": outage.back_at}
            by_default["$nor"] = [{"created_at": {"$lt": outage.back_at}, "last_heartbeat": graced}]
        has_grace = [
            {"$lte": [{"$subtract": [now, outage.back_at]}, own]},
            {"$lt": ["$created_at", outage.back_at]},
            {"$lt": ["$last_heartbeat", outage.back_at]},
            {"$gte": ["$last_heartbeat", {"$subtract": [outage.gone_at, own]}]},
        ]
        conditions.append({"$not": [{"$and": has_grace}]})
    by_own = {"status": active, "stall_threshold_ms": {"$gt": 0}, "$expr": {"$and": conditions}}
    return {"$or": [by_default, by_own]}


async def summary(storage: Storage, now: datetime, default: timedelta) -> Json:
    """How many sessions there are in each state (PRD 2.4); silent ones count as stalled at once."""
    counts = await sessions.count_by_status(storage)
    outage = await presence.latest_outage(storage)
    late = await storage.sessions.count_documents(overdue(now, default, outage))
    late = min(late, counts[SessionStatus.ACTIVE])
    return {
        "total_sessions": sum(counts.values()),
        "active_sessions": counts[SessionStatus.ACTIVE] - late,
        "paused_sessions": counts[SessionStatus.PAUSED],
        "stalled_sessions": counts[SessionStatus.STALLED] + late,
        "failed_sessions": counts[SessionStatus.FAILED],
        "completed_sessions": counts[SessionStatus.COMPLETED],
        "suspected_outage": await presence.is_outage_suspected(storage, now),
        "last_updated": iso(now),
    }


async def stalled(storage: Storage, now: datetime, default: timedelta) -> list[Json]:
    """Sessions marked stalled and active ones past their threshold, longest silent first (PRD 2.4)."""
    outage = await presence.latest_outage(storage)
    condition = {"$or": [{"status": str(SessionStatus.STALLED)}, *overdue(now, default, outage)["$or"]]}
    fields = {"_id": 0, "session_id": 1, "project_id": 1, "machine_id": 1, "last_heartbeat": 1}
    found = storage.sessions.find(condition, fields).sort([("last_heartbeat", 1), ("session_id", 1)])
    return [
        {
            **session,
            "last_heartbeat": iso(session["last_heartbeat"]),
            "time_since_heartbeat_ms": sessions.milliseconds(silence(session, now)),
        }
        async for session in found
    ]


async def of_session(storage: Storage, session_id: str, now: datetime, default: timedelta) -> Json:
    """Health of one session (PRD 2.4); raises NotFound."""
    session = await sessions.get(storage, session_id)
    outage = await presence.latest_outage(storage)
    return {
        "session_id": session["session_id"],
        "is_healthy": is_healthy(session, now, default, outage),
        "status": session["status"],
        "last_heartbeat": iso(session["last_heartbeat"]),
        "time_since_heartbeat_ms": sessions.milliseconds(silence(session, now)),
        "is_stalled": is_stalled(session, now, default, outage),
        "stall_threshold_ms": sessions.milliseconds(stall_threshold(session, default)),
    }
