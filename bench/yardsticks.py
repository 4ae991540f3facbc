"""The same work on the database as the API does, straight through the driver: what it is measured by.

    yardsticks.py URI PID SCENARIO SECONDS CONCURRENCY < TARGETS

PID is mongod's, TARGETS what it is about (scenarios.Targets) as JSON. Prints, as JSON, the latencies in
milliseconds, the seconds elapsed, the CPU seconds of this process and of mongod, and this process's memory.
Nothing of the server is imported, so that this is a process that has the driver and nothing else.
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

import psutil
import uvloop
from pymongo import AsyncMongoClient, ReturnDocument, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_concern import ReadConcern

DATABASE = "bench"
WITHOUT_EVENTS = {"_id": 0, "events": 0, "beats": 0, "left_tasks": 0}
MAJORITY = WriteConcern("majority")
SNAPSHOT = ReadConcern("snapshot")
LIVE = {"$in": ["active", "paused", "stalled"]}
PRESENCE = {"_id": "presence"}

Document = dict[str, Any]
Work = Callable[[int], Awaitable[object]]


class Works:
    """What each kind of request does to the database."""

    def __init__(self, client: AsyncMongoClient[Document], targets: Document) -> None:
        self._client = client
        self._of = targets
        database = client.get_database(DATABASE, write_concern=MAJORITY)
        self._sessions, self._tasks = database["sessions"], database["tasks"]
        self._machines, self._locks = database["machines"], database["machine_locks"]
        self._jobs = database["jobs"]

    def by_name(self) -> dict[str, Work]:
        """All of them, by the name of the request that does the same."""
        return {
            "heartbeat": self._heartbeat,
            "read a session": self._read,
            "read a task": lambda _: self._tasks.find_one({"task_id": self._of["task_id"]}, WITHOUT_EVENTS),
            "create a session": self._create,
            "task transition": self._transition,
            "list of a project": lambda _: self._list({"project_id": self._of["project_id"]}),
            "list of the live": lambda _: self._list({"status": "active"}),
            "list of all": lambda _: self._list({}),
            "tasks of a session": self._tasks_of_a_session,
            "stalled list": self._stalled,
            "health summary": self._summary,
            "recovery state": self._recovery_state,
            "stall scan, nobody silent": self._scan,
        }

    async def _heartbeat(self, number: int) -> object:
        now = datetime.now(UTC)
        condition = {
            "session_id": self._of["sessions"][number % len(self._of["sessions"])],
            "status": {"$in": ["active", "paused"]},
            "fenced": {"$ne": True},
        }
        update = {
            "$max": {"last_heartbeat": now, "updated_at": now},
            "$push": {"beats": {"$each": [now], "$slice": -60}},
        }
        return await self._sessions.find_one_and_update(
            condition, update, projection=WITHOUT_EVENTS, return_document=ReturnDocument.AFTER
        )

    async def _read(self, number: int) -> object:
        session_id = self._of["sessions"][number % len(self._of["sessions"])]
        return await self._sessions.find_one({"session_id": session_id}, WITHOUT_EVENTS)

    async def _list(self, condition: Document) -> object:
        found = self._sessions.find(condition, WITHOUT_EVENTS)
        ordered = found.sort([("created_at", -1), ("session_id", -1)]).limit(20)
        hint: Document = {} if condition else {"hint": "_id_"}
        return await asyncio.gather(ordered.to_list(), self._sessions.count_documents(condition, **hint))

    async def _tasks_of_a_session(self, _number: int) -> object:
        condition = {"session_id": self._of["owner_id"]}
        found = self._tasks.find(condition, WITHOUT_EVENTS)
        ordered = found.sort([("created_at", -1), ("task_id", -1)]).limit(100)
        return await asyncio.gather(ordered.to_list(), self._tasks.count_documents(condition))

    async def _create(self, _number: int) -> object:
        now = datetime.now(UTC)
        machine_id = str(uuid.uuid4())
        session: Document = {
            "session_id": str(uuid.uuid4()),
            "project_id": "bench-created",
            "machine_id": machine_id,
            "status": "active",
            **dict.fromkeys(("last_heartbeat", "started_at", "created_at", "updated_at"), now),
            **dict.fromkeys(("docker_slot", "current_task_id", "completed_at")),
            **dict.fromkeys(("recovered_from", "recovered_by", "stall_threshold_ms")),
            **dict.fromkeys(("metadata_bytes", "revision"), 0),
            "metadata": {},
            "events": [{"at": now, "from": None, "to": "active", "actor": "key:bench", "reason": "started"}],
            "beats": [now],
        }

        async def work(txn: AsyncClientSession) -> None:
            session.pop("_id", None)
            fit = {"machine_id": machine_id, "status": {"$nin": ["maintenance"]}}
            change = {"$addToSet": {"active_sessions": session["session_id"]}, "$set": {"updated_at": now}}
            await self._machines.update_one(fit, change, session=txn)
            await self._machines.find_one({"machine_id": machine_id}, session=txn)
            lock = {"$set": {"touched_at": now}, "$inc": {"touched": 1}}
            await self._locks.update_one({"_id": machine_id}, lock, upsert=True, session=txn)
            await self._sessions.insert_one(session, session=txn)

        return await self._in_transaction(work)

    async def _transition(self, number: int) -> object:
        now = datetime.now(UTC)
        task_id = self._of["tasks"][number % len(self._of["tasks"])]
        is_current = {"$eq": ["$current_task_id", task_id]}
        none: list[str] = []
        left = {"$concatArrays": [{"$ifNull": ["$left_tasks", none]}, [task_id]]}
        followed: Document = {
            "current_task_id": {"$cond": [is_current, None, "$current_task_id"]},
            "updated_at": {"$cond": [is_current, now, "$updated_at"]},
            "left_tasks": {"$slice": [left, -20]},
            "revision": {"$add": [{"$ifNull": ["$revision", 0]}, 1]},
        }

        async def work(txn: AsyncClientSession) -> object:
            task = await self._tasks.find_one({"task_id": task_id}, WITHOUT_EVENTS, session=txn)
            assert task is not None
            of_live = {"session_id": task["session_id"], "status": LIVE}
            await self._sessions.update_one(of_live, [{"$set": followed}], session=txn)
            happened = {"at": now, "from": task["status"], "to": "blocked", "actor": "key:bench"}
            update = {
                "$set": {"updated_at": now, "status": "blocked", "completed_at": None, "error_message": None},
                "$push": {"events": {"$each": [{**happened, "reason": None}], "$slice": -1000}},
            }
            return await self._tasks.find_one_and_update(
                {"task_id": task_id, "status": task["status"]},
                update,
                projection=WITHOUT_EVENTS,
                return_document=ReturnDocument.AFTER,
                session=txn,
            )

        return await self._in_transaction(work)

    async def _in_transaction(self, work: Callable[[AsyncClientSession], Awaitable[Any]]) -> object:
        async with self._client.start_session() as session:
            return await session.with_transaction(work, read_concern=SNAPSHOT, write_concern=MAJORITY)

    async def _summary(self, _number: int) -> object:
        first, *others = (
            [{"$match": {"status": status}}, {"$count": "count"}, {"$set": {"_id": status}}]
            for status in ("active", "paused", "stalled", "completed", "failed")
        )
        unions = [{"$unionWith": {"coll": "sessions", "pipeline": pipeline}} for pipeline in others]
        await (await self._sessions.aggregate([*first, *unions])).to_list()
        await self._jobs.find_one(PRESENCE)
        await self._sessions.count_documents({"$or": self._overdue()})
        return await self._jobs.find_one(PRESENCE, {"suspected_at": 1})

    async def _stalled(self, _number: int) -> object:
        await self._jobs.find_one(PRESENCE)
        condition = {"$or": [{"status": "stalled"}, *self._overdue()]}
        fields = {"_id": 0, "session_id": 1, "project_id": 1, "machine_id": 1, "last_heartbeat": 1}
        found = self._sessions.find(condition, fields).sort([("last_heartbeat", 1), ("session_id", 1)])
        return await found.to_list()

    async def _scan(self, _number: int) -> object:
        await self._jobs.find_one_and_update(PRESENCE, [{"$set": {"seen_at": "$$NOW"}}], upsert=True)
        await self._jobs.find_one(PRESENCE)
        return await self._sessions.find({"$or": self._overdue()}, {"_id": 1}).limit(500).to_list()

    async def _recovery_state(self, _number: int) -> object:
        of_session = {"session_id": self._of["owner_id"]}
        await self._sessions.find_one(of_session, WITHOUT_EVENTS)
        found = self._tasks.find(of_session, WITHOUT_EVENTS)
        return await found.sort([("created_at", 1), ("task_id", 1)]).to_list()

    def _overdue(self) -> list[Document]:
        now = datetime.now(UTC)
        own = {"$lt": ["$last_heartbeat", {"$subtract": [now, "$stall_threshold_ms"]}]}
        silent_since = now - timedelta(milliseconds=self._of["patience_ms"])
        return [
            {"status": "active", "stall_threshold_ms": None, "last_heartbeat": {"$lt": silent_since}},
            {"status": "active", "stall_threshold_ms": {"$gt": 0}, "$expr": {"$and": [own]}},
        ]


async def drive(
    uri: str, mongod: psutil.Process, scenario: str, seconds: float, concurrency: int, targets: Document
) -> Document:
    """Do a scenario's work for a time, from as many tasks at once, each at least once."""
    client: AsyncMongoClient[Document] = AsyncMongoClient(
        uri, tz_aware=True, timeoutMS=60_000, appname="yardstick"
    )
    work = Works(client, targets).by_name()[scenario]
    latencies: list[float] = []

    async def caller(first: int, end: float) -> None:
        number = first
        while (begun := time.perf_counter()) < end or number == first:
            await work(number)
            latencies.append((time.perf_counter() - begun) * 1000)
            number += concurrency

    async def callers(lasting: float) -> None:
        end = time.perf_counter() + lasting
        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(caller(number, end))

    await callers(min(0.2, seconds))  # the connections are opened
    latencies.clear()
    begun, spent, before = time.perf_counter(), time.process_time(), sum(mongod.cpu_times()[:2])
    await callers(seconds)
    result = {
        "latencies": latencies,
        "elapsed": time.perf_counter() - begun,
        "own": time.process_time() - spent,
        "mongod": sum(mongod.cpu_times()[:2]) - before,
        "memory": psutil.Process().memory_info().rss,
    }
    await client.close()
    return result


def main() -> None:
    """Measure and print."""
    uri, pid, scenario, seconds, concurrency = sys.argv[1:]
    targets = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(
            drive(uri, psutil.Process(int(pid)), scenario, float(seconds), int(concurrency), targets)
        )
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
