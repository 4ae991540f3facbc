"""Every call of the API, described once: what is sent and what the answer means.

The two clients take their methods, signatures and results from here. ``metadata`` is merged by the server
(RFC 7396: a None removes the key). Each function says in its docstring what makes it safe to repeat after a
lost answer, unless the API defines repetition as harmless.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

from claude_projects.errors import ApiError, BadRequestError, ConflictError, NotFoundError
from claude_projects.exchange import Answer, Call, Request, Retry, Settled, Steps, perform
from claude_projects.models import (
    CleanedUp,
    DetectedFailures,
    HealthSummary,
    Machine,
    MachineStatus,
    Metadata,
    Model,
    Page,
    Recovery,
    RecoveryState,
    ServiceHealth,
    Session,
    SessionHealth,
    SessionStatus,
    StalledSessions,
    Task,
    TaskStatus,
)

M = TypeVar("M", bound=Model)


class Clear:
    """The type of CLEAR."""


CLEAR: Final = Clear()
"""Sets an optional field of the API to null; None leaves it as it is."""

CLIENT_TOKEN: Final = "client_token"  # noqa: S105 - a label, no secret
"""The metadata key by which a client recognises what it has made itself."""

_LOOK_UP = Retry(attempts=2)


# Sessions


def create_session(
    *, project_id: str, machine_id: str, docker_slot: int | None = None, metadata: Metadata | None = None
) -> Call[Session]:
    """Create an active session; ConflictError with ``existing_session_id`` where there is one already.

    The metadata carries a token. A repetition after a lost answer collides with the session that the first
    attempt has made: it is looked up, and where it bears the token, it is the result.
    """
    token = str(uuid.uuid4())

    def find_out(error: ApiError | None) -> Steps[Settled[Session] | None]:
        if not isinstance(error, ConflictError) or error.existing_session_id is None:
            return None
        existing = yield from perform(get_session(error.existing_session_id), _LOOK_UP)
        return Settled(existing) if existing.metadata.get(CLIENT_TOKEN) == token else None

    body = _given(
        project_id=project_id,
        machine_id=machine_id,
        docker_slot=docker_slot,
        metadata={**(metadata or {}), CLIENT_TOKEN: token},
    )
    return Call(_request("POST", "/api/sessions", body), _one(Session), find_out)


def get_session(session_id: str) -> Call[Session]:
    """One session; NotFoundError where there is none."""
    return Call(_request("GET", _path("sessions", session_id)), _one(Session))


def list_sessions(
    *,
    project_id: str | None = None,
    machine_id: str | None = None,
    status: SessionStatus | None = None,
    limit: int | None = None,
    offset: int | None = None,
) -> Call[Page[Session]]:
    """Sessions, newest first; ``limit`` is 1 to 100, the server's default 50."""
    query = _query(project_id=project_id, machine_id=machine_id, status=status, limit=limit, offset=offset)
    return Call(Request("GET", "/api/sessions", query), _page(Session, "sessions"))


def update_session(
    session_id: str,
    *,
    status: SessionStatus | None = None,
    current_task_id: str | Clear | None = None,
    metadata: Metadata | None = None,
) -> Call[Session]:
    """Change a session's status, current task or metadata; ConflictError where it has ended."""
    body = _given(status=status, current_task_id=current_task_id, metadata=metadata)
    return Call(_request("PATCH", _path("sessions", session_id), body), _one(Session))


def delete_session(session_id: str) -> Call[None]:
    """Delete a session and its tasks. After a lost answer, not finding it is success."""
    return Call(_request("DELETE", _path("sessions", session_id)), _nothing, _gone_is_done)


def heartbeat(
    session_id: str, *, current_task_id: str | None = None, metadata: Metadata | None = None
) -> Call[Session]:
    """Say that the session lives. ConflictError where it has ended or was taken over (``recovered_by``)."""
    body = _given(current_task_id=current_task_id, metadata=metadata)
    return Call(_request("POST", _path("sessions", session_id, "heartbeat"), body), _one(Session))


def health_summary() -> Call[HealthSummary]:
    """How many sessions there are of each kind."""
    return Call(_request("GET", "/api/sessions/health"), _one(HealthSummary))


def stalled_sessions() -> Call[StalledSessions]:
    """The sessions that have been silent for too long, longest first."""
    return Call(_request("GET", "/api/sessions/stalled"), _one(StalledSessions))


def session_health(session_id: str) -> Call[SessionHealth]:
    """How long a session has been silent, and what that means."""
    return Call(_request("GET", _path("sessions", session_id, "health")), _one(SessionHealth))


def mark_failed(session_id: str, *, error_message: str, metadata: Metadata | None = None) -> Call[Session]:
    """End a session as failed, and its tasks in progress with it."""
    body = _given(error_message=error_message, metadata=metadata)
    return Call(_request("POST", _path("sessions", session_id, "mark-failed"), body), _one(Session))


def mark_stalled(session_id: str) -> Call[Session]:
    """Mark a session as stalled, which makes it recoverable; its next heartbeat revives it."""
    return Call(_request("POST", _path("sessions", session_id, "mark-stalled")), _one(Session))


def detect_failures() -> Call[DetectedFailures]:
    """Scan for silent sessions now."""
    return Call(_request("POST", "/api/sessions/detect-failures"), _one(DetectedFailures))


def recovery_state(session_id: str) -> Call[RecoveryState]:
    """What a session had done and what it left behind."""
    return Call(_request("GET", _path("sessions", session_id, "recovery-state")), _one(RecoveryState))


def prepare_recovery(session_id: str, *, clear_machine_assignment: bool | None = None) -> Call[RecoveryState]:
    """Note that a failed or stalled session is about to be recovered; clearing its machine fences it off."""
    body = _given(clear_machine_assignment=clear_machine_assignment)
    return Call(
        _request("POST", _path("sessions", session_id, "prepare-recovery"), body), _one(RecoveryState)
    )


def recover(
    session_id: str,
    *,
    new_machine_id: str,
    docker_slot: int | None = None,
    reset_failed_tasks: bool | None = None,
    carry_open_tasks: bool | None = None,
) -> Call[Recovery]:
    """Continue a failed or stalled session as a new one on ``new_machine_id``.

    However often it is called, a session has one successor; see Recovery for who made it.
    """

    def parse(answer: Answer) -> Recovery:
        created = answer.status == 201
        return Recovery(
            session=Session.model_validate(answer.json()),
            created=None if answer.repeated and not created else created,
        )

    body = _given(
        new_machine_id=new_machine_id,
        docker_slot=docker_slot,
        reset_failed_tasks=reset_failed_tasks,
        carry_open_tasks=carry_open_tasks,
    )
    return Call(_request("POST", _path("sessions", session_id, "recover"), body), parse)


def archive_session(session_id: str) -> Call[Session]:
    """Keep a completed or failed session for good."""
    return Call(_request("POST", _path("sessions", session_id, "archive")), _one(Session))


def archived_sessions(*, limit: int | None = None, offset: int | None = None) -> Call[Page[Session]]:
    """The archived sessions, newest first; ``limit`` is 1 to 100."""
    return Call(
        Request("GET", "/api/sessions/archived", _query(limit=limit, offset=offset)),
        _page(Session, "sessions"),
    )


def cleanup(*, older_than_days: int | None = None) -> Call[CleanedUp]:
    """Delete ended sessions now, those that ended more than ``older_than_days`` ago."""
    return Call(
        Request("POST", "/api/sessions/cleanup", _query(older_than_days=older_than_days)), _one(CleanedUp)
    )


# Tasks


def create_task(
    *,
    session_id: str,
    project_id: str,
    task_name: str,
    github_issue_id: str | None = None,
    metadata: Metadata | None = None,
) -> Call[Task]:
    """Create a pending task.

    The API would make a second one of a repetition, so the metadata carries a token, and before a call is
    repeated after a lost answer, the session's newest tasks are searched for it.
    """
    token = str(uuid.uuid4())

    def find_out(error: ApiError | None) -> Steps[Settled[Task] | None]:
        if error is not None:
            return None
        newest = yield from perform(list_tasks(session_id=session_id, limit=200), _LOOK_UP)
        return next(
            (Settled(task) for task in newest.items if task.metadata.get(CLIENT_TOKEN) == token), None
        )

    body = _given(
        session_id=session_id,
        project_id=project_id,
        task_name=task_name,
        github_issue_id=github_issue_id,
        metadata={**(metadata or {}), CLIENT_TOKEN: token},
    )
    return Call(_request("POST", "/api/tasks", body), _one(Task), find_out)


def get_task(task_id: str) -> Call[Task]:
    """One task; NotFoundError where there is none."""
    return Call(_request("GET", _path("tasks", task_id)), _one(Task))


def list_tasks(
    *,
    session_id: str | None = None,
    project_id: str | None = None,
    status: TaskStatus | None = None,
    limit: int | None = None,
    offset: int | None = None,
) -> Call[Page[Task]]:
    """Tasks, newest first; ``limit`` is 1 to 200, the server's default 50."""
    query = _query(session_id=session_id, project_id=project_id, status=status, limit=limit, offset=offset)
    return Call(Request("GET", "/api/tasks", query), _page(Task, "tasks"))


def update_task(
    task_id: str,
    *,
    status: TaskStatus | None = None,
    error_message: str | None = None,
    metadata: Metadata | None = None,
) -> Call[Task]:
    """Change a task. A task is claimed once: going to ``in_progress`` a second time is a BadRequestError.

    A repetition after a lost answer is refused in the same way, so the task is looked up: where its status
    and metadata are those that were sent, the first attempt had succeeded. Whoever competes for tasks puts
    something of his own into the metadata of his claim, so that he does not take another's for it.
    """

    def find_out(error: ApiError | None) -> Steps[Settled[Task] | None]:
        if not isinstance(error, BadRequestError | ConflictError):
            return None
        task = yield from perform(get_task(task_id), _LOOK_UP)
        same = status in {None, task.status} and all(
            task.metadata.get(k) == v for k, v in (metadata or {}).items()
        )
        return Settled(task) if same else None

    body = _given(status=status, error_message=error_message, metadata=metadata)
    return Call(_request("PATCH", _path("tasks", task_id), body), _one(Task), find_out)


def delete_task(task_id: str) -> Call[None]:
    """Delete a task. After a lost answer, not finding it is success."""
    return Call(_request("DELETE", _path("tasks", task_id)), _nothing, _gone_is_done)


# Machines


def register_machine(
    *,
    hostname: str,
    docker_slots: Sequence[int] = (),
    machine_id: str | None = None,
    metadata: Metadata | None = None,
) -> Call[Machine]:
    """Register a machine, or bring its registration up to date (its docker slots are replaced).

    Without a ``machine_id`` one is made here and not by the server, so that a repetition finds the same
    machine.
    """
    body = _given(
        hostname=hostname,
        docker_slots=list(docker_slots),
        machine_id=machine_id or str(uuid.uuid4()),
        metadata=metadata,
    )
    return Call(_request("POST", "/api/machines", body), _one(Machine))


def get_machine(machine_id: str) -> Call[Machine]:
    """One machine; NotFoundError where it is not registered."""
    return Call(_request("GET", _path("machines", machine_id)), _one(Machine))


def list_machines(
    *, status: MachineStatus | None = None, limit: int | None = None, offset: int | None = None
) -> Call[Page[Machine]]:
    """Machines, newest first; ``limit`` is 1 to 100."""
    query = _query(status=status, limit=limit, offset=offset)
    return Call(Request("GET", "/api/machines", query), _page(Machine, "machines"))


def update_machine(
    machine_id: str,
    *,
    status: MachineStatus | None = None,
    docker_slots: Sequence[int] | None = None,
    metadata: Metadata | None = None,
) -> Call[Machine]:
    """Change a machine; ConflictError where a slot that is taken away holds a live session."""
    slots = None if docker_slots is None else list(docker_slots)
    body = _given(status=status, docker_slots=slots, metadata=metadata)
    return Call(_request("PATCH", _path("machines", machine_id), body), _one(Machine))


def delete_machine(machine_id: str) -> Call[None]:
    """Delete a machine. After a lost answer, not finding it is success."""
    return Call(_request("DELETE", _path("machines", machine_id)), _nothing, _gone_is_done)


def machine_heartbeat(machine_id: str) -> Call[Machine]:
    """Say that the machine lives; an offline one becomes online."""
    return Call(_request("POST", _path("machines", machine_id, "heartbeat")), _one(Machine))


# The service


def service_health() -> Call[ServiceHealth]:
    """Whether the API answers at all; needs no key."""
    return Call(_request("GET", "/health"), _one(ServiceHealth))


# The pieces


def _request(method: str, path: str, body: dict[str, Any] | None = None) -> Request:
    encoded = None if body is None else json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
    return Request(method, path, body=encoded)


def _path(*parts: str) -> str:
    return "/api/" + "/".join(_part(part) for part in parts)


def _part(text: str) -> str:
    # An empty part, "." and ".." would lead to another address; as ids they exist nowhere.
    return {"": "%20", ".": "%2E", "..": "%2E%2E"}.get(text) or quote(text, safe="")


def _given(**fields: Any) -> dict[str, Any]:
    return {name: None if value is CLEAR else value for name, value in fields.items() if value is not None}


def _query(**fields: Any) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items() if value is not None}


def _one(model: type[M]) -> Callable[[Answer], M]:
    def parse(answer: Answer) -> M:
        return model.model_validate(answer.json())

    return parse


def _page(model: type[M], key: str) -> Callable[[Answer], Page[M]]:
    def parse(answer: Answer) -> Page[M]:
        said = answer.json()
        return Page(
            items=tuple(model.model_validate(item) for item in said[key]),
            total=said["total"],
            limit=said["limit"],
            offset=said["offset"],
        )

    return parse


def _nothing(_: Answer) -> None:
    return None


def _gone_is_done(error: ApiError | None) -> Steps[Settled[None] | None]:
    yield from ()
    return Settled(None) if isinstance(error, NotFoundError) else None
