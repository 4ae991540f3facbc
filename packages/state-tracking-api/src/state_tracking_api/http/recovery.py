"""Routes of recovery, archival and cleanup (PRD 3.3, 3.4)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from state_tracking_api import cleanup as expiry
from state_tracking_api import recovery, sessions
from state_tracking_api.http.call import Answer, Call
from state_tracking_api.http.models import (
    AnswerModel,
    Metadata,
    Name,
    Offset,
    Session,
    SessionId,
    SessionList,
    Task,
    Timestamp,
    Uuid,
    WholeNumber,
    errors,
)
from state_tracking_api.http.route import QueryModel, RequestModel, Router
from state_tracking_api.http.sessions import DEFAULT_LIMIT, MAX_LIMIT, existing
from state_tracking_api.metadata import Json

router = Router(tags=["recovery"])


class PrepareRecovery(RequestModel):
    """How to prepare."""

    clear_machine_assignment: bool | None = Field(
        default=None, description="Free the machine and the docker slot, and refuse the old process"
    )


class Recover(RequestModel):
    """Where and with what the work goes on."""

    new_machine_id: Name
    docker_slot: int | None = Field(default=None, ge=0, le=2**31 - 1)
    reset_failed_tasks: bool | None = Field(default=True, description="Try the failed tasks again")
    carry_open_tasks: bool | None = Field(default=True, description="Take the tasks along that were not done")


class RecoveryState(AnswerModel):
    """What a successor needs to go on; tasks in the order in which they were created."""

    session_id: Uuid
    project_id: str
    last_successful_task: Task | None
    failed_tasks: list[Task]
    pending_tasks: list[Task]
    in_progress_tasks: list[Task]
    blocked_tasks: list[Task]
    completed_tasks: list[Task]
    last_heartbeat: Timestamp
    metadata: Metadata


class ListArchived(QueryModel):
    """Which part of the list."""

    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    offset: Offset = 0


class CleanUp(QueryModel):
    """What counts as old."""

    older_than_days: Annotated[int | None, WholeNumber] = Field(
        default=None, ge=0, le=20_000, description="Defaults to RETENTION_DAYS"
    )


class CleanedUp(AnswerModel):
    """What was deleted."""

    deleted_sessions: int
    deleted_tasks: int


@router.get(
    "/api/sessions/archived", response_model=SessionList, summary="List archived sessions, newest first"
)
async def archived(call: Call, query: ListArchived) -> Json:
    """Archived sessions are exempt from expiry."""
    found, total = await sessions.page(call.storage, {"metadata.archived": True}, query.limit, query.offset)
    shown = [sessions.presented(session) for session in found]
    return {"sessions": shown, "total": total, "limit": query.limit, "offset": query.offset}


@router.post("/api/sessions/cleanup", response_model=CleanedUp, summary="Delete old sessions now")
@router.delete("/api/sessions/cleanup", response_model=CleanedUp, summary="Delete old sessions now")
async def cleanup(call: Call, query: CleanUp) -> Json:
    """Completed and failed sessions and their tasks; archived ones stay."""
    return await expiry.cleanup(call.storage, call.settings, call.stamp, query.older_than_days)


@router.get(
    "/api/sessions/{session_id}/recovery-state",
    response_model=RecoveryState,
    responses=errors(404),
    summary="Read what a successor needs",
)
async def recovery_state(call: Call, session_id: SessionId) -> Json:
    """The tasks by state, and the last one that succeeded."""
    return await recovery.state(call.storage, existing(session_id))


@router.post(
    "/api/sessions/{session_id}/prepare-recovery",
    response_model=RecoveryState,
    responses=errors(404, 409),
    summary="Prepare a session for recovery",
)
async def prepare_recovery(call: Call, session_id: SessionId, body: PrepareRecovery | None = None) -> Json:
    """Only a failed or stalled one (400). Clearing its assignment fences the old process off."""
    clear = bool(body and body.clear_machine_assignment)
    return await recovery.prepare(
        call.storage, existing(session_id), call.stamp, clear_machine_assignment=clear
    )


@router.post(
    "/api/sessions/{session_id}/recover",
    status_code=201,
    response_model=Session,
    responses={200: {"model": Session, "description": "It was recovered already"}, **errors(404, 409)},
    summary="Let a new session take over",
)
async def recover(call: Call, session_id: SessionId, body: Recover) -> Answer:
    """One original, at most one successor: called again, or by two at once, it answers with the same one."""
    successor, created = await recovery.recover(
        call.storage,
        existing(session_id),
        call.stamp,
        new_machine_id=body.new_machine_id,
        docker_slot=body.docker_slot,
        reset_failed_tasks=body.reset_failed_tasks is not False,
        carry_open_tasks=body.carry_open_tasks is not False,
    )
    return Answer(sessions.presented(successor), 201 if created else 200)


@router.post(
    "/api/sessions/{session_id}/archive",
    response_model=Session,
    responses=errors(404),
    summary="Exempt a session from expiry",
)
async def archive(call: Call, session_id: SessionId) -> Json:
    """Only a completed or failed one (400); its tasks are exempted, too."""
    return sessions.presented(await recovery.archive(call.storage, existing(session_id), call.stamp))
