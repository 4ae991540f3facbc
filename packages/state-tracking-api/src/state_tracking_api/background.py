"""Tasks that run beside the requests, and their end."""

from __future__ import annotations

import asyncio
from typing import Any

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
