"""Requests by turns to several servers of one database: what one has in memory, the other has not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from typing import Any, Self

import httpx

from api_harness import load

CROWD = 50
"""So many requests at once."""


class Pair:
    """Sends each request to the next of the servers."""

    def __init__(self, base_urls: Iterable[str], key: str) -> None:
        self._clients = [load.Crowd(url, key) for url in base_urls]
        self._next = cycle(self._clients)
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await self._exit.enter_async_context(client)
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._exit.aclose()

    async def send(self, method: str, path: str, body: object = None) -> httpx.Response:
        """One request to the server whose turn it is; no answer may be a 5xx."""
        answer = await next(self._next).request(method, path, body)
        assert answer.status_code < 500, f"{method} {path}: {answer.text}"
        return answer

    async def get(self, path: str) -> Any:
        """The JSON of a GET that must answer 200."""
        answer = await self.send("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: object = None) -> httpx.Response:
        return await self.send("POST", path, body)

    async def patch(self, path: str, body: object) -> httpx.Response:
        return await self.send("PATCH", path, body)

    async def crowd(self, method: str, path: str, body: object = None) -> list[httpx.Response]:
        """The same request 50 times at once."""
        return await load.at_once(*(self.send(method, path, body) for _ in range(CROWD)))


def statuses(answers: Iterable[httpx.Response]) -> Counter[int]:
    """How many answers had each status code."""
    return Counter(answer.status_code for answer in answers)


@asynccontextmanager
async def while_running(observe: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Call `observe` again and again until the block is done, at least once before and once after it."""
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            await observe()
        await observe()

    await observe()
    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        done.set()
        await watching
