"""Routes of tasks (PRD 3.1)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from state_tracking_api import log, metadata, tasks
from state_tracking_api.errors import InvalidRequest, NotFound
from state_tracking_api.http.call import Call
from state_tracking_api.http.models import (
    UUID4,
    Message,
    Metadata,
    Name,
    Offset,
    Task,
    TaskId,
    TaskList,
    WholeNumber,
    errors,
)
from state_tracking_api.http.route import QueryModel, RequestModel, Router
from state_tracking_api.lifecycle import Document, TaskStatus
from state_tracking_api.metadata import Json
from state_tracking_api.settings import is_uuid4

router = Router(tags=["tasks"])

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class TaskBody(RequestModel):
    """A body whose metadata is a task's."""

    reserved_metadata: ClassVar[frozenset[str]] = metadata.TASK_KEYS


class CreateTask(TaskBody):
    """Adds a task to a session."""

    session_id: str = Field(pattern=UUID4)
    project_id: Name
    task_name: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"\S")]
    github_issue_id: Name | None = None
    metadata: Metadata | None = None


class PatchTask(TaskBody):
    """Changes a task; at least one field."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    status: Annotated[TaskStatus | None, Field(strict=False)] = None
    error_message: Message | None = Field(default=None, description="Required with the status failed")
    metadata: Metadata | None = Field(default=None, description="Merged as RFC 7396 says")

    @model_validator(mode="after")
    def _says_something(self) -> PatchTask:
        if self.status is None and self.error_message is None and self.metadata is None:
            raise ValueError("must have at least one of status, error_message, metadata")
        return self


class ListTasks(QueryModel):
    """Filters of the list of tasks."""

    session_id: str | None = Field(default=None, pattern=UUID4)
    project_id: str | None = Field(default=None, min_length=1)
    status: TaskStatus | None = None
    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    offset: Offset = 0


def _existing(task_id: str) -> str:
    if not is_uuid4(task_id):
        raise NotFound(f"Task {task_id} does not exist")
    return task_id.lower()


def _shown(task: Document) -> Json:
    """A task as answers show it; from here on every line about the request names its ids."""
    log.bind_ids(task)
    return tasks.presented(task)


@router.post(
    "/api/tasks",
    status_code=201,
    response_model=Task,
    summary="Add a task to a session",
    responses=errors(400),
)
async def create(call: Call, body: CreateTask) -> Json:
    """400 where the session does not exist, has ended, or has another project."""
    task = await tasks.create(
        call.storage,
        call.stamp,
        session_id=body.session_id.lower(),
        project_id=body.project_id,
        task_name=body.task_name,
        github_issue_id=body.github_issue_id,
        metadata=body.metadata,
    )
    return _shown(task)


@router.get("/api/tasks", response_model=TaskList, summary="List tasks, newest first")
async def listed(call: Call, query: ListTasks) -> Json:
    """Filters are combined."""
    filters: dict[str, Any] = query.model_dump(
        include={"session_id", "project_id", "status"}, exclude_none=True, mode="json"
    )
    if "session_id" in filters:
        filters["session_id"] = filters["session_id"].lower()
    found, total = await tasks.page(call.storage, filters, query.limit, query.offset)
    shown = [tasks.presented(task) for task in found]
    return {"tasks": shown, "total": total, "limit": query.limit, "offset": query.offset}


@router.get("/api/tasks/{task_id}", response_model=Task, responses=errors(404), summary="Read a task")
async def read(call: Call, task_id: TaskId) -> Json:
    """The whole task."""
    return _shown(await tasks.get(call.storage, _existing(task_id)))


@router.patch(
    "/api/tasks/{task_id}", response_model=Task, responses=errors(404, 409), summary="Change a task"
)
async def patch(call: Call, task_id: TaskId, body: PatchTask) -> Json:
    """A task is claimed once: the status that it has already is refused (400).

    409 where its session has ended, with `recovered_by` where another one has taken its work over.
    """
    if body.status == TaskStatus.FAILED and body.error_message is None:
        raise InvalidRequest.of_field("error_message", "is required with the status failed")
    if body.status not in (None, TaskStatus.FAILED) and body.error_message is not None:
        raise InvalidRequest.of_field("error_message", "belongs to the status failed")
    changed = await tasks.patch(
        call.storage,
        _existing(task_id),
        call.stamp,
        status=body.status,
        error_message=body.error_message,
        patch=body.metadata,
    )
    return _shown(changed)


@router.delete("/api/tasks/{task_id}", status_code=204, responses=errors(404), summary="Delete a task")
async def delete(call: Call, task_id: TaskId) -> None:
    """Where it is its session's current task, that is cleared."""
    await tasks.delete(call.storage, _existing(task_id), call.stamp)
