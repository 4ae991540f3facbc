"""What requests cost: CPU, latency, throughput and memory, beside the driver alone for the same work.

    .venv/bin/python bench/speed.py [--seconds 1] [--rounds 6] [--concurrency 32] [--only heartbeat]
                                    [--sessions 1000] [--json FILE]

A real mongod and a real `serve` are started. Each round runs every scenario, and its yardsticks right after
it, so that a slow moment of the machine hits all of them: the same work on the database straight through
PyMongo's asynchronous client, in a process of its own; mongod's own processor time under both; and a bare
ASGI application in the same uvicorn, which is sent the same request and answers with as many bytes. The
tables (Markdown) show medians over the rounds; a ratio is the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from pymongo import MongoClient

import bench_harness
import queries
import scenarios
from bench_harness import Connection, Measured, Request
from scenarios import Targets
from state_tracking_api.embedded import free_port

SCENARIOS = (
    *("heartbeat", "read a session", "list of a project", "create a session"),
    *("task transition", "health summary", "stalled list"),
)
PROJECT = "bench"
SESSIONS = 1000
STALLED = 20
PATIENCE_MS = timedelta(days=1) // timedelta(milliseconds=1)
"""Nobody falls silent by itself."""


@dataclass(frozen=True)
class Bench:
    """What is running, and what it is asked about."""

    uri: str
    mongod: psutil.Process
    server: psutil.Process
    port: int
    bare: psutil.Process
    bare_port: int
    seconds: float
    concurrency: int

    async def by_server(self, request: Request) -> Measured:
        """One round of a scenario."""
        return await bench_harness.measure(
            self.port, self.server, self.mongod, request, self.seconds, self.concurrency
        )

    async def by_bare(self, request: Request, size: int) -> Measured:
        """The same requests to the bare application, whose answers are of a size."""
        return await bench_harness.measure(
            self.bare_port, self.bare, self.mongod, request, self.seconds, self.concurrency, f"/{size}"
        )

    async def by_driver(self, name: str, targets: dict[str, Any]) -> Measured:
        """The same work on the database."""
        return await asyncio.to_thread(
            bench_harness.driver_alone,
            *(self.uri, self.mongod, name, targets, self.seconds, self.concurrency),
        )


async def prepare(port: int, count: int = SESSIONS) -> Targets:
    """Sessions to beat and to read, a task for each, and a few sessions that are stalled."""
    connection = await Connection.open(port)
    sessions: list[str] = []
    tasks: list[str] = []
    for number in range(count):
        body: dict[str, Any] = {"project_id": PROJECT, "machine_id": f"m{number}"}
        session = await connection.ask("POST", "/api/sessions", body)
        sessions.append(session["session_id"])
        task = {"session_id": session["session_id"], "project_id": PROJECT, "task_name": "write it"}
        tasks.append((await connection.ask("POST", "/api/tasks", task))["task_id"])
    for number in range(STALLED):
        body = {"project_id": "bench-stalled", "machine_id": f"s{number}"}
        session = await connection.ask("POST", "/api/sessions", body)
        await connection.ask("POST", f"/api/sessions/{session['session_id']}/mark-stalled")
    connection.close()
    return Targets(sessions, tasks, PROJECT, tasks[0], sessions[0], PATIENCE_MS)


def run(seconds: float, rounds: int, concurrency: int, count: int, only: list[str]) -> dict[str, Any]:
    """Start everything, measure the scenarios in rounds, stop."""
    settings = {"SCHEDULER": "off", "STALL_THRESHOLD_MS": str(PATIENCE_MS)}
    with ExitStack() as stack:
        mongod = stack.enter_context(bench_harness.mongod())
        server, port = stack.enter_context(bench_harness.serve(mongod.uri, **settings))
        bare_port = free_port()
        command = [sys.executable, Path(__file__).with_name("bare.py"), bare_port]
        bare = stack.enter_context(bench_harness.process(command, {}, bare_port))
        bench = Bench(
            *(mongod.uri, psutil.Process(mongod.pid), server, port, bare, bare_port, seconds, concurrency)
        )
        return asyncio.run(_rounds(bench, rounds, count, only))


async def _rounds(bench: Bench, rounds: int, count: int, only: list[str]) -> dict[str, Any]:
    at_rest = bench.server.memory_info().rss
    of = await prepare(bench.port, count)
    known, targets = scenarios.requests(of), asdict(of)
    chosen = {name: known[name] for name in only}
    unlike = await queries.unlike(bench.uri, bench.mongod, bench.port, chosen, targets)
    sizes: dict[str, int] = {}
    connection = await Connection.open(bench.port)
    for name, request in chosen.items():
        sizes[name] = len((await request(connection, 0))[1])
        await bench_harness.load(bench.port, request, min(0.3, bench.seconds), bench.concurrency)  # warm up
        await bench_harness.load(bench.bare_port, request, 0.1, bench.concurrency, f"/{sizes[name]}")
    connection.close()
    server: dict[str, list[Measured]] = {name: [] for name in chosen}
    driver: dict[str, list[Measured]] = {name: [] for name in chosen}
    bare: dict[str, list[Measured]] = {name: [] for name in chosen}
    with MongoClient[dict[str, object]](bench.uri) as client:
        for _ in range(rounds):
            for name, request in chosen.items():
                server[name].append(await bench.by_server(request))
                driver[name].append(await bench.by_driver(name, targets))
                bare[name].append(await bench.by_bare(request, sizes[name]))
            scenarios.tidy(client[bench_harness.DATABASE])
    return {
        "server": {name: vars(bench_harness.median(found)) for name, found in server.items()},
        "driver": {name: vars(bench_harness.median(found)) for name, found in driver.items()},
        "bare": {name: vars(bench_harness.median(found)) for name, found in bare.items()},
        "to driver": {name: bench_harness.ratios(found, driver[name]) for name, found in server.items()},
        "to bare": {name: bench_harness.ratios(found, bare[name]) for name, found in server.items()},
        "answer_bytes": sizes,
        "memory_at_rest_mb": at_rest / 1e6,
        "unlike": unlike,
    }


def shown(results: dict[str, Any]) -> str:
    """The medians as Markdown."""
    cpu = _table(results, {"cpu_us": "CPU µs", "mongod_cpu_us": "mongod CPU µs"}, digits=0)
    latency = _table(results, {"p50_ms": "p50 ms", "p95_ms": "p95 ms", "p99_ms": "p99 ms"}, digits=1)
    rest = _table(results, {"per_second": "requests/s", "memory_mb": "memory MB"}, digits=0)
    said = [cpu, latency, rest, f"Memory of the server at rest: {results['memory_at_rest_mb']:.0f} MB."]
    return "\n\n".join([*said, *(f"NOT THE SAME WORK: {one}" for one in results["unlike"])])


def _table(results: dict[str, Any], figures: dict[str, str], digits: int) -> str:
    """Of each figure the server's, and the yardsticks' with the ratio of the server to them."""
    head = [""]
    for name, title in figures.items():
        head += [title, "driver alone"] if name == "mongod_cpu_us" else [title, "driver alone", "bare"]
    rows: list[list[str]] = []
    for scenario in results["server"]:
        row = [scenario]
        for name in figures:
            row.append(f"{results['server'][scenario][name]:.{digits}f}")
            for other in ("driver", "bare"):
                if (other, name) != ("bare", "mongod_cpu_us"):  # it has no database
                    ratio = results[f"to {other}"][scenario][name]
                    row.append(f"{results[other][scenario][name]:.{digits}f} ({ratio:.2f})")
        rows.append(row)
    return bench_harness.table(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a scenario in a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at once")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="stored, with a task each")
    parser.add_argument(
        "--only", action="append", choices=SCENARIOS, help="measure no other scenario; repeatable"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    begun = time.monotonic()
    only = options.only or [*SCENARIOS]
    results = run(options.seconds, options.rounds, options.concurrency, options.sessions, only)
    print(shown(results))
    print(f"\n{options.rounds} rounds, {time.monotonic() - begun:.0f} s in all.")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
