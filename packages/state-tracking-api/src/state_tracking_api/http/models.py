"""What answers look like, for the OpenAPI document; tests hold them against what is really sent.

Answers are encoded once, straight from the document of the database, and never pass through these models.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from state_tracking_api import metadata
from state_tracking_api.lifecycle import MachineStatus, SessionStatus, TaskStatus

NAME_LENGTH = 512
MESSAGE_LENGTH = 32_768
NOT_BLANK = r"\S"

EXAMPLE_TIME = "2026-01-19T12:00:00.000Z"
EXAMPLE_SESSION = "0f8fad5b-d9cb-469f-a165-70867728950e"
EXAMPLE_SUCCESSOR = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
EXAMPLE_TASK = "3f333df6-90a4-4fda-8dd3-9485d27cee36"

Timestamp = Annotated[
    str,
    Field(
        description="ISO 8601 in UTC with milliseconds",
        json_schema_extra={"format": "date-time"},
        examples=[EXAMPLE_TIME],
    ),
]
Uuid = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
Metadata = Annotated[
    dict[str, Any],
    Field(
        description=f"Any object, up to {metadata.MAX_BYTES} bytes as JSON, {metadata.MAX_DEPTH} levels",
        examples=[{"vscode_version": "1.105.0"}],
    ),
]
# What clients send as names and ids of their own.
Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=NOT_BLANK)]
Message = Annotated[str, Field(min_length=1, max_length=MESSAGE_LENGTH, pattern=NOT_BLANK)]

SessionId = Annotated[str, Field(json_schema_extra={"format": "uuid"}, examples=[EXAMPLE_SESSION])]
TaskId = Annotated[str, Field(json_schema_extra={"format": "uuid"}, examples=[EXAMPLE_TASK])]
MachineId = Annotated[str, Field(examples=["build-host-1"])]

UUID4 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"


def _whole_number(value: object) -> object:
    """Only plain digits: no sign, no fraction, no spaces."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("must be a whole number")
    return value


WholeNumber = BeforeValidator(_whole_number)
Offset = Annotated[int, Field(ge=0, le=2**31, description="How many to leave out"), WholeNumber]


class AnswerModel(BaseModel):
    """What an answer looks like: for the document only, so it is built when that is asked for."""

    model_config = {"defer_build": True}


class Session(AnswerModel):
    """A run of an orchestration on a machine."""

    session_id: Uuid = Field(examples=[EXAMPLE_SESSION])
    project_id: str = Field(description="GitHub Project that it works on", examples=["PVT_kwDOABCD"])
    machine_id: str = Field(examples=["build-host-1"])
    docker_slot: int | None = Field(examples=[1])
    status: SessionStatus
    last_heartbeat: Timestamp
    current_task_id: str | None = Field(examples=[EXAMPLE_TASK])
    started_at: Timestamp
    completed_at: Timestamp | None
    metadata: Metadata
    created_at: Timestamp
    updated_at: Timestamp
    recovered_from: Uuid | None = Field(description="The session whose work this one took over")
    recovered_by: Uuid | None = Field(description="The session that took this one's work over")
    stall_threshold_ms: int | None = Field(description="Its own threshold, where it has one")


class Task(AnswerModel):
    """A unit of work of a session."""

    task_id: Uuid = Field(examples=[EXAMPLE_TASK])
    session_id: Uuid = Field(examples=[EXAMPLE_SESSION])
    project_id: str = Field(examples=["PVT_kwDOABCD"])
    github_issue_id: str | None = Field(examples=["I_kwDOABCD42"])
    task_name: str = Field(examples=["Write the parser"])
    status: TaskStatus
    started_at: Timestamp | None
    completed_at: Timestamp | None
    error_message: str | None
    metadata: Metadata
    created_at: Timestamp
    updated_at: Timestamp


class Machine(AnswerModel):
    """A machine that sessions run on."""

    machine_id: str = Field(examples=["build-host-1"])
    hostname: str = Field(examples=["build-host-1.local"])
    docker_slots: list[int] = Field(examples=[[1, 2, 3]])
    active_sessions: list[Uuid] = Field(description="Exactly the live sessions on this machine")
    status: MachineStatus
    last_heartbeat: Timestamp
    metadata: Metadata
    created_at: Timestamp
    updated_at: Timestamp


class Page(AnswerModel):
    """How much of a list this is."""

    total: int = Field(description="How many there are in all", ge=0)
    limit: int
    offset: int


class SessionList(Page):
    """Sessions, newest first."""

    sessions: list[Session]


class TaskList(Page):
    """Tasks, newest first."""

    tasks: list[Task]


class MachineList(Page):
    """Machines, newest first."""

    machines: list[Machine]


class FieldErrorBody(AnswerModel):
    """One field that is wrong."""

    field: str = Field(examples=["project_id"])
    message: str = Field(examples=["is required"])


class ErrorBody(AnswerModel):
    """Every answer that is not a success."""

    statusCode: int  # noqa: N815 - the PRD's name
    error: str
    message: str
    timestamp: Timestamp
    path: str
    request_id: Uuid
    errors: list[FieldErrorBody] | SkipJsonSchema[None] = Field(
        default=None, description="The failing fields, on a 400 from validation"
    )
    existing_session_id: str | SkipJsonSchema[None] = Field(
        default=None, description="Who holds what was asked for, on a 409"
    )
    recovered_by: str | SkipJsonSchema[None] = Field(
        default=None, description="Who has taken the session's work over, on a 409"
    )


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare the errors that are a route's own; those that any route can give are added to the document."""
    return {status: {"model": ErrorBody} for status in statuses}
