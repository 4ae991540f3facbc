"""The API as one key sees it, with the few steps that nearly every test begins with."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httpx

from api_harness.server import NO_TLS

Json = dict[str, Any]

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
"""ISO 8601 in UTC with milliseconds and `Z`."""

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=2)


def unique(kind: str) -> str:
    """A name that no other test uses: isolation by project and machine instead of by database."""
    return f"{kind}-{uuid.uuid4()}"


def uuid4() -> str:
    """An id in the server's own form that stands for nothing."""
    return str(uuid.uuid4())


def is_uuid4(text: object) -> bool:
    """Whether `text` is a UUID v4 as the server writes one."""
    return isinstance(text, str) and str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4


def ago(**parts: float) -> datetime:
    """The moment that lies `timedelta(**parts)` back."""
    return datetime.now(UTC) - timedelta(**parts)


def moment(text: str) -> datetime:
    """An API timestamp as a datetime; AssertionError where it is not in the promised form."""
    assert TIMESTAMP.fullmatch(text), text
    return datetime.fromisoformat(text)


class Api:
    """A synchronous client of one server and key; `http` is there for everything that has no shortcut."""

    def __init__(self, base_url: str, key: str | None) -> None:
        headers = {"X-API-Key": key} if key else {}
        self.http = httpx.Client(
            base_url=base_url, headers=headers, timeout=60, limits=LIMITS, verify=NO_TLS, trust_env=False
        )
        self.get = self.http.get
        self.post = self.http.post
        self.patch = self.http.patch
        self.delete = self.http.delete
        self.request = self.http.request

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def session(self, **fields: object) -> Json:
        """Create a session (201) with its own project and machine unless `fields` says otherwise."""
        body = {"project_id": unique("project"), "machine_id": unique("machine")} | fields
        return expect(self.post("/api/sessions", json=body), 201)

    def task(self, session: Json, **fields: object) -> Json:
        """Create a task (201) of `session`."""
        body = {
            "session_id": session["session_id"],
            "project_id": session["project_id"],
            "task_name": "Write it",
        } | fields
        return expect(self.post("/api/tasks", json=body), 201)

    def task_in(self, session: Json, status: str, **fields: object) -> Json:
        """Create a task of `session` and bring it to `status`."""
        task = self.task(session, **fields)
        return task if status == "pending" else self.set_task(task, status)

    def set_task(self, task: Json, status: str) -> Json:
        """PATCH the task to `status` (200), with an error message where one is needed."""
        body = {"status": status} | ({"error_message": "broken"} if status == "failed" else {})
        return expect(self.patch(f"/api/tasks/{task['task_id']}", json=body), 200)

    def machine(self, **fields: object) -> Json:
        """Register a machine (201) under a hostname of its own, with the slots 0 to 3."""
        body = {"hostname": unique("host"), "docker_slots": [0, 1, 2, 3]} | fields
        return expect(self.post("/api/machines", json=body), 201)

    def set_session(self, session: Json, status: str) -> Json:
        """PATCH the session to `status` (200)."""
        return expect(self.patch(f"/api/sessions/{session['session_id']}", json={"status": status}), 200)

    def session_in(self, status: str, **fields: object) -> Json:
        """Create a session and bring it to `status`."""
        session = self.session(**fields)
        return session if status == "active" else self.set_session(session, status)

    def read_session(self, session: Json | str) -> Json:
        session_id = session if isinstance(session, str) else session["session_id"]
        return expect(self.get(f"/api/sessions/{session_id}"), 200)

    def read_task(self, task: Json | str) -> Json:
        task_id = task if isinstance(task, str) else task["task_id"]
        return expect(self.get(f"/api/tasks/{task_id}"), 200)

    def read_machine(self, machine: Json | str) -> Json:
        machine_id = machine if isinstance(machine, str) else machine["machine_id"]
        return expect(self.get(f"/api/machines/{machine_id}"), 200)

    def tasks_of(self, session: Json) -> list[Json]:
        """All tasks of `session`, newest first."""
        answer = self.get("/api/tasks", params={"session_id": session["session_id"], "limit": 200})
        return expect(answer, 200)["tasks"]

    def act(self, session: Json, action: str, body: Json | None = None) -> httpx.Response:
        """POST one of a session's actions: heartbeat, mark-failed, recover and so on."""
        return self.post(f"/api/sessions/{session['session_id']}/{action}", json=body)

    def recover(self, session: Json, **fields: object) -> httpx.Response:
        """POST recover, on a machine of its own unless `fields` says otherwise."""
        return self.act(session, "recover", {"new_machine_id": unique("machine")} | fields)


def expect(response: httpx.Response, status: int) -> Any:
    """The answer's JSON after asserting its status code."""
    assert response.status_code == status, f"{response.request.method} {response.url}: {response.text[:2000]}"
    return response.json() if response.content else None


def expect_error(
    response: httpx.Response, status: int, *, fields: tuple[str, ...] = (), says: str = ""
) -> Json:
    """The error object after asserting the PRD's error format (5.2).

    Args:
        response: the answer.
        status: the status code that it must have, outside and inside.
        fields: each must be named by an entry of `errors`, alone or as the first part of a path.
        says: part of the message, letter case aside.
    """
    body = expect(response, status)
    assert response.headers["content-type"].split(";")[0] == "application/json"
    assert body["statusCode"] == status
    for part in ("error", "message"):
        assert isinstance(body[part], str)
        assert body[part]
    assert abs(moment(body["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    url = response.request.url
    assert body["path"] in {url.path, url.raw_path.decode().partition("?")[0]}
    assert body["request_id"] == response.headers["x-request-id"]
    assert says.lower() in body["message"].lower()
    if fields:
        assert set(fields) == {_root(entry["field"]) for entry in body["errors"]}, body
        assert all(isinstance(entry["message"], str) and entry["message"] for entry in body["errors"])
    return body


def _root(field: str) -> str:
    return re.split(r"[.\[]", field, maxsplit=1)[0]


def same_but(before: Mapping[str, Any], after: Mapping[str, Any], *changed: str) -> None:
    """Assert that the two objects have the same fields, and that only those of `changed` may differ."""
    assert before.keys() == after.keys()
    differing = {name for name in before if before[name] != after[name]}
    assert differing <= set(changed), {name: (before[name], after[name]) for name in differing}
