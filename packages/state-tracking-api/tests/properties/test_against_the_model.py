"""Random sequences of calls: at each step the API must answer and stand as the model says (model.py).

`make test` runs a bounded number, the same ones each time; `make fuzz` runs many, new ones each time.
"""

from __future__ import annotations

import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from api_harness.api import Api, Json
from api_harness.fuzzing import EXAMPLES, without_end
from properties import model
from properties.model import Codes, Model

PROJECTS = st.sampled_from(["alpha", "beta"])
MACHINES = st.sampled_from(["one", "two", "three"])
SLOTS = st.none() | st.integers(0, 2)
SLOT_LISTS = st.lists(st.integers(0, 2), unique=True, max_size=3)
KEYS = st.sampled_from(["a", "$where", "x.y", "", "é", "deep"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from(["", "$a", "text"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)
CURRENT = st.none() | st.sampled_from(["mine", "somebody's"])


class Calls(RuleBasedStateMachine):
    """One caller after the other, in an order that nobody would think of."""

    sessions = Bundle("sessions")
    tasks = Bundle("tasks")

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.api = api
        self.model = Model()
        # One example must not meet what another one has left behind.
        self.token = uuid.uuid4().hex
        self.projects = [self.named("alpha"), self.named("beta")]
        self.last_heartbeats: dict[str, str] = {}

    def named(self, name: str) -> str:
        """A project or machine of this example."""
        return f"{name}-{self.token}"

    def call(self, method: str, path: str, body: Json | None, allowed: Codes) -> Json:
        """Send a request; its status code must be one of the `allowed` ones."""
        answer = self.api.request(method, path, json=body)
        said = f"{method} {path} {body}: {answer.status_code}, must be {sorted(allowed)}; {answer.text[:500]}"
        assert answer.status_code in allowed, said
        return answer.json() if answer.content else {}

    def act(self, session: str, action: str, body: Json | None, allowed: Codes) -> Json:
        """One of a session's actions."""
        return self.call("POST", f"/api/sessions/{session}/{action}", body, allowed)

    # Sessions.

    @rule(target=sessions, project=PROJECTS, machine=MACHINES, slot=SLOTS, metadata=METADATA)
    def create_session(self, project: str, machine: str, slot: int | None, metadata: Json) -> object:
        project, machine = self.named(project), self.named(machine)
        allowed = self.model.create_session(project, machine, slot)
        body = {"project_id": project, "machine_id": machine, "docker_slot": slot, "metadata": metadata}
        answer = self.call("POST", "/api/sessions", body, allowed)
        if allowed != model.CREATED:
            return multiple()
        # What is created is no merge: a null in it is a value.
        self.model.session_created(answer["session_id"], project, machine, slot, {})
        self.model.sessions[answer["session_id"]].metadata = metadata
        return answer["session_id"]

    @rule(session=sessions, to=st.sampled_from(model.SESSION_STATUSES))
    def set_session_status(self, session: str, to: str) -> None:
        allowed = self.model.set_status(session, to)
        self.call("PATCH", f"/api/sessions/{session}", {"status": to}, allowed)

    @rule(session=sessions, patch=METADATA)
    def merge_metadata(self, session: str, patch: Json) -> None:
        allowed = self.model.merge_metadata(session, patch)
        self.call("PATCH", f"/api/sessions/{session}", {"metadata": patch}, allowed)

    @rule(session=sessions, current=CURRENT)
    def set_current_task(self, session: str, current: str | None) -> None:
        allowed = self.model.set_current(session, current)
        self.call("PATCH", f"/api/sessions/{session}", {"current_task_id": current}, allowed)

    @rule(session=sessions, current=CURRENT, says=st.booleans(), patch=st.none() | METADATA)
    def heartbeat(self, session: str, current: str | None, says: bool, patch: Json | None) -> None:
        allowed = self.model.heartbeat(session, current, says=says)
        body: Json = {"metadata": patch} if patch is not None else {}
        body |= {"current_task_id": current} if says else {}
        self.act(session, "heartbeat", body or None, allowed)
        if allowed == model.OK and patch is not None:
            self.model.merge_metadata(session, patch)

    @rule(session=sessions)
    def mark_failed(self, session: str) -> None:
        self.act(session, "mark-failed", {"error_message": "lost"}, self.model.mark_failed(session, "lost"))

    @rule(session=sessions)
    def mark_stalled(self, session: str) -> None:
        self.act(session, "mark-stalled", None, self.model.mark_stalled(session))

    @rule(session=sessions, clear=st.booleans())
    def prepare(self, session: str, clear: bool) -> None:
        body = {"clear_machine_assignment": clear}
        self.act(session, "prepare-recovery", body, self.model.prepare(session, clear=clear))

    @rule(
        target=sessions,
        session=sessions,
        machine=MACHINES,
        slot=SLOTS,
        open_ones=st.booleans(),
        failed_ones=st.booleans(),
    )
    def recover(
        self, session: str, machine: str, slot: int | None, open_ones: bool, failed_ones: bool
    ) -> object:
        machine = self.named(machine)
        allowed = self.model.recover(session, machine, slot)
        body = {
            "new_machine_id": machine,
            "docker_slot": slot,
            "carry_open_tasks": open_ones,
            "reset_failed_tasks": failed_ones,
        }
        answer = self.act(session, "recover", body, allowed)
        if allowed == model.OK:
            assert answer["session_id"] == self.model.sessions[session].recovered_by
        if allowed != model.CREATED:
            return multiple()
        successor = answer["session_id"]
        found = self.api.get("/api/tasks", params={"session_id": successor, "limit": 200}).json()["tasks"]
        carried = {task["metadata"]["recovered_from_task"]: task["task_id"] for task in found}
        assert set(carried) == self.model.must_carry(session, open_ones=open_ones, failed_ones=failed_ones)
        self.model.recovered(session, successor, machine, slot, carried)
        return successor

    @rule(session=sessions)
    def archive(self, session: str) -> None:
        self.act(session, "archive", None, self.model.archive(session))

    @rule(session=sessions)
    def delete_session(self, session: str) -> None:
        self.call("DELETE", f"/api/sessions/{session}", None, self.model.delete_session(session))

    @rule()
    def clean_up(self) -> None:
        self.call("POST", "/api/sessions/cleanup?older_than_days=0", None, model.OK)
        self.model.clean_up()

    # Tasks.

    @rule(target=tasks, session=sessions, own=st.integers(0, 9), metadata=METADATA)
    def create_task(self, session: str, own: int, metadata: Json) -> object:
        known = self.model.sessions.get(session)
        project = self.projects[0] if known is None else known.project
        if own == 0:  # now and then somebody else's project
            project = next(other for other in self.projects if other != project)
        allowed = self.model.create_task(session, project)
        body = {
            "session_id": session,
            "project_id": project,
            "task_name": "write",
            "metadata": metadata,
        }
        answer = self.call("POST", "/api/tasks", body, allowed)
        if allowed != model.CREATED:
            return multiple()
        self.model.task_created(answer["task_id"], session, "write", metadata)
        return answer["task_id"]

    @rule(task=tasks, to=st.sampled_from(model.TASK_STATUSES), patch=st.none() | METADATA)
    def set_task_status(self, task: str, to: str, patch: Json | None) -> None:
        allowed = self.model.set_task(task, to, patch or {})
        body: Json = {"status": to} | ({"error_message": "broken"} if to == "failed" else {})
        body |= {"metadata": patch} if patch is not None else {}
        self.call("PATCH", f"/api/tasks/{task}", body, allowed)

    @rule(task=tasks, patch=METADATA)
    def merge_task_metadata(self, task: str, patch: Json) -> None:
        allowed = self.model.merge_task_metadata(task, patch)
        self.call("PATCH", f"/api/tasks/{task}", {"metadata": patch}, allowed)

    @rule(task=tasks)
    def delete_task(self, task: str) -> None:
        self.call("DELETE", f"/api/tasks/{task}", None, self.model.delete_task(task))

    # Machines.

    @rule(machine=MACHINES, slots=SLOT_LISTS)
    def register_machine(self, machine: str, slots: list[int]) -> None:
        machine = self.named(machine)
        body = {"machine_id": machine, "hostname": machine, "docker_slots": slots}
        self.call("POST", "/api/machines", body, self.model.register(machine, slots))

    @rule(
        machine=MACHINES,
        status=st.none() | st.sampled_from(model.MACHINE_STATUSES),
        slots=st.none() | SLOT_LISTS,
    )
    def patch_machine(self, machine: str, status: str | None, slots: list[int] | None) -> None:
        machine = self.named(machine)
        sent = {"status": status, "docker_slots": slots}
        body = {name: value for name, value in sent.items() if value is not None}
        allowed = self.model.set_machine(machine, status, slots) if body else model.WRONG
        self.call("PATCH", f"/api/machines/{machine}", body, allowed)

    @rule(machine=MACHINES)
    def machine_heartbeat(self, machine: str) -> None:
        machine = self.named(machine)
        self.call("POST", f"/api/machines/{machine}/heartbeat", None, self.model.machine_heartbeat(machine))

    @rule(machine=MACHINES)
    def delete_machine(self, machine: str) -> None:
        machine = self.named(machine)
        self.call("DELETE", f"/api/machines/{machine}", None, self.model.delete_machine(machine))
        if machine not in self.model.machines:
            self.call("GET", f"/api/machines/{machine}", None, model.MISSING)

    # What must hold after every step.

    @invariant()
    def sessions_are_as_the_model_says(self) -> None:
        stored: dict[str, Json] = {}
        for project in self.projects:
            answer = self.api.get("/api/sessions", params={"project_id": project, "limit": 100}).json()
            stored |= {session["session_id"]: session for session in answer["sessions"]}
        assert stored.keys() == self.model.sessions.keys()
        for name, known in self.model.sessions.items():
            found = stored[name]
            shown = (found["status"], found["machine_id"], found["docker_slot"], found["current_task_id"])
            assert shown == (known.status, known.machine, known.slot, known.current), name
            assert (found["recovered_from"], found["recovered_by"]) == (
                known.recovered_from,
                known.recovered_by,
            )
            assert (found["completed_at"] is not None) == (not known.live), name
            metadata = dict(found["metadata"])
            assert metadata.pop("archived", False) == known.archived
            assert ("archived_at" in metadata) == known.archived
            metadata.pop("archived_at", None)
            assert (metadata.pop("recovery_prepared_at", None) is not None) == known.prepared
            assert (metadata.pop("recovered_at", None) is not None) == (known.recovered_by is not None)
            assert metadata.pop("error_message", None) == known.error
            assert metadata == known.metadata, name
            for earlier, later in (("created_at", "started_at"), ("started_at", "last_heartbeat")):
                assert found[earlier] <= found[later]
            before = self.last_heartbeats.get(name, found["last_heartbeat"])
            assert before <= found["last_heartbeat"], name
            assert known.heard or before == found["last_heartbeat"], name
            self.last_heartbeats[name], known.heard = found["last_heartbeat"], False

    @invariant()
    def tasks_are_as_the_model_says(self) -> None:
        stored: dict[str, Json] = {}
        for project in self.projects:
            answer = self.api.get("/api/tasks", params={"project_id": project, "limit": 200}).json()
            stored |= {task["task_id"]: task for task in answer["tasks"]}
        assert stored.keys() == self.model.tasks.keys()
        for name, known in self.model.tasks.items():
            found = stored[name]
            assert (found["status"], found["session_id"]) == (known.status, known.session), name
            assert (found["completed_at"] is not None) == known.finished, name
            assert (found["error_message"] is not None) == known.error, name
            assert (found["started_at"] is not None) == known.started, name
            metadata = dict(found["metadata"])
            assert metadata.pop("recovered_from_task", None) == known.recovered_from
            assert (metadata.pop("carried_to", None) is not None) == known.carried_to
            assert metadata == known.metadata, name

    @invariant()
    def machines_are_as_the_model_says(self) -> None:
        for name, known in self.model.machines.items():
            found = self.api.get(f"/api/machines/{name}").json()
            assert (found["status"], found["docker_slots"]) == (known.status, known.slots)
            assert len(found["active_sessions"]) == len(set(found["active_sessions"]))
            assert set(found["active_sessions"]) == self.model.on_machine(name), name


@pytest.mark.slow
@without_end
def test_the_api_does_what_the_model_says_whatever_the_order_of_calls(api: Api) -> None:
    """A step that differs is shrunk to the shortest sequence of calls that still differs, and printed."""

    class OnThisServer(Calls):
        def __init__(self) -> None:
            super().__init__(api)

    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=EXAMPLES or 25,
            stateful_step_count=40,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
