"""What logging, metrics, the rate limit and the events cost a heartbeat, in CPU time of the server.

    .venv/bin/python bench/layers.py [--rounds 7] [--requests 300]

Five servers run on one real mongod: one as it is, and one for each layer with that layer taken out, here and
not in the product. They are asked by turns, so that whatever else the machine does hits all of them. What
counts is the processor time that the server process has used (user and system), per request; a layer's cost
is the median over the rounds of the difference to the whole server in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from state_tracking_api import app, log, server, settings
from state_tracking_api.embedded import Mongod, free_port
from state_tracking_api.metrics import Metrics, QueryTimer
from state_tracking_api.ratelimit import Allowance, RateLimiter
from state_tracking_api.settings import Settings

WHOLE = "everything on"
LAYERS = ("logging", "metrics", "rate limit", "events")
CONCURRENCY = 8
KEY = str(uuid4())


class NoMetrics(Metrics):
    """Counts nothing of what a heartbeat counts."""

    def time_heartbeat(self, started: float) -> None:
        """Nothing."""

    def count_request(self, endpoint: str, method: str, status: int) -> None:
        """Nothing."""

    def count_heartbeat(self, status: int) -> None:
        """Nothing."""


class NoQueryTimer(QueryTimer):
    """Observes nothing."""

    def _observe(self, command: str, micros: int) -> None: ...


class NoRateLimit(RateLimiter):
    """Lets everybody through without counting."""

    _unlimited = Allowance(allowed=True, limit=100, remaining=100, ends_at=0.0)

    async def hit(self, key: str) -> Allowance:
        """Always the same."""
        del key
        return self._unlimited


class NoEvents:
    """The sessions, whose heartbeats are not remembered for the timeline."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    def find_one_and_update(self, condition: Any, update: Any, **options: Any) -> Any:
        """The same write without the heartbeat's mark."""
        update.pop("$push", None)
        return self._collection.find_one_and_update(condition, update, **options)


def serve_without(layer: str) -> None:
    """Run the server from the environment, one layer taken out; what the child processes do."""
    configured = settings.load()
    log.configure("error" if layer == "logging" else "info")
    if layer == "metrics":
        app.__dict__.update(Metrics=NoMetrics, QueryTimer=NoQueryTimer)
    if layer == "rate limit":
        app.__dict__.update(RateLimiter=NoRateLimit)

    def assembled(configured: Settings) -> app.Application:
        made = app.create_app(configured)
        if layer == "events":
            storage = made.state.resources.storage
            storage.sessions = NoEvents(storage.sessions)
        return made

    server.__dict__.update(create_app=assembled)
    server.run(configured)


@dataclass
class Variant:
    """One running server: its process, its client, and a session that beats there."""

    name: str
    process: psutil.Process
    client: httpx.AsyncClient
    path: str

    async def beat(self, requests: int) -> tuple[float, float]:
        """Send heartbeats; CPU microseconds of the server per request, and milliseconds per request."""
        left = iter(range(requests))

        async def caller() -> None:
            for _ in left:
                answer = await self.client.post(self.path)
                assert answer.status_code == 200, answer.text

        before, begun = _cpu(self.process), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
        taken = time.perf_counter() - begun
        return (_cpu(self.process) - before) * 1e6 / requests, taken * 1000 / requests


def _cpu(process: psutil.Process) -> float:
    """Seconds on a processor: Linux counts them in nanoseconds, elsewhere there are clock ticks of 10 ms."""
    tasks = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if tasks:
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    times = process.cpu_times()
    return times.user + times.system


@asynccontextmanager
async def running(name: str, mongod: Mongod) -> AsyncGenerator[Variant]:
    """One of the servers, warm."""
    port = free_port()
    environment = os.environ | {
        "MONGODB_URI": mongod.uri,
        "MONGODB_DATABASE": f"layers-{LAYERS.index(name) if name in LAYERS else 'all'}",
        "API_KEYS": f"bench={KEY}",
        "PORT": str(port),
        "SCHEDULER": "off",
        "RATE_LIMIT_PER_MINUTE": "1000000",
        "LOG_LEVEL": "info",
    }
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs while it starts
            [sys.executable, __file__, "--serve-without", name], env=environment, stdout=output
        )
        try:
            limits = httpx.Limits(max_connections=CONCURRENCY)
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"X-API-Key": KEY},
                limits=limits,
                timeout=60,
                trust_env=False,
            ) as client:
                session = await _first_session(client, child)
                variant = Variant(
                    name, psutil.Process(child.pid), client, f"/api/sessions/{session}/heartbeat"
                )
                await variant.beat(200)
                yield variant
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(20)


async def _first_session(client: httpx.AsyncClient, child: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        assert child.poll() is None, "the server has ended"
        try:
            body = {"project_id": "bench", "machine_id": "bench"}
            answer = await client.post("/api/sessions", json=body)
            answer.raise_for_status()
            return str(answer.json()["session_id"])
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise TimeoutError("no server")


async def measure(rounds: int, requests: int) -> None:
    """Run the rounds and print the table."""
    cpu: dict[str, list[float]] = {name: [] for name in (WHOLE, *LAYERS)}
    took: dict[str, list[float]] = {name: [] for name in cpu}
    with tempfile.TemporaryDirectory() as directory, Mongod.start(Path(directory)) as mongod:
        async with AsyncExitStack() as stack:
            variants = [await stack.enter_async_context(running(name, mongod)) for name in cpu]
            for number in range(rounds):
                # Every round begins with another server: nobody is always first.
                for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
                    micros, millis = await variant.beat(requests)
                    cpu[variant.name].append(micros)
                    took[variant.name].append(millis)
    _print(cpu, took, rounds, requests)


def _print(
    cpu: Mapping[str, list[float]], took: Mapping[str, list[float]], rounds: int, requests: int
) -> None:
    whole = cpu[WHOLE]
    print(f"{rounds} rounds of {requests} heartbeats, {CONCURRENCY} at once; medians\n")
    print(f"{'server':<24}{'CPU µs/request':>16}{'ms/request':>12}")
    print(f"{WHOLE:<24}{statistics.median(whole):>16.0f}{statistics.median(took[WHOLE]):>12.2f}")
    for name in LAYERS:
        print(
            f"{'without ' + name:<24}{statistics.median(cpu[name]):>16.0f}"
            f"{statistics.median(took[name]):>12.2f}"
        )
    print(f"\n{'layer':<24}{'costs CPU µs/request':>22}{'lowest':>10}{'highest':>10}")
    for name in LAYERS:
        costs = [on - off for on, off in zip(whole, cpu[name], strict=True)]
        print(f"{name:<24}{statistics.median(costs):>22.0f}{min(costs):>10.0f}{max(costs):>10.0f}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="What each layer costs a heartbeat.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--serve-without", metavar="LAYER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_without:
        serve_without(options.serve_without)
    else:
        asyncio.run(measure(options.rounds, options.requests))


if __name__ == "__main__":
    main()
