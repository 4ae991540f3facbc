"""How the cost of a request grows with what is stored, with silence, and with the number of processes.

    .venv/bin/python bench/scale.py [--sizes 100,10000,1000000] [--stalled 100000] [--processes 1,2,4,8]
                                    [--rounds 3] [--seconds 1] [--explain DIRECTORY] [--only ROW]

Three parts, each on a real mongod and a real `serve`. Sizes: the same requests with more and more sessions
stored, a thousand of which have a hundred tasks each; the first hundred and one in a hundred of the others
are live, the rest have ended, as it is where retention is a month; beside each the same work straight through
the driver. Silence: a stall scan that finds many sessions silent at once, how long it takes, what memory it
needs, and what heartbeats of other sessions feel of it. Processes: heartbeats against more and more server
processes on one database. `--explain` writes what the database says about each query at the largest size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from pymongo import MongoClient
from pymongo.collection import Collection

import bench_harness
import queries
import scenarios
from bench_harness import DATABASE, Answer, Connection, Measured, Request
from scenarios import Targets
from state_tracking_api import sessions, tasks
from state_tracking_api.lifecycle import Stamp

Document = dict[str, Any]

BATCH = 5_000
CONCURRENCY = 8
WITH_TASKS = 1_000
TASKS_EACH = 100
OPEN_TASK = "one of a live session"
"""Each has one; what has ended gets no further transitions."""
PATIENCE = timedelta(days=1)
"""Nobody falls silent while all this is stored."""
FIRST_LIVE = 100
"""The first are all live, so that at the smallest size requests do not all want the same session."""
LIVE_SHARE = 100
"""Of the others, one in so many is."""
STALLED = range(80, FIRST_LIVE)
"""These have been stalled for an hour."""
SILENT = 700
"""So many fall silent for the plan of a scan: more than it marks at once."""
TITLES = {
    "cpu_us": "CPU µs of the server",
    "mongod_cpu_us": "CPU µs of mongod",
    "per_second": "requests/s",
}


def is_active(number: int) -> bool:
    """Whether a stored session beats."""
    return number % LIVE_SHARE == 0 or number < STALLED.start


def session(number: int, *, now: datetime, status: str, silent: bool = False) -> Document:
    """A stored session, as the server itself makes them."""
    at = now - timedelta(seconds=number % 2_500_000)
    made = sessions.new_document(
        Stamp(at, "key:bench"),
        project_id=f"project-{number % 1000}",
        machine_id=f"machine-{number}",
        docker_slot=None,
        metadata_={"vscode": "1.139.1", "extension": "0.1.0"},
    )
    made["status"] = status
    if status in ("completed", "failed"):
        return {**made, "completed_at": at}
    return {**made, "last_heartbeat": now - timedelta(hours=1) if silent else now}


def stored_session(number: int, now: datetime) -> Document:
    """One of those that are there at each size that is large enough."""
    if number in STALLED:
        return session(number, now=now, status="stalled", silent=True)
    ended = "failed" if number % 20 == 0 else "completed"
    return session(number, now=now, status="active" if is_active(number) else ended)


def filled(stored: Collection[Document], documents: Iterator[Document]) -> None:
    """Insert documents in batches."""
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            stored.insert_many(batch, ordered=False)
            batch = []
    if batch:
        stored.insert_many(batch, ordered=False)


def fill(database: Any, start: int, end: int) -> None:
    """Store sessions from one number to another, and tasks for the first thousand."""
    now = datetime.now(UTC)
    filled(
        database["sessions"],
        (stored_session(number, now) for number in range(start, end)),
    )
    fields = {"session_id": 1, "project_id": 1}
    live = database["sessions"].find({"status": "active"}, fields).sort("_id", 1)
    owners = database["sessions"].find({}, fields).sort("_id", 1)
    lacking = max(0, min(end, WITH_TASKS) - start)
    chosen = list(owners.skip(start).limit(lacking)) if lacking else []  # a limit of 0 is none
    stamp = Stamp(now, "key:bench")

    def task(owner: Document, name: str) -> Document:
        return tasks.new_document(
            stamp,
            session_id=owner["session_id"],
            project_id=owner["project_id"],
            task_name=name,
            github_issue_id=None,
            metadata_={},
        )

    filled(
        database["tasks"],
        (task(owner, f"task {number}") for owner in chosen for number in range(TASKS_EACH)),
    )
    before = sum(is_active(number) for number in range(start))
    filled(database["tasks"], (task(owner, OPEN_TASK) for owner in live.skip(before)))


def targets(database: Any) -> Targets:
    """What is asked about: the same number of sessions and tasks at each size, where there are as many."""
    stored = database["sessions"]
    live = [one["session_id"] for one in stored.find({"status": "active"}, {"session_id": 1}).limit(2000)]
    random.Random(1).shuffle(live)  # noqa: S311 - an order, not a secret
    some_task = database["tasks"].find_one({"task_name": "task 0"})
    assert some_task is not None
    open_tasks = database["tasks"].find({"task_name": OPEN_TASK}, {"task_id": 1}).limit(2000)
    return Targets(
        sessions=live,
        tasks=[one["task_id"] for one in open_tasks],
        project_id="project-7",
        task_id=some_task["task_id"],
        owner_id=some_task["session_id"],
        patience_ms=PATIENCE // timedelta(milliseconds=1),
    )


@dataclass(frozen=True)
class Sized:
    """What was measured at one size: by scenario the server's figures, the driver's, and their ratios."""

    server: dict[str, Measured]
    driver: dict[str, Measured]
    ratios: dict[str, dict[str, float]]


def sizes(wanted: list[int], rounds: int, seconds: float, explain: Path | None, only: list[str]) -> str:
    """The first part: tables of the figures by size."""
    columns: dict[int, Sized] = {}
    unlike: list[str] = []
    patient = {"SCHEDULER": "off", "STALL_THRESHOLD_MS": str(PATIENCE // timedelta(milliseconds=1))}
    with bench_harness.mongod() as mongod, bench_harness.serve(mongod.uri, **patient) as (server, port):
        client: MongoClient[Document] = MongoClient(mongod.uri, tz_aware=True)
        database = client[DATABASE]
        asyncio.run(_prepared(port))
        stored = 0
        for size in wanted:
            begun = time.monotonic()
            fill(database, stored, size)
            stored = size
            print(f"{size:,} sessions stored after {time.monotonic() - begun:.0f} s", flush=True)
            of = targets(database)
            known = scenarios.requests(of)
            chosen = {name: known[name] for name in only or known}
            running = Running(mongod.uri, psutil.Process(mongod.pid), server, port, database)
            if size == wanted[0]:
                unlike = asyncio.run(queries.unlike(running.uri, running.mongod, port, chosen, asdict(of)))
            begun = time.monotonic()
            columns[size] = asyncio.run(_sized(running, chosen, asdict(of), rounds, seconds))
            print(f"{size:,} sessions measured after {time.monotonic() - begun:.0f} s", flush=True)
        if explain:
            explain.mkdir(parents=True, exist_ok=True)
            asyncio.run(write_plans(database, port, explain))
        client.close()
    said = [*_tables(columns), *(f"NOT THE SAME WORK: {one}" for one in unlike)]
    return "\n\n".join(said)


@dataclass(frozen=True)
class Running:
    """What is running."""

    uri: str
    mongod: psutil.Process
    server: psutil.Process
    port: int
    database: Any


async def _sized(
    running: Running, chosen: dict[str, Request], about: Document, rounds: int, seconds: float
) -> Sized:
    """One size, in rounds, the driver's turn right after the server's."""
    server: dict[str, list[Measured]] = {name: [] for name in chosen}
    driver: dict[str, list[Measured]] = {name: [] for name in chosen}
    for request in chosen.values():  # the first has to read from the disk
        await bench_harness.load(running.port, request, 0.2, CONCURRENCY)
    for _ in range(rounds):
        for name, request in chosen.items():
            found = await bench_harness.measure(
                running.port, running.server, running.mongod, request, seconds, CONCURRENCY
            )
            server[name].append(found)
            alone = await asyncio.to_thread(
                bench_harness.driver_alone,
                *(running.uri, running.mongod, name, about, seconds, CONCURRENCY),
            )
            driver[name].append(alone)
        scenarios.tidy(running.database)
    return Sized(
        {name: bench_harness.median(found) for name, found in server.items()},
        {name: bench_harness.median(found) for name, found in driver.items()},
        {name: bench_harness.ratios(found, driver[name]) for name, found in server.items()},
    )


def _tables(columns: dict[int, Sized]) -> list[str]:
    """Processor time of server and database beside the driver's, latencies, throughput, and the memory."""
    found = list(columns.values())
    names, first, last = list(found[0].server), found[0], found[-1]

    def beside(figure: str) -> str:
        """At each size the server's, the driver's with the ratio; then how much the server's has grown."""
        rows: list[list[str]] = []
        for name in names:
            row = [name]
            for one in found:
                alone = f"{getattr(one.driver[name], figure):.0f} ({one.ratios[name][figure]:.2f})"
                row += [f"{getattr(one.server[name], figure):.0f}", alone]
            growth = getattr(last.server[name], figure) / max(getattr(first.server[name], figure), 1e-9)
            rows.append([*row, f"{growth:.2f}"])
        head = [TITLES[figure]]
        for size in columns:
            head += [f"{size:,}", "driver alone"]
        return bench_harness.table([*head, "growth"], rows)

    def latencies(name: str) -> list[str]:
        shown = [
            f"{one.server[name].p50_ms:.1f} / {one.server[name].p95_ms:.1f} / {one.server[name].p99_ms:.1f}"
            for one in found
        ]
        return [name, *shown, f"{last.server[name].p99_ms / first.server[name].p99_ms:.2f}"]

    head = ["p50 / p95 / p99 ms", *(f"{size:,}" for size in columns), "growth of p99"]
    memory = ", ".join(
        f"{max(measured.memory_mb for measured in one.server.values()):.0f} MB at {size:,}"
        for size, one in columns.items()
    )
    return [
        beside("cpu_us"),
        beside("mongod_cpu_us"),
        bench_harness.table(head, [latencies(name) for name in names]),
        beside("per_second"),
        f"Memory of the server: {memory}.",
    ]


async def write_plans(database: Any, port: int, directory: Path) -> None:
    """What the database says about the queries of each kind of request, a file each.

    The real requests are sent, and what they ask of the database is recorded by its own profiler: each
    command as it came, the plan that the database has for it, and what it looked at.
    """
    of = targets(database)
    connection = await Connection.open(port)
    for name, request in scenarios.requests(of).items():
        with queries.recorded(database) as asked:
            await request(connection, 0)
        _write(directory, name, queries.explained(database, asked))
    with queries.recorded(database) as asked:
        await bench_harness.load(port, scenarios.requests(of)["heartbeat"], 0.0, CONCURRENCY)
    _write(directory, "heartbeats that share", queries.explained(database, asked))
    long_ago = datetime.now(UTC) - 2 * PATIENCE
    silent = {"session_id": {"$in": of.sessions[:SILENT]}}
    database["sessions"].update_many(silent, {"$set": {"last_heartbeat": long_ago}})
    with queries.recorded(database) as asked:
        await connection.ask("POST", "/api/sessions/detect-failures")
    _write(directory, f"stall scan, {SILENT} silent", queries.explained(database, asked))
    connection.close()
    scenarios.tidy(database)


def _write(directory: Path, name: str, told: list[Document]) -> None:
    file = directory / f"{name.replace(',', '').replace(' ', '-')}.json"
    file.write_text(json.dumps(told, indent=2, default=str) + "\n")


async def _prepared(port: int) -> None:
    connection = await Connection.open(port)
    await connection.ask("GET", "/api/sessions")
    connection.close()


def silence(many: int, seconds: float) -> str:
    """The second part: what a scan costs that finds many sessions silent at once."""
    patient = {"SCHEDULER": "off", "REQUEST_TIMEOUT_MS": "3600000"}
    with bench_harness.mongod() as mongod, bench_harness.serve(mongod.uri, **patient) as (server, port):
        client: MongoClient[Document] = MongoClient(mongod.uri, tz_aware=True)
        database = client[DATABASE]
        asyncio.run(_prepared(port))
        now = datetime.now(UTC)
        silent = (session(number, now=now, status="active", silent=True) for number in range(many))
        filled(database["sessions"], silent)
        others = (session(many + number, now=now, status="active") for number in range(500))
        filled(database["sessions"], others)
        lately = {"last_heartbeat": {"$gt": now - timedelta(minutes=1)}}
        beating = database["sessions"].find(lately, {"session_id": 1})
        result = asyncio.run(_scanned(port, server, [one["session_id"] for one in beating], seconds))
        client.close()
    return result


async def _scanned(port: int, server: psutil.Process, beating: list[str], seconds: float) -> str:
    """Heartbeats before and during a scan, as a monitor of the server's memory sees it."""

    async def heartbeat(connection: Connection, number: int) -> Answer:
        return await connection.request("POST", f"/api/sessions/{beating[number % len(beating)]}/heartbeat")

    async def steady(until: asyncio.Event) -> list[float]:
        connection = await Connection.open(port)
        taken: list[float] = []
        number = 0
        while not until.is_set():
            begun = time.perf_counter()
            status, body = await heartbeat(connection, number)
            if status != 200:
                raise RuntimeError(f"{status}: {body.decode()}")
            taken.append((time.perf_counter() - begun) * 1000)
            number += 1
            await asyncio.sleep(0.01)
        connection.close()
        return taken

    peak = at_rest = server.memory_info().rss

    async def watch(until: asyncio.Event) -> None:
        nonlocal peak
        while not until.is_set():
            peak = max(peak, server.memory_info().rss)
            await asyncio.sleep(0.05)

    quiet_over, scan_over = asyncio.Event(), asyncio.Event()
    before = asyncio.create_task(steady(quiet_over))
    await asyncio.sleep(seconds)
    quiet_over.set()
    quiet = await before
    watcher, during = asyncio.create_task(watch(scan_over)), asyncio.create_task(steady(scan_over))
    connection = await Connection.open(port)
    begun = time.perf_counter()
    found = await connection.ask("POST", "/api/sessions/detect-failures")
    took = time.perf_counter() - begun
    scan_over.set()
    loaded = await during
    await watcher
    connection.close()
    (_, p95_before, p99_before), (_, p95, p99) = (
        bench_harness.percentiles(values) for values in (quiet, loaded)
    )
    return (
        f"{found['marked_stalled']:,} sessions marked stalled in {took:.1f} s "
        f"({took / max(1, found['marked_stalled']) * 1e6:.0f} µs each); memory of the server from "
        f"{at_rest / 1e6:.0f} to {peak / 1e6:.0f} MB; heartbeats meanwhile: p95 {p95:.1f} ms, "
        f"p99 {p99:.1f} ms, slowest {max(loaded):.0f} ms; before: p95 {p95_before:.1f} ms, "
        f"p99 {p99_before:.1f} ms, slowest {max(quiet):.0f} ms."
    )


def processes(counts: list[int], seconds: float) -> str:
    """The third part: heartbeats against more and more server processes."""
    rows: list[list[str]] = []
    with bench_harness.mongod() as mongod:
        client: MongoClient[Document] = MongoClient(mongod.uri, tz_aware=True)
        database = client[DATABASE]
        for count in counts:
            # Several processes need a shared count; one has it too, so that they can be compared.
            settings = {
                "WORKERS": str(count),
                "SCHEDULER": "off",
                "RATE_LIMIT_STORAGE_URI": mongod.uri,
            }
            with bench_harness.serve(mongod.uri, **settings) as (server, port):
                asyncio.run(_prepared(port))
                if database["sessions"].estimated_document_count() == 0:
                    now = datetime.now(UTC)
                    beating = (session(number, now=now, status="active") for number in range(2000))
                    filled(database["sessions"], beating)
                asked = heartbeats(database)
                bench_harness.settled(server, count)
                found = asyncio.run(
                    bench_harness.measure(port, server, psutil.Process(mongod.pid), asked, seconds, 32)
                )
            rows.append(
                [
                    str(count),
                    f"{found.per_second:.0f}",
                    f"{found.cpu_us:.0f}",
                    f"{found.mongod_cpu_us:.0f}",
                    f"{found.p50_ms:.1f}",
                    f"{found.p95_ms:.1f}",
                    f"{found.p99_ms:.1f}",
                ]
            )
        client.close()
    head = ["processes", "heartbeats/s", "CPU µs, servers", "CPU µs, mongod", "p50 ms", "p95 ms", "p99 ms"]
    return bench_harness.table(head, rows)


def heartbeats(database: Any) -> Request:
    """Heartbeats of every live session by turns."""
    ids = [one["session_id"] for one in database["sessions"].find({"status": "active"}, {"session_id": 1})]

    async def heartbeat(connection: Connection, number: int) -> Answer:
        return await connection.request("POST", f"/api/sessions/{ids[number % len(ids)]}/heartbeat")

    return heartbeat


def numbers(text: str) -> list[int]:
    """A list of numbers as it is written on the command line."""
    return [int(one) for one in text.split(",") if one]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=numbers, default=[100, 10_000, 1_000_000], help="empty to leave it out"
    )
    parser.add_argument("--stalled", type=int, default=100_000, help="0 to leave it out")
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4, 8], help="empty to leave it out")
    parser.add_argument("--rounds", type=int, default=3, help="of each size")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a scenario in a round")
    parser.add_argument("--explain", type=Path)
    parser.add_argument("--only", action="append", metavar="ROW", help="of the sizes no other; repeatable")
    options = parser.parse_args()
    begun = time.monotonic()
    if options.sizes:
        tables = sizes(options.sizes, options.rounds, options.seconds, options.explain, options.only or [])
        print(tables, end="\n\n", flush=True)
    if options.stalled:
        print(silence(options.stalled, options.rounds * options.seconds), end="\n\n", flush=True)
    if options.processes:
        print(processes(options.processes, options.rounds * options.seconds), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s in all.")


if __name__ == "__main__":
    main()
