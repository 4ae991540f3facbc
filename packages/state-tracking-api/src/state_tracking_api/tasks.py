"""Tasks of a session: what happens to them, and what is asked about them (PRD 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from pymongo import ReturnDocument

from state_tracking_api import log, metadata, transitions
from state_tracking_api.clock import iso, iso_or_none
from state_tracking_api.errors import Conflict, InvalidRequest, NotFound
from state_tracking_api.lifecycle import (
    LIVE,
    TASK_FINISHED,
    TASK_TRANSITIONS,
    Document,
    Stamp,
    TaskStatus,
    appended,
    event,
    is_fenced,
    is_live,
    pushed,
)
from state_tracking_api.metadata import Json
from state_tracking_api.schema import WITHOUT_EVENTS
from state_tracking_api.storage import Storage, Transaction

_LIVE = {"$in": [str(status) for status in LIVE]}
# A session remembers so many of the tasks that are no longer in progress: a heartbeat that was sent before
# one of them was finished, and comes after it, must not make it the current one again.
_LEFT_TASKS_KEPT = 20


def presented(task: Document) -> Json:
    """A task as answers show it: the PRD's fields, every optional one present."""
    return {
        "task_id": task["task_id"],
        "session_id": task["session_id"],
        "project_id": task["project_id"],
        "github_issue_id": task.get("github_issue_id"),
        "task_name": task["task_name"],
        "status": task["status"],
        "started_at": iso_or_none(task.get("started_at")),
        "completed_at": iso_or_none(task.get("completed_at")),
        "error_message": task.get("error_message"),
        "metadata": task.get("metadata", {}),
        "created_at": iso(task["created_at"]),
        "updated_at": iso(task["updated_at"]),
    }


def new_document(
    stamp: Stamp,
    *,
    session_id: str,
    project_id: str,
    task_name: str,
    github_issue_id: str | None,
    metadata_: Json,
    task_id: str | None = None,
    reason: str | None = None,
) -> Document:
    """A pending task."""
    return {
        "task_id": task_id or str(uuid4()),
        "session_id": session_id,
        "project_id": project_id,
        "github_issue_id": github_issue_id,
        "task_name": task_name,
        "status": str(TaskStatus.PENDING),
        "started_at": None,
        "completed_at": None,
        "error_message": None,
        "metadata": metadata_,
        "created_at": stamp.now,
        "updated_at": stamp.now,
        "events": [event(stamp, None, TaskStatus.PENDING, reason)],
    }


async def create(
    storage: Storage,
    stamp: Stamp,
    *,
    session_id: str,
    project_id: str,
    task_name: str,
    github_issue_id: str | None = None,
    metadata: Json | None = None,
) -> Document:
    """Add a pending task to a live session (PRD 3.1).

    The session's document is written, too: a session that ends, is recovered or deleted at the same moment
    conflicts with this, so that no task is left behind unseen.

    Raises InvalidRequest where the session does not exist, has ended, or has another project.
    """
    task = new_document(
        stamp,
        session_id=session_id,
        project_id=project_id,
        task_name=task_name,
        github_issue_id=github_issue_id,
        metadata_=metadata or {},
    )

    async def work(txn: Transaction) -> None:
        task.pop("_id", None)
        joined = await storage.sessions.update_one(
            {"session_id": session_id, "project_id": project_id, "status": _LIVE},
            {"$inc": {"revision": 1}},
            session=txn,
        )
        if not joined.matched_count:
            raise await _why_not(storage, txn, session_id, project_id)
        await storage.tasks.insert_one(task, session=txn)

    await storage.transaction(work, session_id)
    log.get().info("Task created", task_id=task["task_id"], session_id=session_id, project_id=project_id)
    return task


async def _why_not(storage: Storage, txn: Transaction, session_id: str, project_id: str) -> InvalidRequest:
    session = await storage.sessions.find_one({"session_id": session_id}, WITHOUT_EVENTS, session=txn)
    if session is None:
        return InvalidRequest.of_field("session_id", f"session {session_id} does not exist")
    if not is_live(session):
        return InvalidRequest.of_field(
            "session_id", f"session {session_id} has ended ({session['status']}) and takes no new tasks"
        )
    return InvalidRequest.of_field(
        "project_id", f"must be the session's project, {session['project_id']}, not {project_id}"
    )


async def get(storage: Storage, task_id: str, txn: Transaction | None = None) -> Document:
    """One task; raises NotFound."""
    task = await storage.tasks.find_one({"task_id": task_id}, WITHOUT_EVENTS, session=txn)
    if task is None:
        raise NotFound(f"Task {task_id} does not exist")
    return task


async def page(
    storage: Storage, condition: Mapping[str, Any], limit: int, offset: int
) -> tuple[list[Document], int]:
    """Tasks newest first, and how many there are in all."""
    return await storage.page(storage.tasks, condition, "task_id", limit, offset)


async def patch(
    storage: Storage,
    task_id: str,
    stamp: Stamp,
    *,
    status: TaskStatus | None,
    error_message: str | None,
    patch: Json | None,
) -> Document:
    """Change a task (PRD 3.1): its status by the table, its metadata by a merge (RFC 7396).

    Raises InvalidRequest for an illegal transition, Conflict where the task's session has ended.
    """

    async def work(txn: Transaction) -> Document:
        task = await get(storage, task_id, txn)
        fields: Document = {"updated_at": stamp.now}
        if patch:
            fields["metadata"] = metadata.merged_into(task, patch)
        update: Document = {"$set": fields}
        if status is not None:
            await _follow(storage, txn, task, status, stamp.now)
            _check_transition(task, status)
            fields |= _entering(task, status, stamp, error_message)
            update["$push"] = {"events": pushed(event(stamp, task["status"], status, error_message))}
        elif error_message is not None:
            if task["status"] != TaskStatus.FAILED:
                raise InvalidRequest.of_field("error_message", "belongs to a task that is failed")
            fields["error_message"] = error_message
        changed = await storage.tasks.find_one_and_update(
            {"task_id": task_id, "status": task["status"]},
            update,
            projection=WITHOUT_EVENTS,
            return_document=ReturnDocument.AFTER,
            session=txn,
        )
        assert changed is not None, "the transaction's snapshot had this task in this status"  # noqa: S101
        return changed

    changed = await storage.transaction(work, task_id)
    if status is not None:
        log.get().info(
            "Task status changed", task_id=task_id, session_id=changed["session_id"], status=changed["status"]
        )
    return changed


def _check_transition(task: Document, to: TaskStatus) -> None:
    before = TaskStatus(task["status"])
    if to in TASK_TRANSITIONS[before]:
        return
    if to == before:
        raise InvalidRequest.of_field("status", f"the task is {before} already")
    allowed = ", ".join(sorted(TASK_TRANSITIONS[before]))
    raise InvalidRequest.of_field("status", f"a task that is {before} can only become: {allowed}")


def _entering(task: Document, to: TaskStatus, stamp: Stamp, error_message: str | None) -> Document:
    """What else is set when a task enters a status."""
    finished = to in TASK_FINISHED
    fields: Document = {
        "status": str(to),
        "completed_at": stamp.now if finished else None,
        "error_message": error_message if to == TaskStatus.FAILED else None,
    }
    if to == TaskStatus.IN_PROGRESS or finished:
        fields["started_at"] = task.get("started_at") or stamp.now
    return fields


async def _follow(storage: Storage, txn: Transaction, task: Document, to: TaskStatus, now: datetime) -> None:
    """Let the session's current task follow the status of one of its tasks.

    The session is written in any case: that makes this conflict with whatever ends or recovers it.
    """
    condition = {"session_id": task["session_id"], "status": _LIVE}
    if to == TaskStatus.IN_PROGRESS:
        condition["fenced"] = {"$ne": True}
        fields = {"current_task_id": task["task_id"], "updated_at": now}
        followed = await storage.sessions.update_one(
            condition,
            {"$set": fields, "$pull": {"left_tasks": task["task_id"]}, "$inc": {"revision": 1}},
            session=txn,
        )
    else:
        left = [{"$set": _without_current(task["task_id"], now)}]
        followed = await storage.sessions.update_one(condition, left, session=txn)
    if followed.matched_count:
        return
    session = await storage.sessions.find_one({"session_id": task["session_id"]}, WITHOUT_EVENTS, session=txn)
    if session is None:
        raise Conflict(f"Session {task['session_id']} of this task has been deleted")
    raise (
        transitions.fenced(session) if is_live(session) and is_fenced(session) else transitions.ended(session)
    )


def _without_current(task_id: str, now: datetime) -> Document:
    """What a session becomes when a task of it is left, as expressions of an update pipeline."""
    none: list[str] = []
    left = {"$concatArrays": [{"$ifNull": ["$left_tasks", none]}, [task_id]]}
    is_current = {"$eq": ["$current_task_id", task_id]}
    return {
        "current_task_id": {"$cond": [is_current, None, "$current_task_id"]},
        "updated_at": {"$cond": [is_current, now, "$updated_at"]},
        "left_tasks": {"$slice": [left, -_LEFT_TASKS_KEPT]},
        "revision": {"$add": [{"$ifNull": ["$revision", 0]}, 1]},
    }


async def delete(storage: Storage, task_id: str, stamp: Stamp) -> None:
    """Delete a task; where it is its session's current one, that is cleared with it. Raises NotFound."""

    async def work(txn: Transaction) -> Document | None:
        task = await storage.tasks.find_one_and_delete({"task_id": task_id}, session=txn)
        if task is not None:
            happened = event(stamp, task["status"], "deleted", None)
            happened |= {"task_id": task_id, "task_name": task["task_name"]}
            left = {**_without_current(task_id, stamp.now), "events": appended({"$literal": happened})}
            await storage.sessions.update_one(
                {"session_id": task["session_id"]}, [{"$set": left}], session=txn
            )
        return task

    task = await storage.transaction(work, task_id)
    if task is None:
        raise NotFound(f"Task {task_id} does not exist")
    log.get().info("Task deleted", task_id=task_id, session_id=task["session_id"])
