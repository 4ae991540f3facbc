"""What the benchmarks ask for: each kind of request by its name, and what it is asked about.

yardsticks.py has the same names, each with the same work on the database straight through the driver.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from bench_harness import Answer, Connection, Request

CREATED_IN = "bench-created"
"""The project of the sessions that are created while measuring."""


@dataclass(frozen=True)
class Targets:
    """Live sessions, open tasks of live sessions, a project, and a task with its session."""

    sessions: list[str]
    tasks: list[str]
    project_id: str
    task_id: str
    owner_id: str
    patience_ms: int
    """After so much silence the server takes a session for stalled."""


def requests(of: Targets) -> dict[str, Request]:
    """Every kind of request."""

    def get(path: str) -> Request:
        async def request(connection: Connection, _number: int) -> Answer:
            return await connection.request("GET", path)

        return request

    async def heartbeat(connection: Connection, number: int) -> Answer:
        path = f"/api/sessions/{of.sessions[number % len(of.sessions)]}/heartbeat"
        return await connection.request("POST", path)

    async def read(connection: Connection, number: int) -> Answer:
        return await connection.request("GET", f"/api/sessions/{of.sessions[number % len(of.sessions)]}")

    async def create(connection: Connection, _number: int) -> Answer:
        body = {"project_id": CREATED_IN, "machine_id": str(uuid.uuid4())}
        return await connection.request("POST", "/api/sessions", body)

    async def transition(connection: Connection, number: int) -> Answer:
        # Blocked may be said again and again: every request is the same transition of a task of its own.
        path = f"/api/tasks/{of.tasks[number % len(of.tasks)]}"
        return await connection.request("PATCH", path, {"status": "blocked"})

    async def scan(connection: Connection, _number: int) -> Answer:
        return await connection.request("POST", "/api/sessions/detect-failures")

    return {
        "heartbeat": heartbeat,
        "read a session": read,
        "read a task": get(f"/api/tasks/{of.task_id}"),
        "create a session": create,
        "task transition": transition,
        "list of a project": get(f"/api/sessions?project_id={of.project_id}&limit=20"),
        "list of the live": get("/api/sessions?status=active&limit=20"),
        "list of all": get("/api/sessions?limit=20"),
        "tasks of a session": get(f"/api/tasks?session_id={of.owner_id}&limit=100"),
        "stalled list": get("/api/sessions/stalled"),
        "health summary": get("/api/sessions/health"),
        "recovery state": get(f"/api/sessions/{of.owner_id}/recovery-state"),
        "stall scan, nobody silent": scan,
    }


def tidy(database: Any) -> None:
    """Delete what creating has left."""
    database["sessions"].delete_many({"project_id": CREATED_IN})
