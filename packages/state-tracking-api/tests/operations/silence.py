"""Sessions that live or fall silent by the hundred, without a request for each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from api_harness.api import uuid4
from api_harness.servers import Document, Documents


def now() -> datetime:
    return datetime.now(UTC)


def session(last_heartbeat: datetime, **fields: Any) -> Document:
    """A stored session that was started an hour ago and last heard of then."""
    started = now() - timedelta(hours=1)
    return {
        "session_id": uuid4(),
        "project_id": uuid4(),
        "machine_id": uuid4(),
        "docker_slot": None,
        "status": "active",
        "last_heartbeat": last_heartbeat,
        "current_task_id": None,
        "started_at": started,
        "completed_at": None,
        "metadata": {},
        "metadata_bytes": 2,
        "created_at": started,
        "updated_at": last_heartbeat,
        "recovered_from": None,
        "recovered_by": None,
        "stall_threshold_ms": None,
        "revision": 0,
        "beats": [],
        "events": [{"at": started, "from": None, "to": "active", "actor": "key:tests", "reason": "started"}],
    } | fields


def sessions(database: Documents, count: int, last_heartbeat: datetime, **fields: Any) -> list[str]:
    """Store `count` of them; their ids."""
    made = [session(last_heartbeat, **fields) for _ in range(count)]
    database.sessions.insert_many(made)
    return [one["session_id"] for one in made]


def stalls(database: Documents, identifiers: list[str]) -> list[Document]:
    """The stall events of these sessions: when, and silent since when."""
    found = database.sessions.find({"session_id": {"$in": identifiers}}, {"events": 1})
    return [event for one in found for event in one["events"] if event["to"] == "stalled"]


def marked(database: Documents, identifiers: list[str]) -> int:
    """How many of these sessions were ever marked stalled."""
    return len(stalls(database, identifiers))
