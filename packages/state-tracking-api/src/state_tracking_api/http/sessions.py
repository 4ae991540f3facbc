"""Routes of sessions: their life, heartbeats and health (PRD 2.1, 2.2, 2.4, 3.2)."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, ClassVar

import pymongo
from pydantic import ConfigDict, Field, model_validator

from state_tracking_api import health as session_health
from state_tracking_api import jobs, log, metadata, sessions
from state_tracking_api.errors import NotFound
from state_tracking_api.http.call import Call
from state_tracking_api.http.models import (
    AnswerModel,
    Message,
    Metadata,
    Name,
    Offset,
    Session,
    SessionId,
    SessionList,
    Timestamp,
    Uuid,
    WholeNumber,
    errors,
)
from state_tracking_api.http.route import QueryModel, RequestModel, Router
from state_tracking_api.lifecycle import Document, SessionStatus
from state_tracking_api.metadata import Json
from state_tracking_api.settings import is_uuid4

router = Router(tags=["sessions"])

DEFAULT_LIMIT = 50
MAX_LIMIT = 100


Threshold = Annotated[
    int,
    Field(
        ge=10_000,
        le=24 * 60 * 60 * 1000,
        description="Silence after which this session counts as stalled; wins over STALL_THRESHOLD_MS",
    ),
]


class SessionBody(RequestModel):
    """A body whose metadata is a session's."""

    reserved_metadata: ClassVar[frozenset[str]] = metadata.SESSION_KEYS


class CreateSession(SessionBody):
    """Registers a session."""

    project_id: Name
    machine_id: Name
    docker_slot: int | None = Field(default=None, ge=0, le=2**31 - 1)
    metadata: Metadata | None = None
    stall_threshold_ms: Threshold | None = None


class PatchSession(SessionBody):
    """Changes a session; at least one field."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    status: Annotated[SessionStatus | None, Field(strict=False)] = None
    current_task_id: Name | None = Field(default=None, description="null clears it")
    metadata: Metadata | None = Field(default=None, description="Merged as RFC 7396 says")
    stall_threshold_ms: Threshold | None = None

    @model_validator(mode="after")
    def _says_something(self) -> PatchSession:
        if "current_task_id" not in self.model_fields_set and not any(
            value is not None for value in (self.status, self.metadata, self.stall_threshold_ms)
        ):
            raise ValueError(
                "must have at least one of status, current_task_id, metadata, stall_threshold_ms"
            )
        return self


class Heartbeat(SessionBody):
    """What a heartbeat may bring along."""

    current_task_id: Name | None = Field(default=None, description="null clears it")
    metadata: Metadata | None = Field(default=None, description="Merged as RFC 7396 says")


class MarkFailed(SessionBody):
    """Why a session has failed."""

    error_message: Message
    metadata: Metadata | None = Field(default=None, description="Merged as RFC 7396 says")


class ListSessions(QueryModel):
    """Filters of the list of sessions."""

    project_id: str | None = Field(default=None, min_length=1)
    machine_id: str | None = Field(default=None, min_length=1)
    status: SessionStatus | None = None
    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    offset: Offset = 0


class HealthSummary(AnswerModel):
    """How many sessions there are in each state; silent ones count as stalled at once."""

    total_sessions: int
    active_sessions: int
    paused_sessions: int
    stalled_sessions: int
    failed_sessions: int
    completed_sessions: int
    suspected_outage: bool = Field(description="Most sessions fell silent within the same minute")
    last_updated: Timestamp


class StalledSession(AnswerModel):
    """A session that has gone silent."""

    session_id: Uuid
    project_id: str
    machine_id: str
    last_heartbeat: Timestamp
    time_since_heartbeat_ms: int


class StalledSessions(AnswerModel):
    """Sessions that have gone silent, longest first."""

    stalled_sessions: list[StalledSession]
    stall_threshold_ms: int


class SessionHealth(AnswerModel):
    """Health of one session."""

    session_id: Uuid
    is_healthy: bool
    status: SessionStatus
    last_heartbeat: Timestamp
    time_since_heartbeat_ms: int
    is_stalled: bool
    stall_threshold_ms: int


class Detected(AnswerModel):
    """What a scan for silent sessions has done."""

    marked_stalled: int
    session_ids: list[Uuid]
    duration_ms: float


def existing(session_id: str) -> str:
    """The id in a path as it is stored; a malformed one does not exist."""
    if not is_uuid4(session_id):
        raise NotFound(f"Session {session_id} does not exist")
    return session_id.lower()


def _shown(session: Document) -> Json:
    """A session as answers show it; from here on every line about the request names its ids."""
    log.bind_ids(session)
    return sessions.presented(session)


def current_task(body: PatchSession | Heartbeat) -> Json:
    """The change of the current task that a body asks for: none, another one, or null to clear it."""
    said = "current_task_id" in body.model_fields_set
    return {"current_task_id": body.current_task_id} if said else {}


@router.post(
    "/api/sessions/{session_id}/heartbeat",
    response_model=Session,
    responses=errors(404, 409),
    summary="Say that a session lives",
)
async def heartbeat(call: Call, session_id: SessionId, body: Heartbeat | None = None) -> Json:
    """A stalled session becomes active again, a paused one stays paused.

    A session that has ended answers 409, with `recovered_by` where another one has taken its work over.
    """
    started = time.perf_counter()
    try:
        beaten = await sessions.heartbeat(
            call.storage,
            existing(session_id),
            call.stamp,
            changes=current_task(body) if body else {},
            patch=body.metadata if body else None,
        )
    finally:
        call.resources.metrics.time_heartbeat(started)
    shown = _shown(beaten)
    if not call.quiet:
        log.get().info("Heartbeat received", last_heartbeat=shown["last_heartbeat"])
    return shown


@router.post(
    "/api/sessions",
    status_code=201,
    response_model=Session,
    responses=errors(409),
    summary="Register a session",
)
async def create(call: Call, body: CreateSession) -> Json:
    """409 with `existing_session_id` where the project has an active session on this machine already."""
    session = await sessions.create(
        call.storage,
        call.stamp,
        project_id=body.project_id,
        machine_id=body.machine_id,
        docker_slot=body.docker_slot,
        metadata=body.metadata,
        stall_threshold_ms=body.stall_threshold_ms,
    )
    return _shown(session)


@router.get("/api/sessions", response_model=SessionList, summary="List sessions, newest first")
async def listed(call: Call, query: ListSessions) -> Json:
    """Filters are combined."""
    filters: dict[str, Any] = query.model_dump(
        include={"project_id", "machine_id", "status"}, exclude_none=True, mode="json"
    )
    found, total = await sessions.page(call.storage, filters, query.limit, query.offset)
    shown = [sessions.presented(session) for session in found]
    return {"sessions": shown, "total": total, "limit": query.limit, "offset": query.offset}


@router.get("/api/sessions/health", response_model=HealthSummary, summary="Count sessions by state")
async def health_summary(call: Call) -> Json:
    """An active session that has been silent for too long counts as stalled at once."""
    storage, settings = call.storage, call.settings

    async def count(now: datetime) -> Json:
        with pymongo.timeout(min(settings.request_timeout_ms, settings.db_timeout_ms) / 1000):
            return await session_health.summary(storage, now, settings.stall_threshold)

    # Asked by every dashboard and monitor at once, and the same for all of them.
    return await storage.health_summaries.get(call.now, count)


@router.get("/api/sessions/stalled", response_model=StalledSessions, summary="List silent sessions")
async def stalled(call: Call) -> Json:
    """Sessions marked stalled, and active ones past the threshold; longest silent first."""
    found = await session_health.stalled(call.storage, call.now, call.settings.stall_threshold)
    return {"stalled_sessions": found, "stall_threshold_ms": call.settings.stall_threshold_ms}


@router.post("/api/sessions/detect-failures", response_model=Detected, summary="Look for silent sessions now")
async def detect_failures(call: Call) -> Json:
    """Marks active sessions stalled that have been silent for longer than their threshold."""
    return await jobs.detect_now(call.storage, call.settings, call.stamp)


@router.get(
    "/api/sessions/{session_id}", response_model=Session, responses=errors(404), summary="Read a session"
)
async def read(call: Call, session_id: SessionId) -> Json:
    """The whole session."""
    return _shown(await sessions.get(call.storage, existing(session_id)))


@router.patch(
    "/api/sessions/{session_id}",
    response_model=Session,
    responses=errors(404, 409),
    summary="Change a session",
)
async def patch(call: Call, session_id: SessionId, body: PatchSession) -> Json:
    """Ended is ended: only metadata may still be merged into a completed or failed session."""
    changes = current_task(body)
    if body.stall_threshold_ms is not None:
        changes["stall_threshold_ms"] = body.stall_threshold_ms
    changed = await sessions.patch(
        call.storage,
        existing(session_id),
        call.stamp,
        status=body.status,
        changes=changes,
        patch=body.metadata,
    )
    return _shown(changed)


@router.delete(
    "/api/sessions/{session_id}", status_code=204, responses=errors(404), summary="Delete a session"
)
async def delete(call: Call, session_id: SessionId) -> None:
    """Its tasks and its place on the machine go in the same transaction."""
    await sessions.delete(call.storage, existing(session_id), call.stamp)


@router.get(
    "/api/sessions/{session_id}/health",
    response_model=SessionHealth,
    responses=errors(404),
    summary="Read a session's health",
)
async def health(call: Call, session_id: SessionId) -> Json:
    """`status` is the stored one; `is_stalled` also holds before a scan has marked the session."""
    return await session_health.of_session(
        call.storage, existing(session_id), call.now, call.settings.stall_threshold
    )


@router.post(
    "/api/sessions/{session_id}/mark-failed",
    response_model=Session,
    responses=errors(404, 409),
    summary="Mark a session failed",
)
async def mark_failed(call: Call, session_id: SessionId, body: MarkFailed) -> Json:
    """Its tasks in progress fail with it. Again on a failed session changes nothing."""
    failed = await sessions.mark_failed(
        call.storage,
        existing(session_id),
        call.stamp,
        error_message=body.error_message,
        patch=body.metadata,
    )
    return _shown(failed)


@router.post(
    "/api/sessions/{session_id}/mark-stalled",
    response_model=Session,
    responses=errors(404, 409),
    summary="Mark a session stalled",
)
async def mark_stalled(call: Call, session_id: SessionId) -> Json:
    """It may recover: its next heartbeat makes it active again."""
    return _shown(await sessions.mark_stalled(call.storage, existing(session_id), call.stamp))
