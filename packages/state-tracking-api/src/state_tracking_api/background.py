"""Tasks that run beside the requests, and their end."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

# Longer than what a task may still do when it is told to end, such as giving a lease back.
ASK_AGAIN_SECONDS = 1.5


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when every one has ended, however it did.

    They are cancelled again and again: before Python 3.12 `asyncio.wait_for`, which the MongoDB driver
    uses, loses a cancellation that comes in the same moment as its result, and a loop around it goes on.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=ASK_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


class Shared(Generic[Result]):
    """An answer that is the same for all who ask at once: they share one, and wait for one at most.

    Whoever comes while one is being made shares the next, which begins afterwards: nobody is told what was
    the case before they asked.
    """

    def __init__(self) -> None:
        self._running: asyncio.Task[Result] | None = None
        self._next: asyncio.Task[Result] | None = None
        self._asked_at = datetime.min.replace(tzinfo=UTC)

    async def get(self, asked_at: datetime, make: Callable[[datetime], Awaitable[Result]]) -> Result:
        """What `make` returns or raises for all who share it, given the latest time at which one asked.

        `make` runs in a context of its own, so it needs a deadline of its own.
        """
        if self._next is None:
            self._asked_at = asked_at
            making = self._make(self._running, make)
            self._next = asyncio.create_task(making, context=contextvars.Context())
            # Where everybody has gone away nobody takes what it raised.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._asked_at = max(self._asked_at, asked_at)
        return await asyncio.shield(self._next)

    async def _make(
        self, before: asyncio.Task[Result] | None, make: Callable[[datetime], Awaitable[Result]]
    ) -> Result:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        return await make(self._asked_at)
