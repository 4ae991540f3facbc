"""How long a start takes, from the process's start to its first answer, and what is imported on the way.

    .venv/bin/python bench/startup.py [--times 10]

A real `serve` is started against a real mongod, again and again, and asked for /health until it answers. An
empty Python is started by turns with it, so that the ratio tells what the product adds. The import profile is
CPython's own (`-X importtime`), summed up by top-level package.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter

import bench_harness
from bench_harness import COMMAND, KEY
from state_tracking_api.embedded import free_port

IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| (\s*)([\w.]+)")
ASK = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def first_answer(uri: str) -> tuple[float, float]:
    """Start a server; milliseconds until its first answer, and CPU milliseconds of its whole short life."""
    port = free_port()
    environment = {**os.environ, "MONGODB_URI": uri, "API_KEYS": KEY, "PORT": str(port), "SCHEDULER": "off"}
    begun = time.perf_counter()
    server = subprocess.Popen([COMMAND, "serve"], env=environment, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(ASK)
                    if connection.recv(64).startswith(b"HTTP/1.1 200"):
                        break
            except OSError:
                time.sleep(0.002)
        took = (time.perf_counter() - begun) * 1000
    finally:
        server.terminate()
        _, _, usage = os.wait4(server.pid, 0)
        server.returncode = 0
    return took, (usage.ru_utime + usage.ru_stime) * 1000


def empty_python() -> float:
    """Milliseconds that an empty Python takes from start to end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - begun) * 1000


def imports() -> list[tuple[str, float]]:
    """What importing the server costs, milliseconds by top-level package, the dearest first."""
    command = [sys.executable, "-X", "importtime", "-c", "import state_tracking_api.server"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spent: Counter[str] = Counter()
    for micros, _, module in IMPORT_LINE.findall(said):
        spent[module.partition(".")[0]] += int(micros)
    return [(name, micros / 1000) for name, micros in spent.most_common()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    with bench_harness.mongod() as mongod:
        first_answer(mongod.uri)  # collections and indexes are made, and byte code is written
        pairs = [(first_answer(mongod.uri), empty_python()) for _ in range(options.times)]
    took = [answer for (answer, _), _ in pairs]
    print(f"first answer after: median {statistics.median(took):.0f} ms, best {min(took):.0f} ms")
    print(f"CPU of a start and stop: median {statistics.median(cpu for (_, cpu), _ in pairs):.0f} ms")
    ratios = [answer / empty for (answer, _), empty in pairs]
    print(f"ratio to an empty Python: median {statistics.median(ratios):.1f}\n")
    found = imports()
    print(f"imports: {sum(ms for _, ms in found):.0f} ms in all, of them")
    print(bench_harness.table(["package", "ms"], [[name, f"{ms:.1f}"] for name, ms in found[:20]]))


if __name__ == "__main__":
    main()
