"""What logging, metrics, rate limit and events cost a heartbeat, and what sharing a round trip does to it.

    .venv/bin/python bench/layers.py [--rounds 9] [--seconds 1]

Servers run on one real mongod: one as it is, and one for each layer with that layer taken out, here and not
in the product. They are asked by turns, so that whatever else the machine does hits all of them. The first
table: processor time of the server and of mongod per heartbeat, eight at once; a layer's cost is the median
over the rounds of the difference to the whole server in the same round. The second: how long heartbeats take
where those that wait share a round trip, and where each goes by itself; alone, a few, and many at once; and
many while a lock is held on one of the sessions, which is what those that share may have to wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from pymongo import AsyncMongoClient

import bench_harness
from bench_harness import Answer, Connection, Request
from state_tracking_api import app, group_commit, log, server, sessions, settings
from state_tracking_api.metrics import Metrics, QueryTimer
from state_tracking_api.ratelimit import Allowance, RateLimiter

WHOLE = "everything on"
SHARING = "sharing"
LAYERS = ("logging", "metrics", "rate limit", "events", SHARING)
CONCURRENCY = 8
AT_ONCE = (1, 3, 32)
LOCK_SECONDS = 2.5
"""Longer than those that share wait for one another."""


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


def take_out(layer: str) -> None:
    """Take one layer out of the server that this process would run."""
    if layer == "metrics":
        _replace(app, Metrics=NoMetrics, QueryTimer=NoQueryTimer)
    if layer == "rate limit":
        _replace(app, RateLimiter=NoRateLimit)
    if layer == "events":
        whole = sessions.__dict__["_plain_update"]

        def without_events(*args: Any) -> dict[str, Any]:
            return {name: value for name, value in whole(*args).items() if name != "$push"}

        _replace(sessions, _plain_update=without_events)
    if layer == SHARING:
        _replace(group_commit, UNDER_WAY=math.inf)


def _replace(module: ModuleType, **others: object) -> None:
    """Put something else in the place of what the module has; KeyError where it has nothing of that name."""
    for name, other in others.items():
        module.__dict__[name]  # or a layer that has been renamed would stay, and seem to cost nothing
        module.__dict__[name] = other


def serve_without(layer: str) -> None:
    """Run the server from the environment, one layer taken out; what the child processes do."""
    configured = settings.load()
    log.configure("error" if layer == "logging" else "info")
    take_out(layer)
    server.run(configured)


@dataclass(frozen=True)
class Variant:
    """One running server."""

    name: str
    process: psutil.Process
    port: int

    async def beat(self, mongod: psutil.Process, request: Request, seconds: float) -> tuple[float, float]:
        """Send heartbeats; CPU microseconds of the server and of mongod for each."""
        before = _cpu(self.process), bench_harness.cpu(mongod)
        count = len(await bench_harness.load(self.port, request, seconds, CONCURRENCY))
        used = _cpu(self.process) - before[0], bench_harness.cpu(mongod) - before[1]
        return used[0] * 1e6 / count, used[1] * 1e6 / count


def _cpu(process: psutil.Process) -> float:
    """Seconds on a processor: Linux counts them in nanoseconds, elsewhere there are clock ticks of 10 ms."""
    tasks = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if tasks:
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
    return bench_harness.cpu(process)


async def prepare(port: int) -> list[str]:
    """As many sessions as beat at once, each on a machine of its own."""
    connection = await Connection.open(port)
    made = [
        await connection.ask("POST", "/api/sessions", {"project_id": "bench", "machine_id": f"m{number}"})
        for number in range(max(AT_ONCE))
    ]
    connection.close()
    return [session["session_id"] for session in made]


def heartbeats(beating: list[str]) -> Request:
    """Of these sessions by turns."""

    async def heartbeat(connection: Connection, number: int) -> Answer:
        path = f"/api/sessions/{beating[number % len(beating)]}/heartbeat"
        return await connection.request("POST", path)

    return heartbeat


async def costs(
    variants: list[Variant], mongod: psutil.Process, beating: list[str], rounds: int, seconds: float
) -> str:
    """The first table."""
    used: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    for variant in variants:
        await variant.beat(mongod, heartbeats(beating), 0.3)  # warm up
    for number in range(rounds):
        # Every round begins with another server: nobody is always first.
        for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
            used[variant.name].append(await variant.beat(mongod, heartbeats(beating), seconds))
    rows: list[list[str]] = []
    for name, found in used.items():
        row = [name if name == WHOLE else f"without {name}"]
        for column in (0, 1):
            row.append(f"{statistics.median(one[column] for one in found):.0f}")
            more = [on[column] - off[column] for on, off in zip(used[WHOLE], found, strict=True)]
            row.append("" if name == WHOLE else f"{statistics.median(more):+.0f}")
        rows.append(row)
    head = ["", "CPU µs of the server", "the layer costs", "CPU µs of mongod", "the layer costs"]
    return bench_harness.table(head, rows)


async def sharing(variants: list[Variant], uri: str, beating: list[str], rounds: int, seconds: float) -> str:
    """The second table."""
    found: dict[tuple[str, str], list[float]] = {}
    locked, *others = beating
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
    for number in range(rounds):
        for variant in variants if number % 2 else variants[::-1]:
            for concurrency in AT_ONCE:
                taken = await bench_harness.load(variant.port, heartbeats(beating), seconds, concurrency)
                found.setdefault((f"{concurrency} at once", variant.name), []).extend(taken)
    # Not in rounds: after this a server lets nobody share for ten seconds.
    for variant in variants:
        taken = await _beside_a_lock(client, variant.port, locked, others)
        found[f"{len(others)} at once, a lock held on the session of one more", variant.name] = taken
    await client.close()
    rows: list[list[str]] = []
    for title in dict.fromkeys(title for title, _ in found):
        row = [title]
        for variant in variants:
            taken = found[title, variant.name]
            cuts = " / ".join(f"{cut:.1f}" for cut in bench_harness.percentiles(taken))
            row += [cuts, f"{max(taken):.0f}"]
        rows.append(row)
    head = ["p50 / p95 / p99 ms", "sharing", "slowest", "each by itself", "slowest"]
    return bench_harness.table(head, rows)


async def _beside_a_lock(
    client: AsyncMongoClient[dict[str, Any]], port: int, locked: str, others: list[str]
) -> list[float]:
    """What heartbeats of the others take while a transaction holds one session, which beats, too."""
    stored = client[bench_harness.DATABASE]["sessions"]
    async with client.start_session() as holder:
        transaction = await holder.start_transaction()
        await stored.update_one({"session_id": locked}, {"$inc": {"revision": 1}}, session=holder)
        load = asyncio.create_task(
            bench_harness.load(port, heartbeats(others), LOCK_SECONDS, len(others)),
        )
        held_up = asyncio.create_task(_once(port, locked, load))
        taken = await load
        await transaction.__aexit__(None, None, None)
        await held_up
    return taken


async def _once(port: int, session_id: str, load: asyncio.Task[list[float]]) -> None:
    """One heartbeat, sent while the load is under way so that it is gathered with some of it."""
    await asyncio.wait({load}, timeout=0.3)
    connection = await Connection.open(port)
    await connection.ask("POST", f"/api/sessions/{session_id}/heartbeat")
    connection.close()


def run(rounds: int, seconds: float) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        mongod = stack.enter_context(bench_harness.mongod())
        variants: list[Variant] = []
        for name in (WHOLE, *LAYERS):
            command = [sys.executable, __file__, "--serve-without", name]
            serving = bench_harness.serve(mongod.uri, command, SCHEDULER="off")
            variants.append(Variant(name, *stack.enter_context(serving)))
        beating = asyncio.run(prepare(variants[0].port))
        database = psutil.Process(mongod.pid)
        print(asyncio.run(costs(variants, database, beating, rounds, seconds)), end="\n\n", flush=True)
        compared = [variant for variant in variants if variant.name in (WHOLE, SHARING)]
        print(asyncio.run(sharing(compared, mongod.uri, beating, rounds, seconds)))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--serve-without", metavar="LAYER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_without:
        serve_without(options.serve_without)
        return
    begun = time.monotonic()
    run(options.rounds, options.seconds)
    print(f"\n{options.rounds} rounds, {time.monotonic() - begun:.0f} s in all.")


if __name__ == "__main__":
    main()
