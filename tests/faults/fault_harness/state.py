"""The stored data at one moment, and what must be true of it at every moment.

These rules are written down here a second time, apart from the service's own consistency check, so that the
two cannot be wrong together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

LIVE = {"active", "paused", "stalled"}
ENDED = {"completed", "failed"}
SESSION_STEPS = {
    None: {"active"},
    "active": {"paused", "stalled", "completed", "failed"},
    "paused": {"active", "stalled", "completed", "failed"},
    "stalled": {"active", "paused", "completed", "failed"},
    "failed": {"completed"},  # by recovery alone
    "completed": set[str](),
}
TASK_STEPS = {
    None: {"pending"},
    "pending": {"in_progress", "completed", "failed", "blocked"},
    "in_progress": {"completed", "failed", "blocked"},
    "blocked": {"blocked", "pending", "in_progress", "completed", "failed"},
    "completed": {"blocked"},
    "failed": {"blocked"},
}


@dataclass
class State:
    """Everything stored, by id."""

    sessions: dict[str, Document]
    tasks: dict[str, Document]
    machines: dict[str, Document]

    @classmethod
    def of(
        cls, sessions: Iterable[Document], tasks: Iterable[Document], machines: Iterable[Document]
    ) -> State:
        """From the collections' documents."""
        return cls(
            {one["session_id"]: one for one in sessions},
            {one["task_id"]: one for one in tasks},
            {one["machine_id"]: one for one in machines},
        )

    def tasks_of(self, session_id: str) -> list[Document]:
        """A session's tasks."""
        return [task for task in self.tasks.values() if task["session_id"] == session_id]


def wrong_with(state: State) -> list[str]:
    """What is wrong in a snapshot, a sentence each."""
    return [*_machines(state), *_owners(state), *_successors(state), *_tasks(state)]


def _machines(state: State) -> Iterable[str]:
    on: defaultdict[str, set[str]] = defaultdict(set)
    for one in state.sessions.values():
        if one["status"] in LIVE and not one.get("fenced"):
            on[one["machine_id"]].add(one["session_id"])
    for machine_id, machine in state.machines.items():
        said = machine["active_sessions"]
        if set(said) != on[machine_id] or len(said) != len(set(said)):
            yield (
                f"active_sessions of {machine_id} is not exact: "
                f"too many {sorted(set(said) - on[machine_id])}, missing {sorted(on[machine_id] - set(said))}"
            )


def _owners(state: State) -> Iterable[str]:
    live = [one for one in state.sessions.values() if one["status"] in LIVE]
    active = Counter((one["project_id"], one["machine_id"]) for one in live if one["status"] == "active")
    slots = Counter(
        (one["machine_id"], one["docker_slot"]) for one in live if one.get("docker_slot") is not None
    )
    for (project, machine), count in active.items():
        if count > 1:
            yield f"{project} has {count} active sessions on {machine}"
    for (machine, slot), count in slots.items():
        if count > 1:
            yield f"slot {slot} of {machine} is held by {count} live sessions"


def _successors(state: State) -> Iterable[str]:
    after: defaultdict[str, list[str]] = defaultdict(list)
    for one in state.sessions.values():
        if one.get("recovered_from"):
            after[one["recovered_from"]].append(one["session_id"])
    for original_id, successors in after.items():
        if len(successors) > 1:
            yield f"session {original_id} has {len(successors)} successors"
        original = state.sessions.get(original_id)
        if original is None:
            continue
        if original.get("recovered_by") not in successors:
            yield f"session {original_id} does not know its successor {successors}"
        if original["status"] != "completed":
            yield f"session {original_id} was recovered and is {original['status']}: two owners"
    for one in state.sessions.values():
        heir = one.get("recovered_by")
        if heir and heir not in state.sessions and one["status"] != "completed":
            yield f"session {one['session_id']} names a successor and is {one['status']}"
        if (one["status"] in ENDED) != (one.get("completed_at") is not None):
            yield f"session {one['session_id']} is {one['status']}, completed_at {one.get('completed_at')}"


def _tasks(state: State) -> Iterable[str]:
    copies = Counter(
        (task["session_id"], task["metadata"]["recovered_from_task"])
        for task in state.tasks.values()
        if "recovered_from_task" in task.get("metadata", {})
    )
    for (session_id, original), count in copies.items():
        if count > 1:
            yield f"task {original} was carried {count} times to session {session_id}"
    for task in state.tasks.values():
        session = state.sessions.get(task["session_id"])
        if session is None:
            yield f"task {task['task_id']} has no session {task['session_id']}"
            continue
        if session["status"] == "failed" and task["status"] == "in_progress":
            yield f"task {task['task_id']} is in progress under failed session {session['session_id']}"
        carried = task.get("metadata", {}).get("carried_to")
        if carried and session.get("recovered_by") in state.sessions and carried not in state.tasks:
            yield f"task {task['task_id']} is said to be carried to {carried}, which is not there"
    for one in state.sessions.values():
        current = state.tasks.get(one.get("current_task_id") or "")
        if one["status"] in LIVE and current is not None and current["status"] in {"completed", "failed"}:
            yield f"session {one['session_id']} is at task {current['task_id']}, which is {current['status']}"
        if one.get("recovered_by") in state.sessions:
            for task in state.tasks_of(one["session_id"]):
                if task["status"] == "in_progress":
                    yield f"task {task['task_id']} is in progress under recovered session {one['session_id']}"


def wrong_steps(state: State) -> list[str]:
    """What is wrong in the recorded events of sessions and tasks: nothing ended lives again, and no gaps."""
    wrong: list[str] = []
    for kind, documents, steps, key in (
        ("session", state.sessions, SESSION_STEPS, "session_id"),
        ("task", state.tasks, TASK_STEPS, "task_id"),
    ):
        for document in documents.values():
            before = None
            for event in document["events"]:
                if event["to"] == "deleted":
                    continue  # of one of the session's tasks
                if event["from"] != before or event["to"] not in steps[before]:
                    said = [(one["from"], one["to"], one["reason"]) for one in document["events"]]
                    wrong.append(f"{kind} {document[key]} went from {before} to {event['to']}: {said}")
                    break
                if kind == "session" and before == "failed" and not document.get("recovered_by"):
                    wrong.append(f"session {document[key]} left failed without a successor")
                before = event["to"]
            else:
                if before != document["status"]:
                    wrong.append(
                        f"{kind} {document[key]} is {document['status']}, its last event says {before}"
                    )
    return wrong
