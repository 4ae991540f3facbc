"""How well detection and recovery work, from the recorded transitions (PRD 3.6 and 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from state_tracking_api import presence, sessions
from state_tracking_api.clock import iso, iso_or_none
from state_tracking_api.lifecycle import ENDED, Document, SessionStatus, TaskStatus
from state_tracking_api.metadata import Json
from state_tracking_api.storage import Storage

DEFAULT_WINDOW = timedelta(days=7)
# PRD 1: a crash is detected within five minutes.
DETECTION_TARGET = timedelta(minutes=5)
HOURLY_UP_TO = timedelta(days=2)
LONGEST_WINDOW = timedelta(days=3660)
# Documents that are counted in one go; other requests have their turn in between.
BATCH = 500
REASONS_LISTED = 10
REASON_LENGTH = 200


@dataclass
class _Bucket:
    """A part of the window, for drawing."""

    counts: Counter[str] = field(default_factory=Counter[str])
    detect: list[timedelta] = field(default_factory=list[timedelta])


@dataclass
class _Tally:
    """What is counted over the sessions of the window."""

    counts: Counter[str] = field(default_factory=Counter[str])
    detect: list[timedelta] = field(default_factory=list[timedelta])
    durations: list[timedelta] = field(default_factory=list[timedelta])
    reasons: Counter[str] = field(default_factory=Counter[str])
    buckets: dict[datetime, _Bucket] = field(default_factory=dict[datetime, _Bucket])


async def summary(storage: Storage, since: datetime, until: datetime, project_id: str | None) -> Json:
    """The success metrics from `since` to `until`, of one project or of all.

    Rates and percentiles are None where there is nothing to divide by.
    """
    chosen: Document = {} if project_id is None else {"project_id": project_id}
    width = timedelta(hours=1) if until - since <= HOURLY_UP_TO else timedelta(days=1)
    tally = await _sessions(storage, chosen, since, until, width)
    tasks = await _tasks(storage, chosen, since)
    beats = await _heartbeats(storage, since)
    checked = await presence.latest_check(storage)
    counts = tally.counts
    finished = counts["completed"] + counts["failed_for_good"]
    candidates = counts["recovered"] + counts["failed_for_good"]
    return {
        "since": iso(since),
        "until": iso(until),
        "project_id": project_id,
        "sessions": {
            "started": counts["started"],
            "completed": counts["completed"],
            "failed": counts["failed"],
            "recovered": counts["recovered"],
            "completion_rate": _rate(counts["completed"], finished),
            "duration_ms": _spread(tally.durations),
        },
        "tasks": tasks,
        "detection": {
            "stalls": counts["stalls"],
            "time_to_detect_ms": _spread(tally.detect),
            "within_target_rate": _rate(
                sum(span <= DETECTION_TARGET for span in tally.detect), len(tally.detect)
            ),
        },
        "false_positives": {
            "count": counts["false_positives"],
            "rate": _rate(counts["false_positives"], counts["stalls"]),
        },
        "recovery": {
            "recovered": counts["recovered"],
            "candidates": candidates,
            "rate": _rate(counts["recovered"], candidates),
        },
        "heartbeats": beats,
        "consistency": {
            "checked_at": iso_or_none(checked["checked_at"]),
            "violations": checked["violations"],
        },
        "failure_reasons": [
            {"reason": reason, "count": count} for reason, count in tally.reasons.most_common(REASONS_LISTED)
        ],
        "series": _series(tally.buckets, since, until, width),
    }


async def _sessions(
    storage: Storage, chosen: Document, since: datetime, until: datetime, width: timedelta
) -> _Tally:
    tally = _Tally()
    found = storage.sessions.find(
        {**chosen, "events.at": {"$gte": since}},
        {"_id": 0, "status": 1, "started_at": 1, "completed_at": 1, "recovered_by": 1, "events": 1},
        batch_size=BATCH,
    )
    async for session in found:
        for event in session["events"]:
            if event.get("task_id"):
                continue  # a task that was deleted
            if since <= event["at"] <= until:
                _count(tally, session, event, width)
        ended = session.get("completed_at")
        if session["status"] in ENDED and not session.get("recovered_by") and ended and ended >= since:
            tally.durations.append(ended - session["started_at"])
            tally.counts["failed_for_good"] += session["status"] == SessionStatus.FAILED
    return tally


def _count(tally: _Tally, session: Document, event: Document, width: timedelta) -> None:
    before, after = event["from"], event["to"]
    what: str | None = None
    if before is None:
        what = "started"
    elif after == SessionStatus.COMPLETED:
        what = "recovered" if session.get("recovered_by") else "completed"
    elif after == SessionStatus.FAILED:
        what = "failed"
        tally.reasons[_first_line(event["reason"] or "")[:REASON_LENGTH]] += 1
    elif after == SessionStatus.STALLED:
        what = "stalls"
    elif before == SessionStatus.STALLED and event["reason"] == sessions.HEARTBEAT:
        what = "false_positives"
    if what is None:
        return
    bucket = tally.buckets.setdefault(_floor(event["at"], width), _Bucket())
    tally.counts[what] += 1
    bucket.counts[what] += 1
    if what == "stalls" and event.get("silent_since") and event["actor"].startswith("job:"):
        span = event["at"] - event["silent_since"]
        tally.detect.append(span)
        bucket.detect.append(span)


def _first_line(reason: str) -> str:
    # What is not blank to a request's check may be nothing but line ends to Python, U+001C for one.
    lines = (line.strip() for line in reason.splitlines())
    return next(filter(None, lines), "no reason given")


async def _tasks(storage: Storage, chosen: Document, since: datetime) -> Json:
    counts: Counter[str] = Counter()
    durations: list[timedelta] = []
    fields = {"_id": 0, "status": 1, "started_at": 1, "completed_at": 1}
    async for task in storage.tasks.find({**chosen, "created_at": {"$gte": since}}, fields, batch_size=BATCH):
        counts[task["status"]] += 1
        if task["status"] == TaskStatus.COMPLETED and task.get("started_at") and task.get("completed_at"):
            durations.append(task["completed_at"] - task["started_at"])
    completed, failed = counts[TaskStatus.COMPLETED], counts[TaskStatus.FAILED]
    return {
        "created": sum(counts.values()),
        "completed": completed,
        "failed": failed,
        "completion_rate": _rate(completed, completed + failed),
        "duration_ms": _spread(durations),
    }


async def _heartbeats(storage: Storage, since: datetime) -> Json:
    received = failed = 0
    async for hour in storage.heartbeat_counts.find({"hour": {"$gte": _floor(since, timedelta(hours=1))}}):
        received += hour["received"]
        failed += hour["failed"]
    return {
        "received": received,
        "failed": failed,
        "success_rate": _rate(received - failed, received),
    }


async def add_heartbeats(storage: Storage, now: datetime, received: int, failed: int) -> None:
    """Add what an instance has counted to the hour that it falls into."""
    hour = _floor(now, timedelta(hours=1))
    await storage.heartbeat_counts.update_one(
        {"_id": iso(hour)},
        {"$inc": {"received": received, "failed": failed}, "$setOnInsert": {"hour": hour}},
        upsert=True,
    )


def _series(
    buckets: Mapping[datetime, _Bucket], since: datetime, until: datetime, width: timedelta
) -> list[Json]:
    names = ("started", "completed", "failed", "stalls", "recovered", "false_positives")
    series: list[Json] = []
    start = _floor(since, width)
    while start <= until:
        bucket = buckets.get(start, _Bucket())
        counted: dict[str, Any] = {name: bucket.counts[name] for name in names}
        series.append(
            {"start": iso(start), **counted, "time_to_detect_p50_ms": _spread(bucket.detect)["p50"]}
        )
        start += width
    return series


def _floor(moment: datetime, width: timedelta) -> datetime:
    start = moment.replace(minute=0, second=0, microsecond=0)
    return start if width <= timedelta(hours=1) else start.replace(hour=0)


def _rate(part: int, whole: int) -> float | None:
    return None if whole == 0 else round(part / whole, 4)


def _spread(spans: Iterable[timedelta]) -> Json:
    """Median, 95th percentile (nearest rank) and maximum, in milliseconds."""
    ordered = sorted(span / timedelta(milliseconds=1) for span in spans)
    if not ordered:
        return {"p50": None, "p95": None, "max": None}

    def rank(share: float) -> float:
        return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]

    return {"p50": rank(0.5), "p95": rank(0.95), "max": ordered[-1]}
