"""Machines and their docker slots (PRD 2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from state_tracking_api import log, metadata, transitions
from state_tracking_api.clock import iso
from state_tracking_api.errors import Conflict, NotFound
from state_tracking_api.lifecycle import Document, MachineStatus, Stamp
from state_tracking_api.metadata import Json
from state_tracking_api.storage import Storage, Transaction

_PUBLIC = {"_id": 0}


def presented(machine: Document) -> Json:
    """A machine as answers show it."""
    return {
        "machine_id": machine["machine_id"],
        "hostname": machine["hostname"],
        "docker_slots": machine["docker_slots"],
        "active_sessions": machine["active_sessions"],
        "status": machine["status"],
        "last_heartbeat": iso(machine["last_heartbeat"]),
        "metadata": machine.get("metadata", {}),
        "created_at": iso(machine["created_at"]),
        "updated_at": iso(machine["updated_at"]),
    }


async def register(
    storage: Storage,
    stamp: Stamp,
    *,
    hostname: str,
    docker_slots: Sequence[int],
    machine_id: str | None,
    metadata: Json | None,
) -> tuple[Document, bool]:
    """Register a machine, or register it again; tells whether it is new.

    Again makes an offline machine online and leaves maintenance as it is; metadata, where given, replaces
    what was there. Raises Conflict where the id belongs to another hostname, or a live session holds a slot
    that is not in `docker_slots`.
    """
    identifier = machine_id or str(uuid4())

    async def work(txn: Transaction) -> tuple[Document, bool]:
        machine = await storage.machines.find_one({"machine_id": identifier}, session=txn)
        if machine is not None and machine["hostname"] != hostname:
            raise Conflict(f"Machine {identifier} is registered with hostname {machine['hostname']}")
        present = await _sessions_on(storage, txn, identifier)
        _check_slots(identifier, present, docker_slots)
        fields: Document = {
            "docker_slots": list(docker_slots),
            "active_sessions": _ids(present),
            "last_heartbeat": stamp.now,
            "updated_at": stamp.now,
        }
        if metadata is not None:
            fields["metadata"] = metadata
        if machine is None:
            await transitions.lock_machine(storage, txn, identifier, stamp.now)
            new: Document = {
                "machine_id": identifier,
                "hostname": hostname,
                "status": str(MachineStatus.ONLINE),
                "metadata": {},
                "created_at": stamp.now,
                **fields,
            }
            await storage.machines.insert_one(new, session=txn)
            return new, True
        if machine["status"] == MachineStatus.OFFLINE:
            fields["status"] = str(MachineStatus.ONLINE)
        return await _write(storage, txn, identifier, {"$set": fields}), False

    try:
        machine, created = await storage.transaction(work, identifier)
    except DuplicateKeyError:  # registered by somebody else between our reading and our writing
        machine, created = await storage.transaction(work, identifier)
    log.get().info("Machine registered", machine_id=identifier, hostname=hostname, created=created)
    return machine, created


async def get(storage: Storage, machine_id: str, txn: Transaction | None = None) -> Document:
    """One machine; raises NotFound."""
    machine = await storage.machines.find_one({"machine_id": machine_id}, _PUBLIC, session=txn)
    if machine is None:
        raise NotFound(f"Machine {machine_id} does not exist")
    return machine


async def page(
    storage: Storage, condition: Mapping[str, Any], limit: int, offset: int
) -> tuple[list[Document], int]:
    """Machines newest first, and how many there are in all."""
    return await storage.page(storage.machines, condition, "machine_id", limit, offset)


async def patch(
    storage: Storage,
    machine_id: str,
    stamp: Stamp,
    *,
    status: MachineStatus | None,
    docker_slots: Sequence[int] | None,
    patch: Json | None,
) -> Document:
    """Change a machine; raises NotFound, or Conflict where a live session holds a slot that would go."""

    async def work(txn: Transaction) -> Document:
        machine = await get(storage, machine_id, txn)
        fields: Document = {"updated_at": stamp.now}
        if status is not None:
            fields["status"] = str(status)
        if docker_slots is not None:
            _check_slots(machine_id, await _sessions_on(storage, txn, machine_id), docker_slots)
            fields["docker_slots"] = list(docker_slots)
        if patch:
            fields["metadata"] = metadata.merged_into(machine, patch)
        return await _write(storage, txn, machine_id, {"$set": fields})

    return await storage.transaction(work, machine_id)


async def heartbeat(storage: Storage, machine_id: str, stamp: Stamp, *, patch: Json | None) -> Document:
    """Note that a machine lives: offline becomes online, `active_sessions` is brought in line."""

    async def work(txn: Transaction) -> Document:
        machine = await get(storage, machine_id, txn)
        fields: Document = {
            "last_heartbeat": stamp.now,
            "updated_at": stamp.now,
            "active_sessions": _ids(await _sessions_on(storage, txn, machine_id)),
        }
        if machine["status"] == MachineStatus.OFFLINE:
            fields["status"] = str(MachineStatus.ONLINE)
        if patch:
            fields["metadata"] = metadata.merged_into(machine, patch)
        return await _write(storage, txn, machine_id, {"$set": fields})

    return await storage.transaction(work, machine_id)


async def sync(storage: Storage, machine_id: str, stamp: Stamp) -> None:
    """Make `active_sessions` fit the sessions, where it does not; a machine that is gone is left alone."""

    async def work(txn: Transaction) -> None:
        machine = await storage.machines.find_one({"machine_id": machine_id}, session=txn)
        if machine is None:
            return
        present = _ids(await _sessions_on(storage, txn, machine_id))
        if set(present) != set(machine["active_sessions"]):
            await _write(
                storage, txn, machine_id, {"$set": {"active_sessions": present, "updated_at": stamp.now}}
            )

    await storage.transaction(work, machine_id)


async def delete(storage: Storage, machine_id: str, stamp: Stamp) -> None:
    """Delete a machine; raises NotFound, or Conflict while it has live sessions."""

    async def work(txn: Transaction) -> None:
        await get(storage, machine_id, txn)
        present = _ids(await _sessions_on(storage, txn, machine_id))
        if present:
            raise Conflict(f"Machine {machine_id} has live sessions: {', '.join(present[:5])}")
        # From here on it is an unregistered machine: what joins it now locks what we lock.
        await transitions.lock_machine(storage, txn, machine_id, stamp.now)
        await storage.machines.delete_one({"machine_id": machine_id}, session=txn)

    await storage.transaction(work, machine_id)
    log.get().info("Machine deleted", machine_id=machine_id)


async def _write(storage: Storage, txn: Transaction, machine_id: str, update: Document) -> Document:
    changed = await storage.machines.find_one_and_update(
        {"machine_id": machine_id},
        update,
        projection=_PUBLIC,
        return_document=ReturnDocument.AFTER,
        session=txn,
    )
    assert changed is not None, "the transaction's snapshot had this machine"  # noqa: S101
    return changed


async def _sessions_on(storage: Storage, txn: Transaction, machine_id: str) -> list[Document]:
    """The live sessions of a machine, oldest first, with their ids and slots."""
    fields = {"session_id": 1, "docker_slot": 1}
    found = storage.sessions.find(transitions.on_machine(machine_id), fields, session=txn)
    return await found.sort("created_at", 1).to_list()


def _ids(present: Iterable[Document]) -> list[str]:
    return [session["session_id"] for session in present]


def _check_slots(machine_id: str, present: Iterable[Document], docker_slots: Sequence[int]) -> None:
    """Raise Conflict where one of the sessions holds a slot that is not among the slots."""
    for holder in present:
        slot = holder.get("docker_slot")
        if slot is not None and slot not in docker_slots:
            raise Conflict(
                f"Docker slot {slot} of machine {machine_id} is in use by session "
                f"{holder['session_id']}; keep it among docker_slots until that session has ended",
                extra={"existing_session_id": holder["session_id"]},
            )
