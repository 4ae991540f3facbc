"""Many requests at once, each over a connection of its own, and how long the slowest of them took."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self

import httpx

Request = Coroutine[Any, Any, httpx.Response]
"""A request that has not been sent yet."""


class Crowd:
    """As many callers of one server as there are requests under way at once, each with its own connection.

    One httpx client with a pool of a hundred connections would spend more time in its pool than the server
    spends on the requests; callers on other machines share no pool either.
    """

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url = base_url
        self._headers = {"X-API-Key": key}
        self._tls = ssl.create_default_context()  # never used, but costly to make per client
        self._idle: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        for client in self._all:
            await client.aclose()

    async def request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Send one request, with `body` as JSON."""
        client = self._idle.pop() if self._idle else self._new()
        try:
            return await client.request(method, path, json=body)
        finally:
            self._idle.append(client)

    def _new(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            base_url=self._base_url,
            headers=self._headers,
            timeout=120,
            verify=self._tls,
            trust_env=False,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=2),
        )
        self._all.append(client)
        return client


async def at_once(*requests: Request) -> list[httpx.Response]:
    """Send all `requests` concurrently; their answers in order."""
    return list(await asyncio.gather(*requests))


async def breathe() -> None:
    """Give every other task of the loop its turn."""
    await asyncio.sleep(0)


async def p95_of(send: Callable[[], Awaitable[httpx.Response]], times: int, rounds: int = 3) -> float:
    """The 95th percentile in seconds of `times` concurrent requests, each of which must answer 200.

    The first round opens the connections and is not counted, as a client that heartbeats keeps its
    connection open. Of the others the best one counts: what is asked for is the server's time, not that of
    its neighbours on the same machine.
    """

    async def timed() -> float:
        begin = time.perf_counter()
        answer = await send()
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - begin

    await asyncio.gather(*(timed() for _ in range(times)))
    return min(
        [percentile(await asyncio.gather(*(timed() for _ in range(times))), 95) for _ in range(rounds)]
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that `percent` per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]
