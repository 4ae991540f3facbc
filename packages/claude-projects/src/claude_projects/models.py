"""What the API answers, as immutable values.

A field that this version does not know is kept (``model_extra``) and never refused: an older client must be
able to read what a newer server says. For the same reason a status is a plain string; the known ones are
the literals below.
"""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

SessionStatus = Literal["active", "paused", "completed", "failed", "stalled"]
TaskStatus = Literal["pending", "in_progress", "completed", "failed", "blocked"]
MachineStatus = Literal["online", "offline", "maintenance"]

Metadata = dict[str, Any]
T = TypeVar("T")


class Model(BaseModel):
    """The base of every answer: frozen, and tolerant of fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)


class Session(Model):
    """One orchestration at work on one machine. Times are the server's, in UTC."""

    session_id: str
    project_id: str
    machine_id: str
    docker_slot: int | None = None
    status: str
    last_heartbeat: datetime
    current_task_id: str | None = None
    started_at: datetime
    completed_at: datetime | None = None
    metadata: Metadata = Field(default_factory=dict[str, Any])
    created_at: datetime
    updated_at: datetime
    recovered_from: str | None = None
    recovered_by: str | None = None


class Task(Model):
    """One piece of a session's work."""

    task_id: str
    session_id: str
    project_id: str
    github_issue_id: str | None = None
    task_name: str
    status: str
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error_message: str | None = None
    metadata: Metadata = Field(default_factory=dict[str, Any])
    created_at: datetime
    updated_at: datetime


class Machine(Model):
    """A machine that sessions run on; ``active_sessions`` are the ids of those that hold it now."""

    machine_id: str
    hostname: str
    docker_slots: tuple[int, ...] = ()
    active_sessions: tuple[str, ...] = ()
    status: str
    last_heartbeat: datetime
    metadata: Metadata = Field(default_factory=dict[str, Any])
    created_at: datetime
    updated_at: datetime


class Page(Model, Generic[T]):
    """A part of a list, newest first; ``total`` counts everything that the filter matches."""

    items: tuple[T, ...]
    total: int
    limit: int
    offset: int


class SessionHealth(Model):
    """How one session is, judged by the server's clock; durations are milliseconds."""

    session_id: str
    is_healthy: bool
    status: str
    last_heartbeat: datetime
    time_since_heartbeat_ms: float
    is_stalled: bool
    stall_threshold_ms: float


class HealthSummary(Model):
    """How many sessions there are of each kind."""

    total_sessions: int
    active_sessions: int
    stalled_sessions: int
    failed_sessions: int
    completed_sessions: int
    paused_sessions: int = 0
    last_updated: datetime


class StalledSession(Model):
    """A session that has been silent for longer than the threshold."""

    session_id: str
    project_id: str
    machine_id: str
    last_heartbeat: datetime
    time_since_heartbeat_ms: float


class StalledSessions(Model):
    """All silent sessions, longest silent first."""

    stalled_sessions: tuple[StalledSession, ...]
    stall_threshold_ms: float


class RecoveryState(Model):
    """What a session had done and what it left behind."""

    session_id: str
    project_id: str
    last_successful_task: Task | None = None
    failed_tasks: tuple[Task, ...] = ()
    pending_tasks: tuple[Task, ...] = ()
    in_progress_tasks: tuple[Task, ...] = ()
    blocked_tasks: tuple[Task, ...] = ()
    completed_tasks: tuple[Task, ...] = ()
    last_heartbeat: datetime
    metadata: Metadata = Field(default_factory=dict[str, Any])


class Recovery(Model):
    """The successor of a session.

    ``created`` is True where this call made it, False where another call had, and None where the answer to an
    earlier attempt was lost, so that nobody can tell.
    """

    session: Session
    created: bool | None


class DetectedFailures(Model):
    """What a scan for silent sessions has marked."""

    marked_stalled: int
    session_ids: tuple[str, ...] = ()
    duration_ms: float


class CleanedUp(Model):
    """What a cleanup has deleted."""

    deleted_sessions: int
    deleted_tasks: int


class ServiceHealth(Model):
    """The answer of ``GET /health``; ``uptime`` is in seconds."""

    status: str
    timestamp: datetime
    uptime: float
