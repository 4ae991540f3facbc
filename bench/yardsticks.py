"""The same work on the database as the API does, straight through the driver: the yardsticks of speed.py.

    yardsticks.py URI SCENARIO SECONDS CONCURRENCY

Prints, as JSON, the latencies in milliseconds, the seconds elapsed, and the CPU seconds of this process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import uvloop
from pymongo import AsyncMongoClient, ReturnDocument, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_concern import ReadConcern

DATABASE = "bench"
PROJECTION = {"_id": 0, "events": 0, "beats": 0}
MAJORITY = WriteConcern("majority")
SNAPSHOT = ReadConcern("snapshot")
LIVE = ["active", "paused", "stalled"]

Document = dict[str, Any]
Work = Callable[[int], Awaitable[object]]


def name() -> str:
    """A machine that nobody else uses."""
    return f"bench-{uuid.uuid4()}"


def works(client: AsyncMongoClient[Document], sessions: list[str], tasks: list[str]) -> dict[str, Work]:
    """What each scenario does to the database, by the scenario's name."""
    database = client.get_database(DATABASE, write_concern=MAJORITY)

    async def heartbeat(number: int) -> object:
        now = datetime.now(UTC)
        update = {
            "$set": {"last_heartbeat": now, "updated_at": now},
            "$push": {"beats": {"$each": [now], "$slice": -60}},
        }
        condition = {
            "session_id": sessions[number % len(sessions)],
            "status": {"$in": ["active", "paused"]},
            "fenced": {"$ne": True},
        }
        return await database["sessions"].find_one_and_update(
            condition, update, projection=PROJECTION, return_document=ReturnDocument.AFTER
        )

    async def read(number: int) -> object:
        return await database["sessions"].find_one(
            {"session_id": sessions[number % len(sessions)]}, PROJECTION
        )

    async def listed(_number: int) -> object:
        condition = {"project_id": "bench-beats"}
        found = database["sessions"].find(condition, PROJECTION)
        ordered = found.sort([("created_at", -1), ("session_id", -1)]).limit(20)
        return await asyncio.gather(ordered.to_list(), database["sessions"].count_documents(condition))

    async def create(_number: int) -> object:
        now = datetime.now(UTC)
        session: Document = {
            "session_id": str(uuid.uuid4()),
            "project_id": "bench",
            "machine_id": name(),
            "status": "active",
            **dict.fromkeys(("last_heartbeat", "started_at", "created_at", "updated_at"), now),
            "metadata": {},
            "events": [{"at": now, "from": None, "to": "active", "actor": "key:bench", "reason": "started"}],
            "beats": [now],
        }

        async def work(txn: AsyncClientSession) -> None:
            session.pop("_id", None)
            machine = {"machine_id": session["machine_id"]}
            change = {"$addToSet": {"active_sessions": session["session_id"]}, "$set": {"updated_at": now}}
            await database["machines"].update_one(machine, change, session=txn)
            await database["machines"].find_one(machine, session=txn)
            lock = {"$set": {"touched_at": now}, "$inc": {"touched": 1}}
            locked = {"_id": session["machine_id"]}
            await database["machine_locks"].update_one(locked, lock, upsert=True, session=txn)
            await database["sessions"].insert_one(session, session=txn)

        return await _in_transaction(work)

    async def transition(number: int) -> object:
        now = datetime.now(UTC)
        task_id = {"task_id": tasks[number % len(tasks)]}

        async def work(txn: AsyncClientSession) -> object:
            task = await database["tasks"].find_one(task_id, PROJECTION, session=txn)
            assert task is not None
            live = {"session_id": task["session_id"], "status": {"$in": LIVE}}
            await database["sessions"].update_one(live, {"$inc": {"revision": 1}}, session=txn)
            happened = {
                "at": now,
                "from": task["status"],
                "to": "blocked",
                "actor": "key:bench",
                "reason": None,
            }
            update = {
                "$set": {"updated_at": now, "status": "blocked"},
                "$push": {"events": {"$each": [happened], "$slice": -100}},
            }
            return await database["tasks"].find_one_and_update(
                task_id, update, projection=PROJECTION, return_document=ReturnDocument.AFTER, session=txn
            )

        return await _in_transaction(work)

    async def _in_transaction(work: Callable[[AsyncClientSession], Awaitable[Any]]) -> object:
        async with client.start_session() as session:
            return await session.with_transaction(work, read_concern=SNAPSHOT, write_concern=MAJORITY)

    async def summary(_number: int) -> object:
        grouped = [{"$group": {"_id": "$status", "count": {"$sum": 1}}}]
        counted = await database["sessions"].aggregate(grouped, hint="status_1_last_heartbeat_1")
        await counted.to_list()
        await database["sessions"].count_documents(_overdue())
        return await database["jobs"].find_one({"_id": "presence"})

    async def stalled(_number: int) -> object:
        await database["jobs"].find_one({"_id": "presence"})
        condition = {"$or": [{"status": "stalled"}, _overdue()]}
        return await database["sessions"].find(condition).sort("last_heartbeat", 1).to_list()

    return {
        "heartbeat": heartbeat,
        "read": read,
        "list of 20": listed,
        "create": create,
        "task transition": transition,
        "health summary": summary,
        "stalled list": stalled,
    }


def _overdue() -> Document:
    silent_since = datetime.now(UTC) - timedelta(minutes=3)
    return {"status": "active", "stall_threshold_ms": None, "last_heartbeat": {"$lt": silent_since}}


async def drive(uri: str, scenario: str, seconds: float, concurrency: int) -> Document:
    """Do a scenario's work for a time, from as many tasks at once."""
    client: AsyncMongoClient[Document] = AsyncMongoClient(uri, tz_aware=True, timeoutMS=10_000)
    stored = client[DATABASE]
    sessions = [found["session_id"] async for found in stored["sessions"].find({"project_id": "bench-beats"})]
    tasks = [found["task_id"] async for found in stored["tasks"].find({"project_id": "bench-beats"})]
    work = works(client, sessions, tasks)[scenario]
    latencies: list[float] = []

    async def caller(first: int, end: float) -> None:
        number = first
        while (begun := time.perf_counter()) < end:
            await work(number)
            latencies.append((time.perf_counter() - begun) * 1000)
            number += concurrency

    async def callers(lasting: float) -> None:
        end = time.perf_counter() + lasting
        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(caller(number, end))

    await callers(0.2)  # the connections are opened
    latencies.clear()
    begun, spent = time.perf_counter(), time.process_time()
    await callers(seconds)
    elapsed, used = time.perf_counter() - begun, time.process_time() - spent
    await client.close()
    return {"latencies": latencies, "elapsed": elapsed, "cpu": used}


def main() -> None:
    """Measure and print."""
    uri, scenario, seconds, concurrency = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(drive(uri, scenario, float(seconds), int(concurrency)))
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
