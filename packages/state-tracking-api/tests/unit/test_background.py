"""Tasks beside the requests end when they are told to, even where a library loses the word."""

from __future__ import annotations

import asyncio

from state_tracking_api.background import end


async def test_a_task_that_loses_its_cancellation_is_told_again() -> None:
    """What asyncio.wait_for does before Python 3.12, if its result comes in the same moment."""
    lost = 0

    async def loop() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    await end(task)
    assert task.cancelled()
    assert lost == 2


async def test_all_are_ended_however_they_end() -> None:
    async def fail() -> None:
        raise ValueError

    async def stay() -> None:
        await asyncio.Event().wait()

    async def leave() -> None:
        """End at once."""

    tasks = [asyncio.create_task(work()) for work in (fail, stay, leave)]
    await asyncio.sleep(0)
    await end(*tasks)
    assert all(task.done() for task in tasks)
    await end()
