"""Where the processor time of one request goes: a sampling profile of the server under load.

    .venv/bin/python bench/hotspots.py [--scenario heartbeat] [--concurrency 2] [--seconds 10]
                                       [--flamegraph FILE.svg]

A real `serve` on a real mongod is sent one kind of request, again and again, while py-spy looks a few hundred
times a second at what it is doing. py-spy is run by uv, which fetches it from PyPI the first time; it reads
the memory of another process, for which Linux asks for root or a `kernel.yama.ptrace_scope` of 0. A sample
counts for the innermost function that belongs to one of the parts below, so that what a part asks the
standard library to do is its own. Two at once is the most at which no heartbeats share a round trip.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import bench_harness
import scenarios
import speed
from bench_harness import Measured

SAMPLER = ("uv", "tool", "run", "py-spy==0.4.1")
SAMPLES_PER_SECOND = 250
DEAREST = 20

EVENT_LOOP = "event loop"
ELSE = "the rest"
# The first whose words are in the name of the file counts.
PARTS = {
    EVENT_LOOP: ("/uvicorn/_compat.py",),  # what starts it, and is left where no function of a part is
    "driver (PyMongo)": ("/pymongo/", "/bson/"),
    "HTTP and the connections (uvicorn)": ("/uvicorn/", "state_tracking_api/server.py"),
    "log lines": ("/structlog/", "/logging/", "state_tracking_api/log.py"),
    "metrics": ("/prometheus_client/", "state_tracking_api/metrics.py"),
    "rate limit": ("/limits/", "state_tracking_api/ratelimit.py", "state_tracking_api/shared_counters.py"),
    "layers around the routes": ("state_tracking_api/http/middleware.py", "state_tracking_api/auth.py"),
    "routes, validation and answers": ("state_tracking_api/http/", "/pydantic", "/starlette/"),
    "rules and storage": ("state_tracking_api/",),
}


@dataclass(frozen=True)
class Sample:
    """A stack that was seen so many times, each frame as py-spy names it: `function (file:line)`."""

    frames: Sequence[str]
    count: int

    def placed(self) -> tuple[str, str]:
        """The part that it counts for, and the function."""
        for frame in reversed(self.frames):
            function, _, place = frame.partition(" (")
            for part, words in PARTS.items():
                if any(word in place for word in words):
                    file = place.partition(":")[0].rpartition("site-packages/")[2].rpartition("/src/")[2]
                    return part, f"{function} ({file})"
        return ELSE, ELSE


def sampled(stacks: str) -> list[Sample]:
    """What py-spy wrote: a line for each stack, with its count at the end."""
    found: list[Sample] = []
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        found.append(Sample(frames.split(";"), int(count)))
    return found


async def profiled(
    server: psutil.Process, mongod: psutil.Process, port: int, scenario: str, concurrency: int, record: Record
) -> tuple[Measured, list[Sample]]:
    """What a request costs without the profiler, and where that goes with it."""
    request = scenarios.requests(await speed.prepare(port))[scenario]
    await bench_harness.load(port, request, 1.0, concurrency)  # warm up
    cost = await bench_harness.measure(port, server, mongod, request, record.seconds / 2, concurrency)
    recording = asyncio.create_task(asyncio.to_thread(record.of, server.pid))
    while not recording.done():
        await bench_harness.load(port, request, 1.0, concurrency)
    stacks = await recording
    return cost, sampled(stacks)


@dataclass(frozen=True)
class Record:
    """How py-spy is to look."""

    seconds: int
    flamegraph: Path | None

    def of(self, pid: int) -> str:
        """Look at a process for that time; returns the stacks."""
        with tempfile.TemporaryDirectory() as directory:
            stacks = Path(directory) / "stacks"
            self._run(pid, "raw", stacks)
            if self.flamegraph:
                self._run(pid, "flamegraph", self.flamegraph)
            return stacks.read_text()

    def _run(self, pid: int, form: str, output: Path) -> None:
        uv, *rest = SAMPLER
        command = [Path(sys.executable).with_name(uv), *rest, "record", "--pid", pid, "--format", form]
        command += ["--duration", self.seconds, "--rate", SAMPLES_PER_SECOND, "--full-filenames"]
        command += ["--output", output]
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"py-spy cannot look at the server:\n{done.stdout}")


def shown(cost: Measured, samples: list[Sample]) -> str:
    """The parts and the dearest functions, in microseconds of a request and percent."""
    parts: Counter[str] = Counter()
    functions: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        part, function = sample.placed()
        parts[part] += sample.count
        functions[part, function] += sample.count
    total = parts.total()

    def share(count: int) -> list[str]:
        return [f"{count / total * cost.cpu_us:.0f}", f"{count / total:.1%}"]

    by_part = [[part, *share(count)] for part, count in parts.most_common()]
    by_part.append(["in all", *share(total)])
    by_function = [
        [part if part in (EVENT_LOOP, ELSE) else f"`{function}`", *share(count)]
        for (part, function), count in functions.most_common(DEAREST)
    ]
    return "\n\n".join(
        [
            bench_harness.table(["part", "CPU µs", "share"], by_part),
            bench_harness.table(
                ["function, with what it calls outside of the parts", "CPU µs", "share"], by_function
            ),
            f"{total} samples.",
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", choices=speed.SCENARIOS, default="heartbeat")
    parser.add_argument("--concurrency", type=int, default=2, help="requests under way at once")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--flamegraph", type=Path, help="also draw one, from as much time again")
    options = parser.parse_args()
    begun = time.monotonic()
    settings = {"SCHEDULER": "off", "STALL_THRESHOLD_MS": str(speed.PATIENCE_MS)}
    with bench_harness.mongod() as mongod, bench_harness.serve(mongod.uri, **settings) as (server, port):
        record = Record(options.seconds, options.flamegraph)
        database = psutil.Process(mongod.pid)
        cost, samples = asyncio.run(
            profiled(server, database, port, options.scenario, options.concurrency, record)
        )
    print(shown(cost, samples))
    print(f"\n{options.scenario}, {options.concurrency} at once; {time.monotonic() - begun:.0f} s in all.")


if __name__ == "__main__":
    main()
