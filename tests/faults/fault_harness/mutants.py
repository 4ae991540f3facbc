"""Bugs put in on purpose, to see that the harness finds them.

Nothing of this is in the product. A mutant of the server replaces one function of the real server, in this
process, before it serves. One of the VS Code extension is a change of its source in the bundle of one round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from state_tracking_api import recovery, schema, sessions, transitions
from state_tracking_api.errors import NotFound
from state_tracking_api.lifecycle import SessionStatus, holds_its_machine
from state_tracking_api.storage import Storage


class _WithoutTransactions:
    """A storage whose transactions are none: each statement stands for itself, seen by all at once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def transaction(self, work: Callable[[Any], Awaitable[Any]], *contended: str) -> Any:
        """Just do it."""
        del contended
        return await work(None)


def recover_reads_then_writes() -> None:
    """Recover looks whether there is a successor, and makes one afterwards; no index stands in its way."""
    real, all_of_them = recovery.recover, schema.indexes

    async def careless(storage: Any, *args: Any, **named: Any) -> Any:
        pretended: Any = _WithoutTransactions(storage)
        return await real(pretended, *args, **named)

    def without_the_one(*args: Any) -> Any:
        found = all_of_them(*args)
        return {
            name: [index for index in listed if index.name != schema.ONE_SUCCESSOR]
            for name, listed in found.items()
        }

    recovery.recover, schema.indexes = careless, without_the_one


def heartbeat_forgets_the_status() -> None:
    """The heartbeat that makes a stalled session active again does not ask whether it is stalled."""
    real = sessions._update_in_place

    async def careless(storage: Any, session_id: Any, statuses: Any, *args: Any) -> Any:
        statuses = tuple(SessionStatus) if statuses == (SessionStatus.STALLED,) else statuses
        return await real(storage, session_id, statuses, *args)

    sessions._update_in_place = careless


def delete_is_no_transaction() -> None:
    """Delete removes a session, then its tasks, then its place on the machine, one after another."""

    async def careless(storage: Any, session_id: str, stamp: Any) -> None:
        session = await storage.sessions.find_one_and_delete({"session_id": session_id})
        if session is None:
            raise NotFound(f"Session {session_id} does not exist")
        await asyncio.sleep(_PAUSE)
        await storage.tasks.delete_many({"session_id": session_id})
        await asyncio.sleep(_PAUSE)
        no_transaction: Any = None
        if holds_its_machine(session):
            await transitions.leave_machine(storage, no_transaction, session, stamp.now)

    sessions.delete = careless


_PAUSE = 0.05
"""Between two steps, as on a machine with much to do: a snapshot has to fall into it."""


@dataclass(frozen=True)
class Mutant:
    """A bug, what the callers mostly do where they look for it, and what it is to be found by."""

    put_in: Callable[[], None]
    aim: str
    found_by: str
    """What a sentence about a snapshot says, as a regular expression."""


MUTANTS = {
    "recover-reads-then-writes": Mutant(
        recover_reads_then_writes, "recoveries", r"session \S+ has \d+ successors"
    ),
    "heartbeat-forgets-the-status": Mutant(
        heartbeat_forgets_the_status, "ends", r"had ended and is active|was recovered and is active"
    ),
    "delete-is-no-transaction": Mutant(
        delete_is_no_transaction,
        "deletions",
        r"active_sessions of .* too many \[.+\]|task \S+ has no session",
    ),
}


@dataclass(frozen=True)
class ExtensionMutant:
    """A bug of the VS Code extension: texts of one of its source files, each with what takes its place."""

    file: str
    edits: tuple[tuple[str, str], ...]
    ambush: str
    """What befalls the window in the middle of its work, so that the bug shows."""
    found_by: str
    """What a sentence about the round says, as a regular expression."""


EXTENSION_MUTANTS = {
    # Somebody else has its session, it is told so, and it works on.
    "takeover-is-ignored": ExtensionMutant(
        "src/tracking/reporter.ts",
        (
            ('run.closed = "replaced";', 'run.closed = "deleted";'),
            ("this.around.replaced(replacement);", ""),
        ),
        "suspend",
        r"had been told at \S+ that it is another's",
    ),
    # A window that is opened after a crash does again what had been done before it.
    "reload-starts-over": ExtensionMutant(
        "src/orchestration/handover.ts",
        (
            ("if (done.has(task.key)) {", "if (false as boolean) {"),
            ('if (task.status !== "completed") {', "if (true as boolean) {"),
        ),
        "kill",
        r"though it was completed in",
    ),
}
