"""What a request costs: CPU of the server, latency and throughput, beside the same write by the driver alone.

    .venv/bin/python bench/heartbeat.py [--seconds 2] [--rounds 5] [--json FILE]

A real mongod and a real `serve` are started. Each round runs every scenario once, so that a slow moment of
the machine hits all of them; the table shows medians over the rounds. The yardstick is the heartbeat's own
findOneAndUpdate, issued by PyMongo's asynchronous client in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from pymongo import AsyncMongoClient, MongoClient, ReturnDocument, WriteConcern

from state_tracking_api import clock
from state_tracking_api.embedded import Mongod, free_port
from state_tracking_api.sessions import BEATS_KEPT
from state_tracking_api.transitions import WITHOUT_EVENTS

CONCURRENCY = 32
DATABASE = "bench"
COMMAND = Path(sys.executable).with_name("state-tracking-api")


@dataclass(frozen=True)
class Measured:
    """One scenario in one round: CPU microseconds and milliseconds per request, requests per second."""

    server_cpu_us: float
    mongod_cpu_us: float
    p50_ms: float
    p95_ms: float
    per_second: float


class Connection:
    """A kept-alive HTTP/1.1 connection with as little client as possible."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = f"Host: 127.0.0.1\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send one request; returns status and body."""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status = int(answer[9:12])
        length = next(
            int(line.split(b":")[1])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        return status, await self._reader.readexactly(length)


Request = Callable[[Connection, int], Awaitable[tuple[int, bytes]]]


def scenarios(sessions: list[str]) -> dict[str, Request]:
    """What is measured, by name."""

    async def heartbeat(connection: Connection, number: int) -> tuple[int, bytes]:
        return await connection.request("POST", f"/api/sessions/{sessions[number % len(sessions)]}/heartbeat")

    async def read(connection: Connection, number: int) -> tuple[int, bytes]:
        return await connection.request("GET", f"/api/sessions/{sessions[number % len(sessions)]}")

    async def create(connection: Connection, _number: int) -> tuple[int, bytes]:
        body = json.dumps({"project_id": "bench", "machine_id": str(uuid.uuid4())}).encode()
        return await connection.request("POST", "/api/sessions", body)

    async def summary(connection: Connection, _number: int) -> tuple[int, bytes]:
        return await connection.request("GET", "/api/sessions/health")

    return {"heartbeat": heartbeat, "read": read, "create": create, "health summary": summary}


async def load(port: int, key: str, request: Request, seconds: float) -> list[float]:
    """Run one scenario from 32 connections; returns the latencies in milliseconds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def work(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        connection = Connection(reader, writer, key)
        number = first
        while (begun := time.perf_counter()) < end:
            status, body = await request(connection, number)
            if status >= 300:
                raise RuntimeError(f"{status}: {body.decode()}")
            latencies.append((time.perf_counter() - begun) * 1000)
            number += CONCURRENCY
        writer.close()

    async with asyncio.TaskGroup() as group:
        for worker in range(CONCURRENCY):
            group.create_task(work(worker))
    return latencies


def cpu(process: psutil.Process) -> float:
    """CPU seconds of a process, all of its threads, user and system."""
    times = process.cpu_times()
    return times.user + times.system


async def measure(
    port: int, key: str, server: psutil.Process, mongod: psutil.Process, request: Request, seconds: float
) -> Measured:
    """One scenario, one round."""
    before = cpu(server), cpu(mongod)
    begun = time.perf_counter()
    latencies = await load(port, key, request, seconds)
    elapsed = time.perf_counter() - begun
    return _measured(latencies, elapsed, cpu(server) - before[0], cpu(mongod) - before[1])


def _measured(latencies: list[float], elapsed: float, own: float, mongod: float) -> Measured:
    count = len(latencies)
    cuts = statistics.quantiles(latencies, n=20)
    return Measured(own / count * 1e6, mongod / count * 1e6, cuts[9], cuts[18], count / elapsed)


def yardstick(uri: str, seconds: float, mongod: psutil.Process) -> Measured:
    """The heartbeat's findOneAndUpdate by the driver alone, in a process of its own."""
    before = cpu(mongod)
    done = subprocess.run(
        [sys.executable, __file__, "--yardstick", uri, "--seconds", str(seconds)],
        check=True,
        stdout=subprocess.PIPE,
    )
    found = json.loads(done.stdout)
    return _measured(found["latencies"], found["elapsed"], found["cpu"], cpu(mongod) - before)


async def drive(uri: str, seconds: float) -> None:
    """What the yardstick's process does: 32 tasks, one client."""
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(uri, tz_aware=True, timeoutMS=10_000)
    collection = client[DATABASE].get_collection("sessions", write_concern=WriteConcern("majority"))
    ids = [session["session_id"] async for session in collection.find({"project_id": "bench-beats"})]
    latencies: list[float] = []

    async def beat(number: int) -> None:
        now = clock.now()
        beats = {"beats": {"$each": [now], "$slice": -BEATS_KEPT}}
        condition = {
            "session_id": ids[number % len(ids)],
            "status": {"$in": ["active", "paused"]},
        }
        update = {"$set": {"last_heartbeat": now, "updated_at": now}, "$push": beats}
        found = await collection.find_one_and_update(
            condition, update, projection=WITHOUT_EVENTS, return_document=ReturnDocument.AFTER
        )
        if found is None:
            raise RuntimeError("the session is gone")

    async def work(first: int, end: float) -> None:
        number = first
        while (begun := time.perf_counter()) < end:
            await beat(number)
            latencies.append((time.perf_counter() - begun) * 1000)
            number += CONCURRENCY

    await beat(0)
    begun, spent = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for worker in range(CONCURRENCY):
            group.create_task(work(worker, begun + seconds))
    result = {
        "latencies": latencies,
        "elapsed": time.perf_counter() - begun,
        "cpu": time.process_time() - spent,
    }
    await client.close()
    sys.stdout.write(json.dumps(result))


async def prepare(port: int, key: str) -> list[str]:
    """Sessions to beat: a thousand of them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Connection(reader, writer, key)
    ids: list[str] = []
    for number in range(1000):
        body = json.dumps({"project_id": "bench-beats", "machine_id": f"m{number}"}).encode()
        status, answer = await connection.request("POST", "/api/sessions", body)
        assert status == 201, answer
        ids.append(json.loads(answer)["session_id"])
    writer.close()
    return ids


def run(seconds: float, rounds: int) -> dict[str, Measured]:
    """Everything: start, measure in rounds, stop; medians by scenario."""
    key = str(uuid.uuid4())
    with tempfile.TemporaryDirectory() as data_dir, Mongod.start(Path(data_dir)) as mongod:
        port = free_port()
        environment = {
            **os.environ,
            "MONGODB_URI": mongod.uri,
            "MONGODB_DATABASE": DATABASE,
            "API_KEYS": key,
            "PORT": str(port),
            "RATE_LIMIT_PER_MINUTE": "100000000",
        }
        with tempfile.TemporaryFile() as log:
            server = subprocess.Popen([COMMAND, "serve"], env=environment, stdout=log)
            try:
                return asyncio.run(_rounds(server.pid, mongod, port, key, seconds, rounds))
            finally:
                server.terminate()
                server.wait()


async def _rounds(
    pid: int, mongod: Mongod, port: int, key: str, seconds: float, rounds: int
) -> dict[str, Measured]:
    await _listening(port)
    chosen = scenarios(await prepare(port, key))
    server, database = psutil.Process(pid), psutil.Process(mongod.pid)
    results: dict[str, list[Measured]] = {}
    for request in chosen.values():  # warm up
        await load(port, key, request, 0.3)
    for _ in range(rounds):
        for name, request in chosen.items():
            results.setdefault(name, []).append(await measure(port, key, server, database, request, seconds))
        driver = await asyncio.to_thread(yardstick, mongod.uri, seconds, database)
        results.setdefault("driver alone", []).append(driver)
        with MongoClient[dict[str, object]](mongod.uri) as client:  # what `create` has left
            client[DATABASE]["sessions"].delete_many({"project_id": "bench"})
    return {name: _median(measured) for name, measured in results.items()}


async def _listening(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("serve did not come up")


def _median(measured: list[Measured]) -> Measured:
    names = Measured.__dataclass_fields__
    return Measured(**{name: statistics.median(getattr(one, name) for one in measured) for name in names})


def table(results: dict[str, Measured]) -> str:
    """The medians as Markdown; the ratio is that of CPU to the driver alone."""
    base = results["driver alone"].server_cpu_us
    lines = [
        "| | CPU µs per request | ratio to the driver | mongod CPU µs | p50 ms | p95 ms | requests/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {one.server_cpu_us:.0f} | {one.server_cpu_us / base:.2f} | {one.mongod_cpu_us:.0f} "
        f"| {one.p50_ms:.1f} | {one.p95_ms:.1f} | {one.per_second:.0f} |"
        for name, one in results.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a scenario in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the medians to this file")
    parser.add_argument("--yardstick", metavar="URI", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.yardstick:
        asyncio.run(drive(options.yardstick, options.seconds))
        return
    results = run(options.seconds, options.rounds)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps({name: vars(one) for name, one in results.items()}, indent=2))


if __name__ == "__main__":
    main()
