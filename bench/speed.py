"""What requests cost: CPU, latency and throughput, beside what the driver alone needs for the same work.

    .venv/bin/python bench/speed.py [--seconds 1.5] [--rounds 5] [--concurrency 32] [--only heartbeat]
                                    [--json FILE]

A real mongod and a real `serve` are started. Each round runs every scenario once, so that a slow moment of
the machine hits all of them; the table shows medians over the rounds. Three yardsticks are taken in the same
rounds: the same work on the database straight through PyMongo's asynchronous client, in a process of its
own; mongod's own processor time; and a bare ASGI application in the same uvicorn, which answers with as many
bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from pymongo import MongoClient

import bench_harness
import yardsticks
from bench_harness import Answer, Connection, Measured, Request
from state_tracking_api.embedded import free_port

SESSIONS = 1000
HERE = Path(__file__).parent


async def prepare(port: int) -> tuple[list[str], list[str]]:
    """Sessions to beat and to read, and a task for each; returns their ids."""
    connection = await Connection.open(port)
    sessions: list[str] = []
    tasks: list[str] = []
    for number in range(SESSIONS):
        body: dict[str, Any] = {"project_id": "bench-beats", "machine_id": f"m{number}"}
        session = await connection.ask("POST", "/api/sessions", body)
        sessions.append(session["session_id"])
        task = {"session_id": session["session_id"], "project_id": "bench-beats", "task_name": "write it"}
        tasks.append((await connection.ask("POST", "/api/tasks", task))["task_id"])
    connection.close()
    return sessions, tasks


def scenarios(sessions: list[str], tasks: list[str]) -> dict[str, Request]:
    """What is measured, by name."""

    async def heartbeat(connection: Connection, number: int) -> Answer:
        return await connection.request("POST", f"/api/sessions/{sessions[number % SESSIONS]}/heartbeat")

    async def read(connection: Connection, number: int) -> Answer:
        return await connection.request("GET", f"/api/sessions/{sessions[number % SESSIONS]}")

    async def listed(connection: Connection, _number: int) -> Answer:
        return await connection.request("GET", "/api/sessions?project_id=bench-beats&limit=20")

    async def create(connection: Connection, _number: int) -> Answer:
        body = {"project_id": "bench", "machine_id": yardsticks.name()}
        return await connection.request("POST", "/api/sessions", body)

    async def transition(connection: Connection, number: int) -> Answer:
        # Blocked may be said again and again: every request is the same transition of a task of its own.
        path = f"/api/tasks/{tasks[number % SESSIONS]}"
        return await connection.request("PATCH", path, {"status": "blocked"})

    async def summary(connection: Connection, _number: int) -> Answer:
        return await connection.request("GET", "/api/sessions/health")

    async def stalled(connection: Connection, _number: int) -> Answer:
        return await connection.request("GET", "/api/sessions/stalled")

    return {
        "heartbeat": heartbeat,
        "read": read,
        "list of 20": listed,
        "create": create,
        "task transition": transition,
        "health summary": summary,
        "stalled list": stalled,
    }


def driver_alone(
    uri: str, scenario: str, seconds: float, concurrency: int, mongod: psutil.Process
) -> Measured:
    """The same work on the database by the driver alone, in a process of its own."""
    before = bench_harness.cpu(mongod)
    command = [sys.executable, HERE / "yardsticks.py", uri, scenario, str(seconds), str(concurrency)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    used = bench_harness.cpu(mongod) - before
    return bench_harness.of_latencies(found["latencies"], found["elapsed"], found["cpu"], used)


def run(seconds: float, rounds: int, concurrency: int, only: list[str] | None) -> dict[str, Any]:
    """Everything, or the scenarios in `only`: start, measure in rounds, stop."""
    with bench_harness.mongod() as mongod, bench_harness.serve(mongod.uri, SCHEDULER="off") as (server, port):
        bare_port = free_port()
        command = [sys.executable, HERE / "bare.py", bare_port]
        with bench_harness.process(command, {}, bare_port) as bare:
            return asyncio.run(
                _rounds(
                    mongod.uri,
                    psutil.Process(mongod.pid),
                    server,
                    port,
                    bare,
                    bare_port,
                    seconds,
                    rounds,
                    concurrency,
                    only,
                )
            )


async def _rounds(
    uri: str,
    mongod: psutil.Process,
    server: psutil.Process,
    port: int,
    bare: psutil.Process,
    bare_port: int,
    seconds: float,
    rounds: int,
    concurrency: int,
    only: list[str] | None,
) -> dict[str, Any]:
    at_rest = server.memory_info().rss
    known = scenarios(*await prepare(port))
    chosen = {name: known[name] for name in only or known}
    api: dict[str, list[Measured]] = {}
    alone: dict[str, list[Measured]] = {}
    empty: list[Measured] = []
    for request in chosen.values():  # warm up
        await bench_harness.load(port, request, 0.3, concurrency)
    for _ in range(rounds):
        for name, request in chosen.items():
            measured = await bench_harness.measure(port, server, mongod, request, seconds, concurrency)
            api.setdefault(name, []).append(measured)
            driver = await asyncio.to_thread(driver_alone, uri, name, seconds, concurrency, mongod)
            alone.setdefault(name, []).append(driver)
        empty.append(
            await bench_harness.measure(bare_port, bare, mongod, known["heartbeat"], seconds, concurrency)
        )
        with MongoClient[dict[str, object]](uri) as client:  # what `create` has left
            client[bench_harness.DATABASE]["sessions"].delete_many({"project_id": "bench"})
    return {
        "api": {name: vars(bench_harness.median(found)) for name, found in api.items()},
        "driver": {name: vars(bench_harness.median(found)) for name, found in alone.items()},
        "bare": vars(bench_harness.median(empty)),
        # Of each round by itself: what the machine does besides hits both of a pair.
        "ratio": {
            name: statistics.median(
                one.server_cpu_us / other.server_cpu_us for one, other in zip(found, alone[name], strict=True)
            )
            for name, found in api.items()
        },
        "memory_at_rest_mb": at_rest / 1e6,
        "memory_after_mb": server.memory_info().rss / 1e6,
    }


def shown(results: dict[str, Any]) -> str:
    """The medians as Markdown."""
    rows = [
        [
            name,
            f"{one['server_cpu_us']:.0f}",
            f"{results['driver'][name]['server_cpu_us']:.0f}",
            f"{results['ratio'][name]:.2f}",
            f"{one['mongod_cpu_us']:.0f}",
            f"{one['p50_ms']:.1f}",
            f"{one['p95_ms']:.1f}",
            f"{one['p99_ms']:.1f}",
            f"{one['per_second']:.0f}",
        ]
        for name, one in results["api"].items()
    ]
    bare = results["bare"]
    rows.append(
        [
            "bare ASGI application",
            f"{bare['server_cpu_us']:.0f}",
            *["-"] * 3,
            *(f"{bare[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
            f"{bare['per_second']:.0f}",
        ]
    )
    head = [
        "",
        "CPU µs",
        "driver alone",
        "ratio",
        "mongod CPU µs",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "requests/s",
    ]
    rest, after = results["memory_at_rest_mb"], results["memory_after_mb"]
    memory = f"Memory of the server: {rest:.0f} MB at rest, {after:.0f} MB after."
    return f"{bench_harness.table(head, rows)}\n\n{memory}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a scenario in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at once")
    parser.add_argument("--only", action="append", metavar="SCENARIO", help="measure no other; repeatable")
    parser.add_argument("--json", type=Path, help="also write the medians to this file")
    options = parser.parse_args()
    begun = time.monotonic()
    results = run(options.seconds, options.rounds, options.concurrency, options.only)
    print(shown(results))
    print(f"\n{options.rounds} rounds, {time.monotonic() - begun:.0f} s in all.")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
