"""Callers that go on whatever happens, and keep what they were told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from api_harness.api import unique
from api_harness.load import Crowd

ERROR_FIELDS = {"statusCode", "error", "message", "timestamp", "path", "request_id"}


@dataclass
class Told:
    """What the callers were told."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    slowest: float = 0.0
    health: Counter[int] = field(default_factory=Counter[int])
    slowest_health: float = 0.0
    malformed: list[str] = field(default_factory=list[str])
    sessions: list[str] = field(default_factory=list[str])
    tasks: list[str] = field(default_factory=list[str])
    last_beat: dict[str, str] = field(default_factory=dict[str, str])

    def of(self, answer: httpx.Response, seconds: float) -> Any:
        """Take note of an answer; its JSON where it is a good one."""
        self.statuses[answer.status_code] += 1
        self.slowest = max(self.slowest, seconds)
        body = answer.json()
        if answer.status_code < 300:
            return body
        if not body.keys() >= ERROR_FIELDS or body["statusCode"] != answer.status_code:
            self.malformed.append(answer.text)
        return None


async def _caller(crowd: Crowd, told: Told, stop: asyncio.Event) -> None:
    async def send(path: str, body: object = None) -> Any:
        begin = time.monotonic()
        answer = await crowd.request("POST", path, body)
        return told.of(answer, time.monotonic() - begin)

    session: str | None = None
    while not stop.is_set():
        if session is None:
            created = await send("/api/sessions", {"project_id": unique("p"), "machine_id": unique("m")})
            if created is None:
                await asyncio.sleep(0.05)
                continue
            session = str(created["session_id"])
            told.sessions.append(session)
        beaten = await send(f"/api/sessions/{session}/heartbeat")
        if beaten is not None:
            told.last_beat[session] = beaten["last_heartbeat"]
        task = (
            await send(
                "/api/tasks", {"session_id": session, "project_id": _project(beaten), "task_name": "t"}
            )
            if beaten
            else None
        )
        if task is not None:
            told.tasks.append(task["task_id"])
        await asyncio.sleep(0.05)


def _project(session: dict[str, Any]) -> str:
    return str(session["project_id"])


async def _watch_health(crowd: Crowd, told: Told, stop: asyncio.Event) -> None:
    while not stop.is_set():
        begin = time.monotonic()
        answer = await crowd.request("GET", "/health")
        told.health[answer.status_code] += 1
        told.slowest_health = max(told.slowest_health, time.monotonic() - begin)
        await asyncio.sleep(0.1)


@asynccontextmanager
async def callers(base_url: str, key: str, count: int) -> AsyncGenerator[Told]:
    """While the block runs, `count` callers each keep a session alive and add tasks; /health is asked."""
    told, stop = Told(), asyncio.Event()
    async with Crowd(base_url, key) as crowd, asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_caller(crowd, told, stop))
        group.create_task(_watch_health(crowd, told, stop))
        try:
            yield told
        finally:
            stop.set()


async def until(told: Told, status: int, more: int, seconds: float = 60) -> None:
    """Wait until `more` further answers had this status."""
    wanted = told.statuses[status] + more
    async with asyncio.timeout(seconds):
        while told.statuses[status] < wanted:  # noqa: ASYNC110 - a poll with a deadline
            await asyncio.sleep(0.02)
