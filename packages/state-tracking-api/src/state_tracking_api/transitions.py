"""The one way by which a status changes, and what must change with it in the same transaction.

Every write carries the old status in its filter. Nothing modified means that somebody else was first.

Who stands on which machine is part of it. A session that comes or goes changes its machine's document, so
two transactions that touch the same machine conflict and one of them runs again. Where the machine is not
registered there is no document to conflict on, and a registration at the same moment would not see the
session (write skew under snapshot isolation). For that case both sides write `machine_locks`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from state_tracking_api.errors import ApiError, Conflict, InvalidRequest
from state_tracking_api.lifecycle import (
    ENDED,
    LIVE,
    SESSION_TRANSITIONS,
    Document,
    MachineStatus,
    SessionStatus,
    Stamp,
    TaskStatus,
    appended,
    event,
    holds_its_machine,
    is_fenced,
    pushed,
)
from state_tracking_api.schema import WITHOUT_EVENTS
from state_tracking_api.storage import Storage, Transaction


def ended(session: Document) -> Conflict:
    """The answer to whoever still works for a session that has ended; names the one that has taken over."""
    successor = session.get("recovered_by")
    if successor:
        message = f"Session {session['session_id']} has been taken over by session {successor}"
        return Conflict(message, extra={"recovered_by": successor})
    return Conflict(f"Session {session['session_id']} has ended: it is {session['status']}")


def fenced(session: Document) -> Conflict:
    """The answer to a process whose session has been taken off its machine."""
    message = f"Session {session['session_id']} is being recovered; its machine assignment has been cleared"
    return Conflict(message)


def check_session_transition(session: Document, to: SessionStatus) -> None:
    """Raise Conflict where the session may not enter `to`."""
    if to not in SESSION_TRANSITIONS[session["status"]]:
        raise ended(session)
    if is_fenced(session) and to in (SessionStatus.ACTIVE, SessionStatus.PAUSED):
        raise fenced(session)


def session_update(
    session: Document, to: SessionStatus, stamp: Stamp, reason: str | None, changes: Mapping[str, Any]
) -> tuple[Document, Document]:
    """Filter and update that take a session from the status it was read with to `to`, event included."""
    fields: Document = {"status": str(to), "updated_at": stamp.now, **changes}
    if to in ENDED:
        fields.setdefault("completed_at", stamp.now)
    if to == SessionStatus.ACTIVE:
        fields.setdefault("last_heartbeat", max(stamp.now, session["last_heartbeat"]))
    happened = event(stamp, session["status"], to, reason)
    if to == SessionStatus.STALLED:
        happened["silent_since"] = session["last_heartbeat"]
    condition = {"session_id": session["session_id"], "status": session["status"]}
    return condition, {"$set": fields, "$push": {"events": pushed(happened)}, "$inc": {"revision": 1}}


async def enter_session_status(
    storage: Storage,
    txn: Transaction,
    session: Document,
    to: SessionStatus,
    stamp: Stamp,
    *,
    reason: str | None,
    changes: Mapping[str, Any] | None = None,
) -> Document:
    """Take a session that was read in this transaction to another status; returns it as it is then.

    Ending takes it off its machine; failing also fails its tasks in progress (PRD 3.2). The caller has
    checked that the transition is allowed.
    """
    fields = dict(changes or {})
    if to in ENDED and holds_its_machine(session):
        await leave_machine(storage, txn, session, stamp.now)
    if to == SessionStatus.FAILED:
        why = f"Session failed: {reason}" if reason else "Session failed"
        stopped = await fail_tasks_in_progress(storage, txn, session["session_id"], stamp, why)
        if session.get("current_task_id") in stopped:
            fields["current_task_id"] = None
    condition, update = session_update(session, to, stamp, reason, fields)
    changed = await storage.sessions.find_one_and_update(
        condition, update, projection=WITHOUT_EVENTS, return_document=ReturnDocument.AFTER, session=txn
    )
    assert changed is not None, "the transaction's snapshot had this session in this status"  # noqa: S101
    return changed


async def fail_tasks_in_progress(
    storage: Storage, txn: Transaction, session_id: str, stamp: Stamp, why: str
) -> Collection[str]:
    """Fail every task in progress of a session; returns their ids."""
    running = {"session_id": session_id, "status": str(TaskStatus.IN_PROGRESS)}
    found = storage.tasks.find(running, {"_id": 0, "task_id": 1}, session=txn)
    ids = [task["task_id"] async for task in found]
    if ids:
        fields = {
            "status": str(TaskStatus.FAILED),
            "completed_at": stamp.now,
            "updated_at": stamp.now,
            "error_message": why,
        }
        happened = event(stamp, TaskStatus.IN_PROGRESS, TaskStatus.FAILED, why)
        await storage.tasks.update_many(
            running, {"$set": fields, "$push": {"events": pushed(happened)}}, session=txn
        )
    return ids


async def stall_silent(
    storage: Storage, candidates: Sequence[Any], silent: Mapping[str, Any], stamp: Stamp
) -> list[Document]:
    """Mark those of `candidates` (values of _id) stalled that still are `silent`; returns the marked ones.

    Each is changed in one write with the whole condition in its filter, so that a heartbeat that arrives in
    between wins.
    """
    marker = str(uuid4())
    happened = event(
        stamp, SessionStatus.ACTIVE, SessionStatus.STALLED, "silent for longer than its threshold"
    )
    literal = {name: {"$literal": value} for name, value in happened.items()}
    change: Document = {
        "status": str(SessionStatus.STALLED),
        "updated_at": stamp.now,
        "stall_scan": marker,
        "revision": {"$add": [{"$ifNull": ["$revision", 0]}, 1]},
        "events": appended({**literal, "silent_since": "$last_heartbeat"}),
    }
    among = {"_id": {"$in": list(candidates)}}
    # By their ids: left to itself the database may walk along all that is stored instead, by the time of the
    # last heartbeat.
    await storage.sessions.update_many({**among, **silent}, [{"$set": change}], hint="_id_")
    found = storage.sessions.find({**among, "stall_scan": marker}, WITHOUT_EVENTS, hint="_id_")
    return sorted(await found.to_list(), key=lambda session: session["last_heartbeat"])


async def join_machine(
    storage: Storage,
    txn: Transaction,
    session: Document,
    now: datetime,
    refused: Collection[MachineStatus] = (MachineStatus.MAINTENANCE,),
) -> None:
    """Put a new session on its machine, registered or not.

    Raises Conflict where the machine is in one of the `refused` states, InvalidRequest where the docker slot
    is none of its slots.
    """
    machine_id, slot = session["machine_id"], session.get("docker_slot")
    fit: Document = {"machine_id": machine_id, "status": {"$nin": [str(status) for status in refused]}}
    if slot is not None:
        fit["docker_slots"] = slot
    joined = await storage.machines.update_one(
        fit,
        {"$addToSet": {"active_sessions": session["session_id"]}, "$set": {"updated_at": now}},
        session=txn,
    )
    if joined.matched_count:
        return
    machine = await storage.machines.find_one({"machine_id": machine_id}, session=txn)
    if machine is None:
        await lock_machine(storage, txn, machine_id, now)
    elif machine["status"] in refused:
        raise Conflict(f"Machine {machine_id} is {_spoken(machine['status'])} and takes no sessions")
    else:
        slots = ", ".join(str(number) for number in machine["docker_slots"]) or "none"
        raise InvalidRequest.of_field(
            "docker_slot", f"is not a slot of machine {machine_id} (it has {slots})"
        )


async def leave_machine(storage: Storage, txn: Transaction, session: Document, now: datetime) -> None:
    """Take a session off its machine, registered or not."""
    machine_id = session["machine_id"]
    left = await storage.machines.update_one(
        {"machine_id": machine_id},
        {"$pull": {"active_sessions": session["session_id"]}, "$set": {"updated_at": now}},
        session=txn,
    )
    if not left.matched_count:
        await lock_machine(storage, txn, machine_id, now)


async def lock_machine(storage: Storage, txn: Transaction, machine_id: str, now: datetime) -> None:
    """Make this transaction conflict with every other one that locks the same unregistered machine."""
    await storage.machine_locks.update_one(
        {"_id": machine_id}, {"$set": {"touched_at": now}, "$inc": {"touched": 1}}, upsert=True, session=txn
    )


def on_machine(machine_id: str) -> Document:
    """The sessions that stand in a machine's `active_sessions`, as a filter."""
    return {"machine_id": machine_id, "status": {"$in": [str(s) for s in LIVE]}, "fenced": {"$ne": True}}


async def collision(storage: Storage, error: DuplicateKeyError, session: Document) -> ApiError | None:
    """Who holds what a session wanted for itself alone; None where the holder is gone by now."""
    violated = set((error.details or {}).get("keyPattern", {}))
    if violated == {"machine_id", "docker_slot"}:
        holder: Document = {
            "machine_id": session["machine_id"],
            "docker_slot": session["docker_slot"],
            "status": {"$in": [str(status) for status in LIVE]},
        }
        message = (
            f"Docker slot {session['docker_slot']} of machine {session['machine_id']} is in use by session"
        )
    elif violated == {"project_id", "machine_id"}:
        holder = {
            "project_id": session["project_id"],
            "machine_id": session["machine_id"],
            "status": str(SessionStatus.ACTIVE),
        }
        message = f"Project {session['project_id']} has an active session on machine {session['machine_id']}:"
    else:
        raise error
    found = await storage.sessions.find_one(holder, {"session_id": 1})
    if found is None:
        return None
    existing = found["session_id"]
    return Conflict(f"{message} {existing}", extra={"existing_session_id": existing})


def _spoken(status: str) -> str:
    return "in maintenance" if status == MachineStatus.MAINTENANCE else status
