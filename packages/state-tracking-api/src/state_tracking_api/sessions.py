"""Sessions: what happens to them, and what is asked about them (PRD 2.1, 2.2, 2.4, 3.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from state_tracking_api import log, metadata, transitions
from state_tracking_api.clock import iso, iso_or_none
from state_tracking_api.errors import Conflict, NotFound
from state_tracking_api.lifecycle import (
    LIVE,
    Document,
    SessionStatus,
    Stamp,
    appended,
    event,
    holds_its_machine,
    is_fenced,
    is_live,
    pushed,
)
from state_tracking_api.metadata import Json
from state_tracking_api.schema import WITHOUT_EVENTS
from state_tracking_api.storage import Storage, Transaction

# How often a write that lost against another one is tried again before the caller is told.
ATTEMPTS = 20
# How many of a session's heartbeats are remembered for its timeline: an hour of them at one a minute.
BEATS_KEPT = 60

# Why a stalled session became active again, in its events; the false positives are counted by it.
HEARTBEAT = "heartbeat"

# What only grows.
_TIMES = ("last_heartbeat", "updated_at")
_BEATING = (SessionStatus.ACTIVE, SessionStatus.PAUSED)
_ANY = tuple(SessionStatus)


def presented(session: Document) -> Json:
    """A session as answers show it: the PRD's fields, every optional one present."""
    return {
        "session_id": session["session_id"],
        "project_id": session["project_id"],
        "machine_id": session["machine_id"],
        "docker_slot": session.get("docker_slot"),
        "status": session["status"],
        "last_heartbeat": iso(session["last_heartbeat"]),
        "current_task_id": session.get("current_task_id"),
        "started_at": iso(session["started_at"]),
        "completed_at": iso_or_none(session.get("completed_at")),
        "metadata": session.get("metadata", {}),
        "created_at": iso(session["created_at"]),
        "updated_at": iso(session["updated_at"]),
        "recovered_from": session.get("recovered_from"),
        "recovered_by": session.get("recovered_by"),
        "stall_threshold_ms": session.get("stall_threshold_ms"),
    }


def new_document(
    stamp: Stamp,
    *,
    project_id: str,
    machine_id: str,
    docker_slot: int | None,
    metadata_: Json,
    stall_threshold_ms: int | None = None,
    recovered_from: str | None = None,
) -> Document:
    """A session that starts now; its start counts as its first heartbeat."""
    reason = "started" if recovered_from is None else f"recovered from session {recovered_from}"
    return {
        "session_id": str(uuid4()),
        "project_id": project_id,
        "machine_id": machine_id,
        "docker_slot": docker_slot,
        "status": str(SessionStatus.ACTIVE),
        "last_heartbeat": stamp.now,
        "current_task_id": None,
        "started_at": stamp.now,
        "completed_at": None,
        "metadata": metadata_,
        # An upper bound of the metadata's size, so that a heartbeat can merge without reading first.
        "metadata_bytes": metadata.client_bytes(metadata_),
        "created_at": stamp.now,
        "updated_at": stamp.now,
        "recovered_from": recovered_from,
        "recovered_by": None,
        "stall_threshold_ms": stall_threshold_ms,
        "revision": 0,
        "beats": [stamp.now],
        "events": [event(stamp, None, SessionStatus.ACTIVE, reason)],
    }


async def create(
    storage: Storage,
    stamp: Stamp,
    *,
    project_id: str,
    machine_id: str,
    docker_slot: int | None = None,
    metadata: Json | None = None,
    stall_threshold_ms: int | None = None,
) -> Document:
    """Register a session (PRD 2.1) and put it on its machine, in one transaction.

    Raises Conflict where an active session has the same project and machine, another live one the slot, or
    the machine is in maintenance; InvalidRequest where the slot is none of the machine's.
    """
    session = new_document(
        stamp,
        project_id=project_id,
        machine_id=machine_id,
        docker_slot=docker_slot,
        metadata_=metadata or {},
        stall_threshold_ms=stall_threshold_ms,
    )

    async def work(txn: Transaction) -> None:
        session.pop("_id", None)
        await transitions.join_machine(storage, txn, session, stamp.now)
        await storage.sessions.insert_one(session, session=txn)

    for _ in range(ATTEMPTS):
        try:
            await storage.transaction(work, machine_id)
        except DuplicateKeyError as error:
            conflict = await transitions.collision(storage, error, session)
            if conflict is not None:
                raise conflict from None
        else:
            _log("Session created", session)
            return session
    raise Conflict("Other sessions come and go on this machine too fast; try again")


async def get(storage: Storage, session_id: str, txn: Transaction | None = None) -> Document:
    """One session; raises NotFound."""
    session = await storage.sessions.find_one({"session_id": session_id}, WITHOUT_EVENTS, session=txn)
    if session is None:
        raise NotFound(f"Session {session_id} does not exist")
    return session


async def page(
    storage: Storage, condition: Mapping[str, Any], limit: int, offset: int
) -> tuple[list[Document], int]:
    """Sessions newest first, and how many there are in all."""
    return await storage.page(storage.sessions, condition, "session_id", limit, offset)


async def count_by_status(storage: Storage) -> dict[str, int]:
    """How many sessions there are of each status; 0 where there is none.

    The states are counted one after another: a session that changes meanwhile may count twice, or not at all.
    """

    def counted(status: str) -> list[Document]:
        return [{"$match": {"status": status}}, {"$count": "count"}, {"$set": {"_id": status}}]

    # Counting what an index has of a value takes the database half of what grouping by that value takes.
    first, *others = [str(status) for status in SessionStatus]
    unions = [
        {"$unionWith": {"coll": storage.sessions.name, "pipeline": counted(status)}} for status in others
    ]
    found = await storage.sessions.aggregate([*counted(first), *unions])
    counts = dict.fromkeys((first, *others), 0)
    async for group in found:
        counts[group["_id"]] = group["count"]
    return counts


async def heartbeat(
    storage: Storage, session_id: str, stamp: Stamp, *, changes: Mapping[str, Any], patch: Json | None
) -> Document:
    """Note that a session lives (PRD 2.2); `changes` may set `current_task_id`, `patch` merges metadata.

    One findOneAndUpdate for a session that is active or paused, which shares its round trip with others that
    wait at the same time; a second one for one that is stalled, which becomes active. Only where both find
    nothing is the reason looked up: one that has ended or was fenced off raises Conflict; a `current_task_id`
    that has been overtaken by the end of that task is left aside.
    """
    fields = {"last_heartbeat": stamp.now, "updated_at": stamp.now, **changes}
    beaten = await _beat(storage, session_id, fields, patch)
    if beaten is not None:
        return beaten
    happened = event(stamp, SessionStatus.STALLED, SessionStatus.ACTIVE, HEARTBEAT)
    revival = {**fields, "status": str(SessionStatus.ACTIVE)}
    was_silent = False

    async def revive() -> Document:
        nonlocal was_silent
        revived = await _update_in_place(
            storage, session_id, (SessionStatus.STALLED,), revival, patch, happened
        )
        was_silent = revived is not None
        return revived or await storage.transaction(thoroughly, session_id)

    async def thoroughly(txn: Transaction) -> Document:
        nonlocal was_silent
        session = await get(storage, session_id, txn)
        if not is_live(session):
            raise transitions.ended(session)
        if is_fenced(session):
            raise transitions.fenced(session)
        was_silent = session["status"] == SessionStatus.STALLED
        condition: Document = {"session_id": session_id, "status": session["status"]}
        added: Document = {"beats": _added_beat(stamp.now)}
        said = fields
        if was_silent:
            said, added = revival, {**added, "events": pushed(happened)}
        if await _has_left(storage, txn, session_id, said):
            said = {name: value for name, value in said.items() if name != "current_task_id"}
        update = {**_never_back({**said, **_merged(session, patch)}), "$push": added}
        return await _write(storage, txn, condition, update)

    beaten = await _one_active(storage, session_id, revive)
    if was_silent:
        _log("Heartbeat of a session that was silent", beaten)
    return beaten


async def _beat(
    storage: Storage, session_id: str, fields: Mapping[str, Any], patch: Json | None
) -> Document | None:
    if patch:  # what a merge has done cannot be told from the session, nor may it be done twice
        return await _update_in_place(storage, session_id, _BEATING, fields, patch)

    def shows(session: Document, written: bool) -> bool:
        if session["status"] not in _BEATING or is_fenced(session):
            return False
        said = {name: value for name, value in fields.items() if name not in _TIMES}
        return written or (
            session["last_heartbeat"] >= fields["last_heartbeat"]
            and all(session.get(name) == value for name, value in said.items())
        )

    condition, update = _condition(session_id, _BEATING, fields), _plain_update(fields)
    return await storage.session_beats.find_one_and_update(session_id, condition, update, shows)


async def _has_left(storage: Storage, txn: Transaction, session_id: str, said: Mapping[str, Any]) -> bool:
    """Whether the current task that a heartbeat names is in progress no longer."""
    left = {"session_id": session_id, "left_tasks": said.get("current_task_id")}
    return (
        left["left_tasks"] is not None
        and await storage.sessions.find_one(left, {"_id": 1}, session=txn) is not None
    )


def _added_beat(now: datetime) -> Document:
    return {"$each": [now], "$slice": -BEATS_KEPT}


def _never_back(fields: Mapping[str, Any]) -> Document:
    """An update that sets fields, the times among them only forwards.

    A request can be held up between taking its time and being written (a server that is suspended, a retry of
    the driver); another one may have been faster, and a session must not look more silent than it is.
    """
    times = {name: fields[name] for name in _TIMES if name in fields}
    rest = {name: value for name, value in fields.items() if name not in times}
    return ({"$max": times} if times else {}) | ({"$set": rest} if rest else {})


async def _update_in_place(
    storage: Storage,
    session_id: str,
    statuses: Collection[SessionStatus],
    fields: Mapping[str, Any],
    patch: Json | None,
    happened: Document | None = None,
) -> Document | None:
    """Set fields and merge metadata in one findOneAndUpdate; None where that cannot be told to fit."""
    condition = _condition(session_id, statuses, fields)
    update: Any = _plain_update(fields, happened)
    if patch:
        if not metadata.fits_expression(patch):
            return None
        size = len(metadata.encode(patch))
        # What is stored plus the patch bounds what comes out, so below this nothing can grow too large.
        condition["metadata_bytes"] = {"$lte": metadata.MAX_BYTES - size}
        update = _as_pipeline(fields, patch, size, happened)
    return await storage.sessions.find_one_and_update(
        condition, update, projection=WITHOUT_EVENTS, return_document=ReturnDocument.AFTER
    )


def _condition(session_id: str, statuses: Collection[SessionStatus], fields: Mapping[str, Any]) -> Document:
    condition: Document = {
        "session_id": session_id,
        "status": {"$in": list(statuses)},
        "fenced": {"$ne": True},
    }
    if "last_heartbeat" in fields and fields.get("current_task_id") is not None:
        condition["left_tasks"] = {"$ne": fields["current_task_id"]}
    return condition


def _plain_update(fields: Mapping[str, Any], happened: Document | None = None) -> Document:
    added: Document = {}
    if "last_heartbeat" in fields:
        added["beats"] = _added_beat(fields["last_heartbeat"])
    if happened is not None:
        added["events"] = pushed(happened)
    return _never_back(fields) | ({"$push": added} if added else {})


def _as_pipeline(
    fields: Mapping[str, Any], patch: Json, size: int, happened: Document | None
) -> list[Document]:
    """The same update where metadata is merged, which only a pipeline can do; values are literals in it."""
    none: list[Any] = []
    change: Document = {
        name: {"$max": [f"${name}", value]} if name in _TIMES else {"$literal": value}
        for name, value in fields.items()
    }
    change["metadata"] = metadata.merge_expression(patch)
    change["metadata_bytes"] = {"$add": ["$metadata_bytes", size]}
    if "last_heartbeat" in fields:
        kept = {"$concatArrays": [{"$ifNull": ["$beats", none]}, [fields["last_heartbeat"]]]}
        change["beats"] = {"$slice": [kept, -BEATS_KEPT]}
    if happened is not None:
        change["events"] = appended({"$literal": happened})
    return [{"$set": change}]


def _merged(session: Document, patch: Json | None) -> Document:
    """What a merge into a session's metadata sets; raises InvalidRequest where it grows too large."""
    if not patch:
        return {}
    merged = metadata.merged_into(session, patch)
    return {"metadata": merged, "metadata_bytes": metadata.client_bytes(merged)}


async def _write(storage: Storage, txn: Transaction, condition: Document, update: Document) -> Document:
    changed = await storage.sessions.find_one_and_update(
        condition,
        update,
        projection=WITHOUT_EVENTS,
        return_document=ReturnDocument.AFTER,
        session=txn,
    )
    assert changed is not None, "the transaction's snapshot had this session in this status"  # noqa: S101
    return changed


async def patch(
    storage: Storage,
    session_id: str,
    stamp: Stamp,
    *,
    status: SessionStatus | None,
    changes: Mapping[str, Any],
    patch: Json | None,
) -> Document:
    """Change a session (PRD 2.1): its status by the table, its current task, its metadata by a merge.

    Raises Conflict where the session has ended (metadata alone may still be merged), or where it would be
    the second active one of its project and machine.
    """
    if status is not None:
        return await _patch_status(storage, session_id, stamp, status, changes, patch)
    fields = {"updated_at": stamp.now, **changes}
    changed = await _update_in_place(storage, session_id, LIVE if changes else _ANY, fields, patch)
    if changed is not None:
        return changed

    async def thoroughly(txn: Transaction) -> Document:
        session = await get(storage, session_id, txn)
        _check_changes(session, changes)
        update = {"$set": {**fields, **_merged(session, patch)}}
        return await _write(storage, txn, {"session_id": session_id}, update)

    return await storage.transaction(thoroughly, session_id)


def _check_changes(session: Document, changes: Mapping[str, Any]) -> None:
    """Raise Conflict where more than metadata may not be changed any more."""
    if changes and not is_live(session):
        raise transitions.ended(session)
    if "current_task_id" in changes and is_fenced(session):
        raise transitions.fenced(session)


async def _patch_status(
    storage: Storage,
    session_id: str,
    stamp: Stamp,
    status: SessionStatus,
    changes: Mapping[str, Any],
    patch: Json | None,
) -> Document:
    async def work(txn: Transaction) -> Document:
        session = await get(storage, session_id, txn)
        _check_changes(session, changes)
        fields = {**changes, **_merged(session, patch)}
        if session["status"] != status:
            transitions.check_session_transition(session, status)
            return await transitions.enter_session_status(
                storage, txn, session, status, stamp, reason="patched", changes=fields
            )
        if not fields:
            return session
        update = {"$set": {"updated_at": stamp.now, **fields}}
        return await _write(storage, txn, {"session_id": session_id}, update)

    changed = await _one_active(storage, session_id, lambda: storage.transaction(work, session_id))
    _log("Session status patched", changed, status=str(status))
    return changed


async def _one_active(storage: Storage, session_id: str, work: Callable[[], Awaitable[Document]]) -> Document:
    """Do what may make a session active; raises Conflict where another one of its place is."""
    for _ in range(ATTEMPTS):
        try:
            return await work()
        except DuplicateKeyError as error:
            conflict = await transitions.collision(storage, error, await get(storage, session_id))
            if conflict is not None:
                raise conflict from None
    raise Conflict(f"Session {session_id} is being changed by others too fast; try again")


async def delete(storage: Storage, session_id: str, stamp: Stamp) -> None:
    """Delete a session, its tasks and its place on its machine, all or nothing; raises NotFound."""

    async def work(txn: Transaction) -> Document | None:
        session = await storage.sessions.find_one_and_delete({"session_id": session_id}, session=txn)
        if session is None:
            return None
        await storage.tasks.delete_many({"session_id": session_id}, session=txn)
        if holds_its_machine(session):
            await transitions.leave_machine(storage, txn, session, stamp.now)
        return session

    session = await storage.transaction(work, session_id)
    if session is None:
        raise NotFound(f"Session {session_id} does not exist")
    _log("Session deleted", session)


async def mark_failed(
    storage: Storage, session_id: str, stamp: Stamp, *, error_message: str, patch: Json | None
) -> Document:
    """Mark a session failed (PRD 3.2), its tasks in progress with it; a failed one stays as it is.

    Raises Conflict where it is completed.
    """

    async def work(txn: Transaction) -> tuple[Document, bool]:
        session = await get(storage, session_id, txn)
        if session["status"] == SessionStatus.FAILED:
            return session, False
        transitions.check_session_transition(session, SessionStatus.FAILED)
        merged = metadata.merged_into(session, patch or {})
        fields = {
            "metadata": {**merged, "error_message": error_message},
            "metadata_bytes": metadata.client_bytes(merged),
        }
        failed = await transitions.enter_session_status(
            storage, txn, session, SessionStatus.FAILED, stamp, reason=error_message, changes=fields
        )
        return failed, True

    session, changed = await storage.transaction(work, session_id)
    if changed:
        _log("Session marked failed", session, error_message=error_message)
    return session


async def fail_if(
    storage: Storage, session_id: str, condition: Mapping[str, Any], stamp: Stamp, reason: str
) -> bool:
    """Mark a session failed if it still meets a condition; tells whether it did."""

    async def work(txn: Transaction) -> Document | None:
        session = await storage.sessions.find_one(
            {"session_id": session_id, **condition}, WITHOUT_EVENTS, session=txn
        )
        if session is None:
            return None
        fields = {"metadata": {**metadata.stored_in(session), "error_message": reason}}
        return await transitions.enter_session_status(
            storage, txn, session, SessionStatus.FAILED, stamp, reason=reason, changes=fields
        )

    failed = await storage.transaction(work, session_id)
    if failed is not None:
        _log("Session marked failed", failed, error_message=reason)
    return failed is not None


async def mark_stalled(storage: Storage, session_id: str, stamp: Stamp) -> Document:
    """Mark a session stalled by hand (PRD 3.2); it may come back. Raises Conflict where it has ended."""

    async def work(txn: Transaction) -> tuple[Document, bool]:
        session = await get(storage, session_id, txn)
        if session["status"] == SessionStatus.STALLED:
            return session, False
        transitions.check_session_transition(session, SessionStatus.STALLED)
        stalled = await transitions.enter_session_status(
            storage, txn, session, SessionStatus.STALLED, stamp, reason="marked by hand"
        )
        return stalled, True

    session, changed = await storage.transaction(work, session_id)
    if changed:
        _log("Session marked stalled", session)
    return session


def milliseconds(span: timedelta) -> int:
    """A time span in whole milliseconds."""
    return span // timedelta(milliseconds=1)


def _log(message: str, session: Document, **more: Any) -> None:
    log.get().info(
        message,
        session_id=session["session_id"],
        project_id=session["project_id"],
        machine_id=session["machine_id"],
        **more,
    )
