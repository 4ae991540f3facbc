"""Bugs put in on purpose, to see that the harness finds them; each changes the server of this process.

Nothing of this is in the product. A mutant replaces one function of the real server before it serves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from state_tracking_api import recovery, schema, sessions
from state_tracking_api.lifecycle import SessionStatus
from state_tracking_api.storage import Storage


class _WithoutTransactions:
    """A storage whose transactions are none: each statement stands for itself, seen by all at once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def transaction(self, work: Callable[[Any], Awaitable[Any]], contended: str | None = None) -> Any:
        """Just do it."""
        del contended
        return await work(None)


def _outside_transactions(module: Any, name: str) -> None:
    real = getattr(module, name)

    async def careless(storage: Any, *args: Any, **named: Any) -> Any:
        return await real(_WithoutTransactions(storage), *args, **named)

    setattr(module, name, careless)


def recover_reads_then_writes() -> None:
    """Recover looks whether there is a successor, and makes one afterwards; no index stands in its way."""
    _outside_transactions(recovery, "recover")
    all_of_them = schema.indexes

    def without_the_one(*args: Any) -> Any:
        found = all_of_them(*args)
        return {
            name: [index for index in listed if index.name != schema.ONE_SUCCESSOR]
            for name, listed in found.items()
        }

    schema.indexes = without_the_one


def heartbeat_forgets_the_status() -> None:
    """The heartbeat that makes a stalled session active again does not ask whether it is stalled."""
    real = sessions._update_in_place

    async def careless(storage: Any, session_id: Any, statuses: Any, *args: Any) -> Any:
        statuses = tuple(SessionStatus) if statuses == (SessionStatus.STALLED,) else statuses
        return await real(storage, session_id, statuses, *args)

    sessions._update_in_place = careless


def delete_is_no_transaction() -> None:
    """Delete removes a session, then its tasks, then its place on the machine, one after another."""
    _outside_transactions(sessions, "delete")


MUTANTS: dict[str, Callable[[], None]] = {
    "recover-reads-then-writes": recover_reads_then_writes,
    "heartbeat-forgets-the-status": heartbeat_forgets_the_status,
    "delete-is-no-transaction": delete_is_no_transaction,
}
