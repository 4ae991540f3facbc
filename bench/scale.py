"""How the cost of a request grows with what is stored, with silence, and with the number of processes.

    .venv/bin/python bench/scale.py [--sizes 100,10000,1000000] [--stalled 100000] [--processes 1,2,4,8]
                                    [--seconds 2] [--explain DIRECTORY] [--only ROW]

Three parts, each on a real mongod and a real `serve`. Sizes: the same requests with more and more sessions
stored, a thousand of which have a hundred tasks each; one in a hundred is live, the others have ended, as it
is where retention is a month. Silence: a stall scan that finds many sessions silent at once, how long it
takes, what memory it needs, and what heartbeats of other sessions feel of it. Processes: heartbeats against
more and more server processes on one database. `--explain` writes what the database says about each query at
the largest size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from pymongo import MongoClient
from pymongo.collection import Collection

import bench_harness
from bench_harness import DATABASE, Answer, Connection, Request
from state_tracking_api import health, sessions, tasks
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
LIVE_SHARE = 100
"""One session in so many is live."""


def session(number: int, *, now: datetime, live: bool, silent: bool = False) -> Document:
    """A stored session, as the server itself makes them."""
    at = now - timedelta(seconds=number % 2_500_000)
    made = sessions.new_document(
        Stamp(at, "key:bench"),
        project_id=f"project-{number % 1000}",
        machine_id=f"machine-{number}",
        docker_slot=None,
        metadata_={"vscode": "1.139.1", "extension": "0.1.0"},
    )
    if live:
        return {**made, "last_heartbeat": now - timedelta(hours=1) if silent else now}
    status = "failed" if number % 20 == 0 else "completed"
    return {**made, "status": status, "completed_at": at}


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
        (session(number, now=now, live=number % LIVE_SHARE == 0) for number in range(start, end)),
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
    before = -(-start // LIVE_SHARE)
    filled(database["tasks"], (task(owner, OPEN_TASK) for owner in live.skip(before)))


def scenarios(database: Any) -> dict[str, Request]:
    """What is asked at each size."""
    live = [one["session_id"] for one in database["sessions"].find({"status": "active"}).limit(2000)]
    random.Random(1).shuffle(live)  # noqa: S311 - an order, not a secret
    some_task = database["tasks"].find_one({})
    assert some_task is not None

    open_tasks = [
        one["task_id"] for one in database["tasks"].find({"task_name": OPEN_TASK}, {"task_id": 1}).limit(2000)
    ]

    def get(path: str) -> Request:
        async def request(connection: Connection, _number: int) -> Answer:
            return await connection.request("GET", path)

        return request

    async def heartbeat(connection: Connection, number: int) -> Answer:
        return await connection.request("POST", f"/api/sessions/{live[number % len(live)]}/heartbeat")

    async def read(connection: Connection, number: int) -> Answer:
        return await connection.request("GET", f"/api/sessions/{live[number % len(live)]}")

    async def transition(connection: Connection, number: int) -> Answer:
        # Blocked may be said again and again.
        path = f"/api/tasks/{open_tasks[number % len(open_tasks)]}"
        return await connection.request("PATCH", path, {"status": "blocked"})

    async def create(connection: Connection, _number: int) -> Answer:
        body = {"project_id": "bench", "machine_id": str(uuid.uuid4())}
        return await connection.request("POST", "/api/sessions", body)

    return {
        "heartbeat": heartbeat,
        "read a session": read,
        "read a task": get(f"/api/tasks/{some_task['task_id']}"),
        "create a session": create,
        "task transition": transition,
        "list of a project": get("/api/sessions?project_id=project-7&limit=20"),
        "list of the live": get("/api/sessions?status=active&limit=20"),
        "list of all": get("/api/sessions?limit=20"),
        "tasks of a session": get(f"/api/tasks?session_id={some_task['session_id']}&limit=100"),
        "stalled list": get("/api/sessions/stalled"),
        "health summary": get("/api/sessions/health"),
        "recovery state": get(f"/api/sessions/{some_task['session_id']}/recovery-state"),
    }


async def scan(connection: Connection, _number: int) -> Answer:
    """A stall scan."""
    return await connection.request("POST", "/api/sessions/detect-failures")


def sizes(wanted: list[int], seconds: float, explain: Path | None, only: list[str] | None) -> str:
    """The first part; a table of milliseconds (and CPU of server and mongod together) by size."""
    columns: dict[int, dict[str, str]] = {}
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
            print(f"{size} sessions stored after {time.monotonic() - begun:.0f} s", flush=True)
            columns[size] = {}
            for name, request in {**scenarios(database), "stall scan, nobody silent": scan}.items():
                if only and name not in only:
                    continue
                found = asyncio.run(
                    bench_harness.measure(
                        port, server, psutil.Process(mongod.pid), request, seconds, CONCURRENCY
                    )
                )
                used = found.server_cpu_us + found.mongod_cpu_us
                columns[size][name] = (
                    f"{found.p50_ms:.1f} ms, {used / 1000:.2f} ms CPU, p95 {found.p95_ms:.1f}"
                )
            columns[size]["memory of the server"] = f"{server.memory_info().rss / 1e6:.0f} MB"
            database["sessions"].delete_many({"project_id": "bench"})
        if explain:
            write_plans(database, explain)
        client.close()
    names = list(columns[wanted[0]])
    rows = [[name, *(columns[size][name] for size in wanted)] for name in names]
    return bench_harness.table(["p50, CPU of server and mongod", *(f"{size:,}" for size in wanted)], rows)


def write_plans(database: Any, directory: Path) -> None:
    """What the database says about the queries, a file each: the winning plan and what it looked at."""
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    some = database["sessions"].find_one({"status": "active"})
    assert some is not None
    newest = {"created_at": -1, "session_id": -1}
    silent = health.overdue(now, PATIENCE, None)
    everybody = health.overdue(now + 2 * PATIENCE, PATIENCE, None)
    task = database["tasks"].find_one({})
    assert task is not None
    of_a_session = {"session_id": task["session_id"]}
    beating = {
        "session_id": some["session_id"],
        "status": {"$in": ["active", "paused"]},
        "fenced": {"$ne": True},
    }
    find: dict[str, Document] = {
        "heartbeat": {"find": "sessions", "filter": beating},
        "read": {"find": "sessions", "filter": {"session_id": some["session_id"]}},
        "list-of-a-project": {
            "find": "sessions",
            "filter": {"project_id": "project-7"},
            "sort": newest,
            "limit": 20,
        },
        "list-of-the-live": {"find": "sessions", "filter": {"status": "active"}, "sort": newest, "limit": 20},
        "list-of-all": {"find": "sessions", "filter": {}, "sort": newest, "limit": 20},
        "stall-scan": {"find": "sessions", "filter": silent, "limit": 500},
        "stall-scan-of-many": {"find": "sessions", "filter": everybody, "limit": 500},
        "stalled-list": {
            "find": "sessions",
            "filter": {"$or": [{"status": "stalled"}, *silent["$or"]]},
            "sort": {"last_heartbeat": 1, "session_id": 1},
        },
        "read-a-task": {"find": "tasks", "filter": {"task_id": task["task_id"]}},
        "tasks-of-a-session": {
            "find": "tasks",
            "filter": of_a_session,
            "sort": {"created_at": -1, "task_id": -1},
            "limit": 100,
        },
        "total-of-a-project": _counted({"project_id": "project-7"}),
        "total-of-all": {**_counted({}), "hint": "_id_"},
        "summary-of-states": {
            **_aggregated([{"$group": {"_id": "$status", "count": {"$sum": 1}}}]),
            "hint": "status_1_last_heartbeat_1",
        },
        "summary-of-the-silent": _counted(silent),
    }
    for name, command in find.items():
        said = database.command("explain", command, verbosity="executionStats")
        said = said["stages"][0]["$cursor"] if "stages" in said else said
        stats = said["executionStats"]
        told = {
            "command": command,
            "stages": _stages(said["queryPlanner"]["winningPlan"]),
            "returned": stats["nReturned"],
            "keys_examined": stats["totalKeysExamined"],
            "documents_examined": stats["totalDocsExamined"],
        }
        (directory / f"{name}.json").write_text(json.dumps(told, indent=2, default=str) + "\n")


def _aggregated(pipeline: list[Document]) -> Document:
    return {"aggregate": "sessions", "pipeline": pipeline, "cursor": {}}


def _counted(condition: Document) -> Document:
    """As the driver counts."""
    return _aggregated([{"$match": condition}, {"$group": {"_id": 1, "n": {"$sum": 1}}}])


def _stages(plan: Document) -> list[str]:
    """The stages of a plan from the outermost in, with the index where one is used."""
    own = f"{plan.get('stage', '?')} {plan.get('indexName', '')}".strip()
    inner = [plan["inputStage"]] if "inputStage" in plan else plan.get("inputStages", [])
    inner = [plan["queryPlan"]] if "queryPlan" in plan else inner
    return [own, *(stage for one in inner for stage in _stages(one))]


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
        filled(
            database["sessions"], (session(number, now=now, live=True, silent=True) for number in range(many))
        )
        filled(database["sessions"], (session(many + number, now=now, live=True) for number in range(500)))
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
    p95 = [statistics.quantiles(values, n=20)[18] for values in (quiet, loaded)]
    return (
        f"{found['marked_stalled']:,} sessions marked stalled in {took:.1f} s "
        f"({took / max(1, found['marked_stalled']) * 1e6:.0f} µs each); memory of the server from "
        f"{at_rest / 1e6:.0f} to {peak / 1e6:.0f} MB; heartbeats meanwhile: p95 {p95[1]:.1f} ms, "
        f"{p95[0]:.1f} ms before, slowest {max(loaded):.0f} ms"
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
                    filled(
                        database["sessions"], (session(number, now=now, live=True) for number in range(2000))
                    )
                asked = scenarios_of_heartbeats(database)
                bench_harness.settled(server, count)
                found = asyncio.run(
                    bench_harness.measure(port, server, psutil.Process(mongod.pid), asked, seconds, 32)
                )
            rows.append(
                [
                    str(count),
                    f"{found.per_second:.0f}",
                    f"{found.server_cpu_us:.0f}",
                    f"{found.mongod_cpu_us:.0f}",
                    f"{found.p50_ms:.1f}",
                    f"{found.p95_ms:.1f}",
                ]
            )
        client.close()
    head = ["processes", "heartbeats/s", "CPU µs, servers", "CPU µs, mongod", "p50 ms", "p95 ms"]
    return bench_harness.table(head, rows)


def scenarios_of_heartbeats(database: Any) -> Request:
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
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--explain", type=Path)
    parser.add_argument("--only", action="append", metavar="ROW", help="of the sizes no other; repeatable")
    options = parser.parse_args()
    if options.sizes:
        print(sizes(options.sizes, options.seconds, options.explain, options.only), end="\n\n", flush=True)
    if options.stalled:
        print(silence(options.stalled, options.seconds), end="\n\n", flush=True)
    if options.processes:
        print(processes(options.processes, options.seconds), flush=True)


if __name__ == "__main__":
    main()
