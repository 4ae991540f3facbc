"""What the benchmarks share: a real mongod, a real server, a lean client, and what each of them uses."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from state_tracking_api.embedded import Mongod, free_port

DATABASE = "bench"
SERVE = (Path(sys.executable).with_name("state-tracking-api"), "serve")
KEY = str(uuid.uuid4())

Answer = tuple[int, bytes]


@dataclass(frozen=True)
class Measured:
    """One scenario in one round, per request; `cpu_us` and `memory_mb` are those of whoever answered it."""

    cpu_us: float
    mongod_cpu_us: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_second: float
    memory_mb: float


FIGURES = tuple(Measured.__dataclass_fields__)


class Connection:
    """A kept-alive HTTP/1.1 connection with as little client as possible."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prefix: str) -> None:
        self._reader = reader
        self._writer = writer
        self._prefix = prefix
        self._head = f"Host: 127.0.0.1\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"

    @classmethod
    async def open(cls, port: int, prefix: str = "") -> Connection:
        """Connect to a server on this machine; every path that is asked for begins with `prefix`."""
        return cls(*await asyncio.open_connection("127.0.0.1", port), prefix)

    async def request(self, method: str, path: str, body: object = None) -> Answer:
        """Send one request, `body` as JSON; returns status and body."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        return int(answer[9:12]), await self._reader.readexactly(length)

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """As `request`, where only a good answer will do; returns its JSON."""
        status, answer = await self.request(method, path, body)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {answer.decode()}")
        return json.loads(answer) if answer else None

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


Request = Callable[[Connection, int], Awaitable[Answer]]
"""Sends one request; the number tells the requests of a run apart."""


async def load(
    port: int, request: Request, seconds: float, concurrency: int, prefix: str = ""
) -> list[float]:
    """Send requests from as many connections for a time, each at least one; returns milliseconds of each."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def work(first: int) -> None:
        connection = await Connection.open(port, prefix)
        number = first
        while (begun := time.perf_counter()) < end or number == first:
            status, body = await request(connection, number)
            if status >= 300:
                raise RuntimeError(f"{status}: {body.decode()}")
            latencies.append((time.perf_counter() - begun) * 1000)
            number += concurrency
        connection.close()

    async with asyncio.TaskGroup() as group:
        for worker in range(concurrency):
            group.create_task(work(worker))
    return latencies


def cpu(*processes: psutil.Process) -> float:
    """CPU seconds of processes and their children, all threads, user and system."""
    total = 0.0
    for process in processes:
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system
    return total


def percentiles(latencies: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th of latencies; of a single one, that one."""
    if len(latencies) == 1:
        return latencies[0], latencies[0], latencies[0]
    # Inclusive: of few latencies the other method would make one up that is beyond the slowest.
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return cuts[49], cuts[94], cuts[98]


def of_latencies(
    latencies: Sequence[float], elapsed: float, own: float, mongod: float, memory: int
) -> Measured:
    """What was measured, per request; `own` and `mongod` are CPU seconds, `elapsed` seconds."""
    count = len(latencies)
    return Measured(
        own / count * 1e6,
        mongod / count * 1e6,
        *percentiles(latencies),
        count / elapsed,
        memory / 1e6,
    )


async def measure(
    port: int,
    server: psutil.Process,
    mongod: psutil.Process,
    request: Request,
    seconds: float,
    concurrency: int,
    prefix: str = "",
) -> Measured:
    """One scenario, one round."""
    before = cpu(server), cpu(mongod)
    begun = time.perf_counter()
    latencies = await load(port, request, seconds, concurrency, prefix)
    elapsed = time.perf_counter() - begun
    used = cpu(server) - before[0], cpu(mongod) - before[1]
    return of_latencies(latencies, elapsed, *used, server.memory_info().rss)


def driver_alone(
    uri: str,
    mongod: psutil.Process,
    scenario: str,
    targets: Mapping[str, Any],
    seconds: float,
    concurrency: int,
) -> Measured:
    """The same work on the database by the driver alone, in a process of its own (yardsticks.py)."""
    program = Path(__file__).with_name("yardsticks.py")
    command = [sys.executable, program, uri, str(mongod.pid), scenario, str(seconds), str(concurrency)]
    done = subprocess.run(command, check=True, input=json.dumps(targets).encode(), stdout=subprocess.PIPE)
    return of_latencies(**json.loads(done.stdout))


def median(measured: Sequence[Measured]) -> Measured:
    """The median of each figure over the rounds."""
    return Measured(*(statistics.median(getattr(one, name) for one in measured) for name in FIGURES))


def ratios(some: Sequence[Measured], others: Sequence[Measured]) -> dict[str, float]:
    """Of each figure the median of the rounds' own ratios: a slow moment hits both of a pair."""
    paired = list(zip(some, others, strict=True))
    return {
        name: statistics.median(
            getattr(one, name) / getattr(other, name) if getattr(other, name) else float("nan")
            for one, other in paired
        )
        for name in FIGURES
    }


@contextmanager
def mongod() -> Generator[Mongod]:
    """A real single-node replica set in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory() as data_dir, Mongod.start(Path(data_dir)) as running:
        yield running


@contextmanager
def process(
    command: Sequence[object], environment: Mapping[str, str], port: int
) -> Generator[psutil.Process]:
    """A server process, from when it listens until it is stopped; its log goes to a file, as in earnest."""
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(
            [str(part) for part in command], env={**os.environ, **environment}, stdout=log, stderr=log
        )
        try:
            asyncio.run(listening(port))
            yield psutil.Process(started.pid)
        finally:
            started.terminate()
            started.wait()


@contextmanager
def serve(
    uri: str, command: Sequence[object] = SERVE, **settings: str
) -> Generator[tuple[psutil.Process, int]]:
    """A real `serve` on a database; yields its process and its port."""
    port = free_port()
    environment = {
        "MONGODB_URI": uri,
        "MONGODB_DATABASE": DATABASE,
        "API_KEYS": KEY,
        "PORT": str(port),
        "RATE_LIMIT_PER_MINUTE": "100000000",
        **settings,
    }
    with process(command, environment, port) as started:
        yield started, port


async def listening(port: int) -> None:
    """Return when a port is listened on; TimeoutError after two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise TimeoutError("the server did not come up")


def settled(server: psutil.Process, workers: int) -> None:
    """Return when every worker of a server has started and none is busy; TimeoutError after two minutes."""
    deadline = time.monotonic() + 120
    used, interval = cpu(server), 0.5
    while time.monotonic() < deadline:
        time.sleep(interval)
        before, used = used, cpu(server)
        # A single one is the process itself; over several there is one that starts them again.
        if used - before < 0.02 * interval and (workers == 1 or len(server.children()) >= workers):
            return
    raise TimeoutError("the workers did not come to rest")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
