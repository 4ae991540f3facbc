"""Routes that tell what happened and how well it went: timelines and success metrics (PRD 3.6, 4)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from state_tracking_api import analytics, timeline
from state_tracking_api.errors import InvalidRequest
from state_tracking_api.http.call import Call
from state_tracking_api.http.models import (
    AnswerModel,
    Offset,
    SessionId,
    Timestamp,
    Uuid,
    WholeNumber,
    errors,
)
from state_tracking_api.http.route import QueryModel, Router
from state_tracking_api.http.sessions import existing
from state_tracking_api.metadata import Json

router = Router(tags=["insight"])

DEFAULT_EVENTS = 200
MAX_EVENTS = 1000


class Event(AnswerModel):
    """One transition of a session or of one of its tasks."""

    at: Timestamp
    kind: str = Field(description="`session` or `task`", examples=["session"])
    session_id: Uuid
    task_id: Uuid | None
    task_name: str | None
    from_: str | None = Field(alias="from", description="The status before; null at the beginning")
    to: str = Field(description="The status after; `deleted` for a task that was deleted")
    actor: str = Field(description="`key:NAME` or `job:NAME`", examples=["key:ci"])
    reason: str | None
    silent_ms: int | None = Field(description="For how long the session had been silent when marked stalled")


class Timeline(AnswerModel):
    """What happened to a session, oldest first."""

    session_id: Uuid
    events: list[Event]
    heartbeats: list[Timestamp] = Field(description="The last 60 heartbeats, oldest first")
    total: int
    limit: int
    offset: int


class ListEvents(QueryModel):
    """Which part of the timeline."""

    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_EVENTS, ge=1, le=MAX_EVENTS)
    offset: Offset = 0


class Spread(AnswerModel):
    """Median, 95th percentile and maximum in milliseconds; null where there is nothing."""

    p50: float | None
    p95: float | None
    max: float | None


class SessionMetrics(AnswerModel):
    """Sessions by what became of them."""

    started: int
    completed: int
    failed: int
    recovered: int
    completion_rate: float | None
    duration_ms: Spread


class TaskMetrics(AnswerModel):
    """Tasks by what became of them."""

    created: int
    completed: int
    failed: int
    completion_rate: float | None
    duration_ms: Spread


class DetectionMetrics(AnswerModel):
    """How fast silence was noticed: from the last heartbeat to the mark."""

    stalls: int
    time_to_detect_ms: Spread
    within_target_rate: float | None = Field(description="Share noticed within five minutes")


class FalsePositiveMetrics(AnswerModel):
    """Sessions that were marked stalled and came back by their own heartbeat."""

    count: int
    rate: float | None


class RecoveryMetrics(AnswerModel):
    """Sessions that were recovered, of those that failed or were recovered."""

    recovered: int
    candidates: int
    rate: float | None


class HeartbeatMetrics(AnswerModel):
    """Heartbeats of all sessions, by the hour; failed ones were not answered as they should."""

    received: int
    failed: int
    success_rate: float | None


class ConsistencyMetrics(AnswerModel):
    """The last check of the stored data."""

    checked_at: Timestamp | None
    violations: int | None


class FailureReason(AnswerModel):
    """How often sessions failed for a reason."""

    reason: str
    count: int


class Bucket(AnswerModel):
    """An hour or a day."""

    start: Timestamp
    started: int
    completed: int
    failed: int
    stalls: int
    recovered: int
    false_positives: int
    time_to_detect_p50_ms: float | None


class Summary(AnswerModel):
    """The success metrics of a stretch of time."""

    since: Timestamp
    until: Timestamp
    project_id: str | None
    sessions: SessionMetrics
    tasks: TaskMetrics
    detection: DetectionMetrics
    false_positives: FalsePositiveMetrics
    recovery: RecoveryMetrics
    heartbeats: HeartbeatMetrics
    consistency: ConsistencyMetrics
    failure_reasons: list[FailureReason]
    series: list[Bucket] = Field(description="By the hour up to two days, by the day beyond")


def _date_time(value: object) -> object:
    """Refuse the plain numbers that pydantic would take for seconds since the epoch."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d[Tt ]", value):
        raise ValueError("must be a date and time in ISO 8601 with a time zone")
    return value


def _in_utc(moment: datetime | None) -> datetime | None:
    """The same moment as everything here reckons it: hours and days are those of UTC."""
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999 of UTC") from None


class Summarise(QueryModel):
    """Of what and since when."""

    since: Annotated[AwareDatetime | None, BeforeValidator(_date_time), AfterValidator(_in_utc)] = Field(
        default=None, description="ISO 8601; the default is seven days ago"
    )
    project_id: str | None = Field(default=None, min_length=1)


@router.get(
    "/api/sessions/{session_id}/events",
    response_model=Timeline,
    responses=errors(404),
    summary="Read a session's timeline",
)
async def events(call: Call, session_id: SessionId, query: ListEvents) -> Json:
    """Every transition of the session and its tasks: what, from, to, when, why and by whom.

    Of a session, and of each of its tasks, the latest 1000 are kept.
    """
    return await timeline.of_session(call.storage, existing(session_id), query.limit, query.offset)


@router.get("/api/analytics/summary", response_model=Summary, summary="Read the success metrics")
async def summary(call: Call, query: Summarise) -> Json:
    """Detection, recovery, false positives, durations and failure reasons, from the recorded transitions."""
    return await summarised(call, query)


async def summarised(call: Call, query: Summarise) -> Json:
    """What was asked for; raises InvalidRequest where that is more than is summed up."""
    since: datetime = query.since or call.now - analytics.DEFAULT_WINDOW
    if since < call.now - analytics.LONGEST_WINDOW:
        raise InvalidRequest.of_field("since", f"must lie within {analytics.LONGEST_WINDOW.days} days")
    return await analytics.summary(call.storage, since, call.now, query.project_id)
