"""What all scenarios of a validation share: times, a project of their own, checks, and the clean-up."""

import re
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from claude_projects.validation.probe import HaltedError, Probe, Reply, UnansweredError
from claude_projects.validation.report import Check, Result

Json = dict[str, Any]

CREATION, HEARTBEAT, HEALTH_QUERY, LIVENESS, LOAD = (
    *("session creation", "heartbeat", "session health query"),
    *("GET /health", "any request under load"),
)
# The 95th percentile in milliseconds (PRD 4.4, 5.3, section 3).
LIMITS = {CREATION: 1000.0, HEARTBEAT: 500.0, HEALTH_QUERY: 1000.0, LIVENESS: 200.0, LOAD: 1000.0}

PROJECT = re.compile(r"validation-[0-9a-f]{12}")
PROJECT_KINDS = ("", "-second")
_CLEANING_ROUNDS = 5


@dataclass(frozen=True)
class Times:
    """How long everything takes, in seconds. The defaults are the PRD's (4.4)."""

    heartbeats: int = 6
    interval: float = 60.0
    stall_threshold: float | None = None
    stall_timeout: float = 300.0
    load_sessions: int = 10
    load_seconds: float = 120.0
    load_interval: float = 10.0
    samples: int = 20
    retention_days: int = 30
    network_ms: float = 0.0
    delete_ended: bool = False


class FailedError(Exception):
    """A check did not hold, so the rest of the scenario makes no sense."""


@dataclass
class Run:
    """One validation. Everything that it creates belongs to its own projects and machines."""

    probe: Probe
    times: Times
    project_id: str = field(default_factory=lambda: f"validation-{uuid.uuid4().hex[:12]}")
    result: Result = field(default_factory=lambda: Result("", "", ""))
    note: Callable[[str], object] = print

    def limit(self, name: str) -> float:
        """What the 95th percentile of a measurement must stay below, in milliseconds."""
        return LIMITS[name] + self.times.network_ms

    # Checks

    def check(self, held: bool, what: str, found: object = "") -> None:
        """Note whether ``what`` holds; where it does not, the scenario ends here."""
        self.tell(held, what, found)
        if not held:
            raise FailedError

    def tell(self, held: bool, what: str, found: object = "") -> None:
        """Note whether ``what`` holds, and go on in any case."""
        self.result.checks.append(Check(what, held, "" if held else f"found {found}"))

    def expect(self, reply: Reply, status: int, what: str) -> Reply:
        """Check that an answer has this status."""
        self.check(reply.status == status, f"{what} → {status}", reply.said)
        return reply

    # Things

    def machine(self, name: str) -> str:
        """The id of a machine of this validation."""
        return f"{self.project_id}-{name}"

    def create(self, machine: str, *, kind: str = "", **more: Any) -> Json:
        """Create a session on ``machine``; the answer is the session."""
        body = {"project_id": self.project_id + kind, "machine_id": self.machine(machine), **more}
        reply = self.probe.send("POST", "/api/sessions", body, measure=(CREATION,))
        self.expect(reply, 201, "POST /api/sessions")
        return cast("Json", reply.body)

    def beat(self, session_id: str, body: Json | None = None) -> Reply:
        """Send one measured heartbeat."""
        return self.probe.send("POST", f"/api/sessions/{session_id}/heartbeat", body, measure=(HEARTBEAT,))

    def read(self, session_id: str) -> Json:
        """Read a session."""
        reply = self.probe.send("GET", f"/api/sessions/{session_id}")
        return cast("Json", self.expect(reply, 200, "GET /api/sessions/{session_id}").body)

    def patch(self, session_id: str, **change: Any) -> Reply:
        """Change a session."""
        return self.probe.send("PATCH", f"/api/sessions/{session_id}", change)

    def post(self, path: str, body: Json | None = None) -> Reply:
        """Send a POST."""
        return self.probe.send("POST", path, body)

    def task(self, session: Json, name: str, status: str | None = None) -> Json:
        """Add a task to a session, and take it to ``status``."""
        body = {"session_id": session["session_id"], "project_id": session["project_id"], "task_name": name}
        task = self.expect(self.post("/api/tasks", body), 201, "POST /api/tasks").body
        if status is not None:
            change = {"status": status} | ({"error_message": "on purpose"} if status == "failed" else {})
            reply = self.probe.send("PATCH", f"/api/tasks/{task['task_id']}", change)
            task = self.expect(reply, 200, f"PATCH /api/tasks/{{task_id}} to {status}").body
        return cast("Json", task)

    def sessions(self, kind: str = "") -> list[Json]:
        """All sessions of this validation's project."""
        found: list[Json] = []
        while True:
            query = {"project_id": self.project_id + kind, "limit": "100", "offset": str(len(found))}
            answer = self._listed("/api/sessions", query)
            found += cast("list[Json]", answer["sessions"])
            if not answer["sessions"] or len(found) >= int(answer["total"]):
                return found

    # Clean-up

    def clean_up(self) -> dict[str, int]:
        """Delete everything of this validation; the answer is how many things of each kind are left.

        Machines are found by their id, so a validation that was killed can be cleaned up by its project.
        """
        left = {"session": self._delete_sessions()}
        left["task"] = sum(self._tasks(kind) for kind in PROJECT_KINDS)
        for machine in self._machines():
            self.probe.send("DELETE", f"/api/machines/{machine}")
        left["machine"] = len(self._machines())
        return left

    def _delete_sessions(self) -> int:
        left = 0
        for _ in range(_CLEANING_ROUNDS):
            for kind in PROJECT_KINDS:
                for session in self.sessions(kind):
                    self.probe.send("DELETE", f"/api/sessions/{session['session_id']}")
            left = sum(len(self.sessions(kind)) for kind in PROJECT_KINDS)
            if left == 0:
                return 0
        return left

    def _tasks(self, kind: str) -> int:
        query = {"project_id": self.project_id + kind, "limit": "1"}
        return int(self._listed("/api/tasks", query)["total"])

    def _machines(self) -> list[str]:
        found: list[str] = []
        offset = 0
        while True:
            answer = self._listed("/api/machines", {"limit": "100", "offset": str(offset)})
            page = cast("list[Json]", answer["machines"])
            found += [one["machine_id"] for one in page if one["machine_id"].startswith(self.project_id)]
            offset += len(page)
            if not page or offset >= int(answer["total"]):
                return found

    def _listed(self, path: str, query: dict[str, str]) -> Json:
        reply = self.probe.send("GET", path, query=query)
        if reply.status != 200:
            raise UnansweredError(f"GET {path}: {reply.said}")
        return cast("Json", reply.body)


@contextmanager
def scenario(run: Run, result: Result) -> Generator[None]:
    """Collect the checks of the block in ``result``; a failed check or a missing answer ends the block."""
    run.result = result
    began = time.monotonic()
    try:
        yield
        result.ended = True
    except FailedError:
        result.ended = True
    except HaltedError:
        result.error = "broken off"
        raise
    except UnansweredError as error:
        result.error = str(error)
    except Exception as error:  # noqa: BLE001 - a deployment may answer anything; the report must tell it
        result.error = f"an answer was not what the API promises: {type(error).__name__}: {error}"
    finally:
        result.seconds = time.monotonic() - began


def moment(text: str) -> datetime:
    """A time as the API writes it."""
    return datetime.fromisoformat(text)
