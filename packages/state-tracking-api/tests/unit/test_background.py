"""Tasks beside the requests end when they are told to, even where a library loses the word."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from state_tracking_api.background import Shared, end

NOW = datetime(2026, 1, 1, tzinfo=UTC)


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


async def test_who_asks_at_once_shares_an_answer_that_began_after_the_question() -> None:
    shared: Shared[int] = Shared()
    begun: list[datetime] = []
    first, go_on = asyncio.Event(), asyncio.Event()

    async def make(asked_at: datetime) -> int:
        begun.append(asked_at)
        number = len(begun)
        first.set()
        await go_on.wait()
        return number

    early = [asyncio.create_task(shared.get(NOW + timedelta(seconds=n), make)) for n in range(10)]
    await first.wait()
    late = [asyncio.create_task(shared.get(NOW + timedelta(minutes=n), make)) for n in (3, 1, 2)]
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*early) == [1] * 10
    assert await asyncio.gather(*late) == [2] * 3
    assert begun == [NOW + timedelta(seconds=9), NOW + timedelta(minutes=3)]
    assert await shared.get(NOW, make) == 3


async def test_a_failure_is_everybodys_and_the_next_is_made_anew() -> None:
    shared: Shared[int] = Shared()
    fails = True

    async def make(_asked_at: datetime) -> int:
        if fails:
            raise ValueError
        return 1

    failed = await asyncio.gather(*(shared.get(NOW, make) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [ValueError] * 3
    fails = False
    assert await shared.get(NOW, make) == 1


async def test_who_goes_away_takes_the_answer_from_nobody() -> None:
    shared: Shared[int] = Shared()
    go_on = asyncio.Event()

    async def make(_asked_at: datetime) -> int:
        await go_on.wait()
        return 1

    gone, stays = (asyncio.create_task(shared.get(NOW, make)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    go_on.set()
    assert await stays == 1
