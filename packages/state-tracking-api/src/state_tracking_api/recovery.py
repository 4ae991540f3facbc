"""Recovery: what a successor needs to know, and how it takes over (PRD 3.3); archival (PRD 3.4)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from state_tracking_api import log, metadata, sessions, tasks, transitions
from state_tracking_api.clock import iso
from state_tracking_api.errors import Conflict, InvalidRequest
from state_tracking_api.lifecycle import (
    ENDED,
    RECOVERABLE,
    TASK_OPEN,
    Document,
    MachineStatus,
    SessionStatus,
    Stamp,
    TaskStatus,
    event,
    holds_its_machine,
    pushed,
)
from state_tracking_api.metadata import Json
from state_tracking_api.schema import WITHOUT_EVENTS
from state_tracking_api.storage import Storage, Transaction

_UNAVAILABLE = (MachineStatus.OFFLINE, MachineStatus.MAINTENANCE)


async def state(storage: Storage, session_id: str) -> Json:
    """What a successor needs to go on (PRD 3.3); tasks in the order in which they were created."""
    return await _state(storage, await sessions.get(storage, session_id))


async def _state(storage: Storage, session: Document, txn: Transaction | None = None) -> Json:
    session_id = session["session_id"]
    found = storage.tasks.find({"session_id": session_id}, WITHOUT_EVENTS, session=txn)
    by_status: dict[str, list[Document]] = {status: [] for status in TaskStatus}
    async for task in found.sort([("created_at", 1), ("task_id", 1)]):
        by_status[task["status"]].append(task)
    completed = by_status[TaskStatus.COMPLETED]
    last = max(completed, key=lambda task: task["completed_at"], default=None)
    listed = {status: [tasks.presented(task) for task in found] for status, found in by_status.items()}
    return {
        "session_id": session_id,
        "project_id": session["project_id"],
        "last_successful_task": None if last is None else tasks.presented(last),
        "failed_tasks": listed[TaskStatus.FAILED],
        "pending_tasks": listed[TaskStatus.PENDING],
        "in_progress_tasks": listed[TaskStatus.IN_PROGRESS],
        "blocked_tasks": listed[TaskStatus.BLOCKED],
        "completed_tasks": listed[TaskStatus.COMPLETED],
        "last_heartbeat": iso(session["last_heartbeat"]),
        "metadata": session.get("metadata", {}),
    }


async def prepare(storage: Storage, session_id: str, stamp: Stamp, *, clear_machine_assignment: bool) -> Json:
    """Note that a failed or stalled session is about to be recovered; returns its recovery state.

    Clearing the assignment frees its machine and docker slot and fences the old process off: its heartbeats
    are refused from then on. Raises InvalidRequest where the session is in another state.
    """

    async def work(txn: Transaction) -> Json:
        session = await sessions.get(storage, session_id, txn)
        _check_recoverable(session)
        fields: Document = {"metadata.recovery_prepared_at": iso(stamp.now), "updated_at": stamp.now}
        if clear_machine_assignment and holds_its_machine(session):
            await transitions.leave_machine(storage, txn, session, stamp.now)
            fields |= {"fenced": True, "docker_slot": None}
        changed = await storage.sessions.find_one_and_update(
            {"session_id": session_id, "status": session["status"]},
            {"$set": fields, "$inc": {"revision": 1}},
            projection=WITHOUT_EVENTS,
            return_document=ReturnDocument.AFTER,
            session=txn,
        )
        assert changed is not None, "the transaction's snapshot had this session in this status"  # noqa: S101
        return await _state(storage, changed, txn)

    prepared = await storage.transaction(work, session_id)
    log.get().info(
        "Recovery prepared", session_id=session_id, machine_assignment_cleared=clear_machine_assignment
    )
    return prepared


async def recover(
    storage: Storage,
    session_id: str,
    stamp: Stamp,
    *,
    new_machine_id: str,
    docker_slot: int | None,
    reset_failed_tasks: bool,
    carry_open_tasks: bool,
) -> tuple[Document, bool]:
    """Let a new session take over from a failed or stalled one; tells whether it was made by this call.

    Whoever calls again, or at the same time, gets the same successor: every call writes the original's
    document, so of two transactions one runs again and finds the work done.

    Raises InvalidRequest where the session is in another state; Conflict where the successor was deleted,
    the machine takes no sessions, or another session holds the place on it.
    """

    async def work(txn: Transaction) -> tuple[Document, bool]:
        original = await sessions.get(storage, session_id, txn)
        if original.get("recovered_by"):
            return await _successor(storage, txn, original), False
        _check_recoverable(original)
        kept = metadata.normalised(original.get("metadata", {}))
        successor = sessions.new_document(
            stamp,
            project_id=original["project_id"],
            machine_id=new_machine_id,
            docker_slot=docker_slot,
            metadata_={key: value for key, value in kept.items() if key not in metadata.SESSION_KEYS},
            stall_threshold_ms=original.get("stall_threshold_ms"),
            recovered_from=session_id,
        )
        await _end_original(storage, txn, original, successor["session_id"], stamp)
        await transitions.join_machine(storage, txn, successor, stamp.now, refused=_UNAVAILABLE)
        await storage.sessions.insert_one(successor, session=txn)
        carried = [*TASK_OPEN] if carry_open_tasks else []
        if reset_failed_tasks:
            carried.append(TaskStatus.FAILED)
        await _carry(storage, txn, original, successor["session_id"], carried, stamp)
        return successor, True

    for _ in range(sessions.ATTEMPTS):
        try:
            successor, created = await storage.transaction(work, session_id, new_machine_id)
        except DuplicateKeyError as error:
            original = await sessions.get(storage, session_id)
            place = {**original, "machine_id": new_machine_id, "docker_slot": docker_slot}
            conflict = await transitions.collision(storage, error, place)
            if conflict is not None:
                raise conflict from None
            continue
        if created:
            log.get().info(
                "Recovery session created",
                original_session_id=session_id,
                new_session_id=successor["session_id"],
                project_id=successor["project_id"],
                machine_id=new_machine_id,
            )
        return successor, created
    raise Conflict("Other sessions come and go on this machine too fast; try again")


def _check_recoverable(session: Document) -> None:
    if session["status"] not in RECOVERABLE:
        raise InvalidRequest(
            f"Session {session['session_id']} is {session['status']}; "
            "only a failed or stalled one is recovered"
        )


async def _successor(storage: Storage, txn: Transaction, original: Document) -> Document:
    identifier = original["recovered_by"]
    found = await storage.sessions.find_one({"session_id": identifier}, WITHOUT_EVENTS, session=txn)
    if found is None:
        raise Conflict(
            f"Session {original['session_id']} was recovered as {identifier}, which has been deleted since",
            extra={"recovered_by": identifier},
        )
    return found


async def _end_original(
    storage: Storage, txn: Transaction, original: Document, successor_id: str, stamp: Stamp
) -> None:
    """Complete the original; the one transition out of failed, and only together with a successor."""
    if holds_its_machine(original):
        await transitions.leave_machine(storage, txn, original, stamp.now)
    fields = {
        "recovered_by": successor_id,
        "metadata.recovered_at": iso(stamp.now),
        "completed_at": original.get("completed_at") or stamp.now,
        "current_task_id": None,
    }
    reason = f"recovered by session {successor_id}"
    condition, update = transitions.session_update(original, SessionStatus.COMPLETED, stamp, reason, fields)
    await storage.sessions.update_one(condition, update, session=txn)


async def _carry(
    storage: Storage,
    txn: Transaction,
    original: Document,
    successor_id: str,
    carried: list[TaskStatus],
    stamp: Stamp,
) -> None:
    """Give the successor new pending tasks for the carried ones, which say where they went on."""
    left = storage.tasks.find({"session_id": original["session_id"]}, WITHOUT_EVENTS, session=txn)
    old = [
        task
        async for task in left.sort([("created_at", 1), ("task_id", 1)])
        if task["status"] in carried or task["status"] == TaskStatus.IN_PROGRESS
    ]
    # All of them are made at the same moment, and lists break ties by id: sorted ids keep their order.
    identifiers = sorted(str(uuid4()) for _ in old)
    created: list[Document] = []
    changed: list[UpdateOne] = []
    for task, identifier in zip(old, identifiers, strict=True):
        update: dict[str, Any] = {"$set": {"updated_at": stamp.now}}
        if task["status"] in carried:
            kept = metadata.normalised(task.get("metadata", {}))
            kept = {key: value for key, value in kept.items() if key not in metadata.TASK_KEYS}
            created.append(
                tasks.new_document(
                    stamp,
                    session_id=successor_id,
                    project_id=original["project_id"],
                    task_name=task["task_name"],
                    github_issue_id=task.get("github_issue_id"),
                    metadata_={**kept, "recovered_from_task": task["task_id"]},
                    task_id=identifier,
                    reason=f"recovered from task {task['task_id']}",
                )
            )
            update["$set"]["metadata.carried_to"] = identifier
        if task["status"] == TaskStatus.IN_PROGRESS:
            where = f"task {identifier} of session" if task["status"] in carried else "session"
            why = f"Interrupted; continued in {where} {successor_id}"
            update["$set"] |= {
                "status": str(TaskStatus.FAILED),
                "error_message": why,
                "completed_at": stamp.now,
            }
            happened = event(stamp, TaskStatus.IN_PROGRESS, TaskStatus.FAILED, why)
            update["$push"] = {"events": pushed(happened)}
        changed.append(UpdateOne({"task_id": task["task_id"], "status": task["status"]}, update))
    if created:
        await storage.tasks.insert_many(created, session=txn)
    if changed:
        await storage.tasks.bulk_write(changed, session=txn)


async def archive(storage: Storage, session_id: str, stamp: Stamp) -> Document:
    """Exempt an ended session and its tasks from expiry (PRD 3.4); again changes nothing.

    Raises InvalidRequest where the session has not ended.
    """

    async def work(txn: Transaction) -> Document:
        session = await sessions.get(storage, session_id, txn)
        if session["status"] not in ENDED:
            raise InvalidRequest(
                f"Session {session_id} is {session['status']}; only a completed or failed one is archived"
            )
        if metadata.stored_in(session).get("archived") is True:
            return session
        fields = {
            "metadata.archived": True,
            "metadata.archived_at": iso(stamp.now),
            "updated_at": stamp.now,
        }
        archived = await storage.sessions.find_one_and_update(
            {"session_id": session_id, "status": session["status"]},
            {"$set": fields, "$inc": {"revision": 1}},
            projection=WITHOUT_EVENTS,
            return_document=ReturnDocument.AFTER,
            session=txn,
        )
        await storage.tasks.update_many({"session_id": session_id}, {"$set": {"archived": True}}, session=txn)
        return archived or session

    archived = await storage.transaction(work, session_id)
    log.get().info("Session archived", session_id=session_id, project_id=archived["project_id"])
    return archived
