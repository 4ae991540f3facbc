"""Client of the Claude Projects state tracking API: SDK and command line."""

from claude_projects.client import AsyncClient, Client
from claude_projects.errors import (
    ApiError,
    BadRequestError,
    ClaudeProjectsError,
    ConflictError,
    FieldError,
    NotFoundError,
    NotTheApiError,
    RateLimitedError,
    ServerError,
    SessionLostError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from claude_projects.exchange import Retry
from claude_projects.models import Machine, Page, Recovery, RecoveryState, Session, SessionHealth, Task
from claude_projects.tracked import AsyncTrackedSession, TrackedSession, track
from claude_projects.tracking import Listener, TrackedTask

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncTrackedSession",
    "BadRequestError",
    "ClaudeProjectsError",
    "Client",
    "ConflictError",
    "FieldError",
    "Listener",
    "Machine",
    "NotFoundError",
    "NotTheApiError",
    "Page",
    "RateLimitedError",
    "Recovery",
    "RecoveryState",
    "Retry",
    "ServerError",
    "Session",
    "SessionHealth",
    "SessionLostError",
    "Task",
    "TrackedSession",
    "TrackedTask",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "track",
]
