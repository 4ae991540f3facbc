"""Statuses, which one may follow which, and the stall rule: pure functions of document and time.

Nothing here touches the database. Every change of status anywhere is checked against these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

Document = dict[str, Any]


class SessionStatus(StrEnum):
    """State of a session (PRD 1.1)."""

    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    STALLED = "stalled"


class TaskStatus(StrEnum):
    """State of a task (PRD 1.1)."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    BLOCKED = "blocked"


class MachineStatus(StrEnum):
    """Availability of a machine (PRD 1.1)."""

    ONLINE = "online"
    OFFLINE = "offline"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True, slots=True)
class Stamp:
    """When something happens, by the server's clock, and who does it: `key:NAME` or `job:NAME`."""

    now: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which the service was away: the last sign of it before, and the first one after."""

    gone_at: datetime
    back_at: datetime


LIVE = (SessionStatus.ACTIVE, SessionStatus.PAUSED, SessionStatus.STALLED)
ENDED = (SessionStatus.COMPLETED, SessionStatus.FAILED)
RECOVERABLE = (SessionStatus.FAILED, SessionStatus.STALLED)

TASK_FINISHED = (TaskStatus.COMPLETED, TaskStatus.FAILED)
TASK_OPEN = (TaskStatus.PENDING, TaskStatus.IN_PROGRESS, TaskStatus.BLOCKED)

_EVERY_SESSION_STATUS = frozenset(SessionStatus)
_NO_STATUS: frozenset[SessionStatus] = frozenset()

# Sessions. Ended is ended: nothing leads out of completed and failed.
SESSION_TRANSITIONS: Mapping[SessionStatus, frozenset[SessionStatus]] = {
    SessionStatus.ACTIVE: _EVERY_SESSION_STATUS - {SessionStatus.ACTIVE},
    SessionStatus.PAUSED: _EVERY_SESSION_STATUS - {SessionStatus.PAUSED},
    SessionStatus.STALLED: _EVERY_SESSION_STATUS - {SessionStatus.STALLED},
    SessionStatus.COMPLETED: _NO_STATUS,
    SessionStatus.FAILED: _NO_STATUS,
}

# Tasks. The same status again is refused, because a task is claimed once; only blocked may be
# said again, with a new reason.
TASK_TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.PENDING: frozenset(
        {TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.BLOCKED}
    ),
    TaskStatus.IN_PROGRESS: frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.BLOCKED}),
    TaskStatus.COMPLETED: frozenset({TaskStatus.BLOCKED}),
    TaskStatus.FAILED: frozenset({TaskStatus.BLOCKED}),
    TaskStatus.BLOCKED: frozenset(TaskStatus),
}


def is_live(session: Document) -> bool:
    """Whether the session still has work to do: active, paused or stalled."""
    return session["status"] in LIVE


def is_fenced(session: Document) -> bool:
    """Whether `prepare-recovery` has taken the session's machine away from it."""
    return bool(session.get("fenced"))


def holds_its_machine(session: Document) -> bool:
    """Whether the session stands in its machine's `active_sessions`."""
    return is_live(session) and not is_fenced(session)


def silence(session: Document, now: datetime) -> timedelta:
    """How long the session has not been heard of; its start counts as its first heartbeat."""
    return max(now - session["last_heartbeat"], timedelta(0))


def stall_threshold(session: Document, default: timedelta) -> timedelta:
    """The silence after which this session counts as stalled: its own threshold, else the default."""
    own = session.get("stall_threshold_ms")
    return default if own is None else timedelta(milliseconds=own)


def has_grace(session: Document, now: datetime, threshold: timedelta, outage: Outage | None) -> bool:
    """Whether the session's silence may be the service's own fault.

    So it is for a session that lived when the service went away and has not been heard of since. From the
    moment the service is back, such a session has its whole threshold again.
    """
    if outage is None or now - outage.back_at > threshold:
        return False
    last = session["last_heartbeat"]
    return session["created_at"] < outage.back_at and outage.gone_at - threshold <= last < outage.back_at


def is_overdue(session: Document, now: datetime, default: timedelta, outage: Outage | None = None) -> bool:
    """Whether an active session has been silent for longer than its threshold (PRD 2.4)."""
    threshold = stall_threshold(session, default)
    silent = session["status"] == SessionStatus.ACTIVE and silence(session, now) > threshold
    return silent and not has_grace(session, now, threshold, outage)


def is_stalled(session: Document, now: datetime, default: timedelta, outage: Outage | None = None) -> bool:
    """Whether the session counts as stalled, marked so or not yet."""
    return session["status"] == SessionStatus.STALLED or is_overdue(session, now, default, outage)


def is_healthy(session: Document, now: datetime, default: timedelta, outage: Outage | None = None) -> bool:
    """Whether the session is active and within its threshold."""
    return session["status"] == SessionStatus.ACTIVE and not is_overdue(session, now, default, outage)


# Of a document's events the latest are kept, and of a reason its beginning: a document must never grow
# beyond the 16 MiB that MongoDB stores, whatever a client does to it and however often. An error message as a
# whole stands in a field of its own.
EVENTS_KEPT = 1000
REASON_KEPT = 1000


def event(stamp: Stamp, before: str | None, after: str, reason: str | None) -> Document:
    """A transition as it is recorded in the document that makes it, in the same write."""
    said = reason if reason is None or len(reason) <= REASON_KEPT else f"{reason[: REASON_KEPT - 1]}…"
    return {"at": stamp.now, "from": before, "to": after, "actor": stamp.actor, "reason": said}


def pushed(happened: Document) -> Document:
    """The event as the operand of a `$push`."""
    return {"$each": [happened], "$slice": -EVENTS_KEPT}


def appended(happened: Document) -> Document:
    """The value of `events` with the event, both as expressions of an update pipeline."""
    before: Document = {"$ifNull": ["$events", []]}
    return {"$slice": [{"$concatArrays": [before, [happened]]}, -EVENTS_KEPT]}
