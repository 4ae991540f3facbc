"""How long a start takes, from the process's start to its first answer, and what is imported on the way.

    .venv/bin/python bench/startup.py [--times 10] [--against CHECKOUT]

A real `serve` is started against a real mongod, again and again, and asked for /health until it answers. By
turns with it come an empty Python, which tells what the product adds, and a Python that imports the server's
modules and nothing else, which is the least that a start can take. `--against` adds another checkout of this
project, such as an older version, run by the same Python with the same packages. The import profile is
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
from pathlib import Path

import bench_harness
from bench_harness import KEY
from state_tracking_api.embedded import free_port

IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| (\s*)([\w.]+)")
HERE = Path(__file__).resolve().parent.parent
SOURCES = Path("packages/state-tracking-api/src")
# Without the way out, on which everything is taken down again.
IMPORT = "import os, state_tracking_api.cli, state_tracking_api.server; os._exit(0)"
SERVE = "from state_tracking_api.cli import main; main()"
ASK = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def first_answer(uri: str, sources: Path) -> tuple[float, float]:
    """Start a server; milliseconds until its first answer, and CPU milliseconds of its whole short life."""
    port = free_port()
    environment = _environment(sources) | {"MONGODB_URI": uri, "API_KEYS": KEY, "PORT": str(port)}
    begun = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve"], env=environment, stdout=subprocess.DEVNULL
    )
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


def python(code: str, sources: Path) -> float:
    """Milliseconds that a Python takes from start to end which does no more than `code`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=_environment(sources), check=True)
    return (time.perf_counter() - begun) * 1000


def _environment(sources: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(sources), "SCHEDULER": "off"}


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
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    options = parser.parse_args()
    checkouts = [HERE, *([options.against.resolve()] if options.against else [])]
    rows: list[tuple[float, float, float, float, float]] = []
    with bench_harness.mongod() as mongod:
        for turn in range(options.times + 1):
            (took, cpu), (before, _) = (
                first_answer(mongod.uri, checkout / SOURCES) for checkout in (checkouts[0], checkouts[-1])
            )
            row = (took, cpu, before, python("pass", HERE), python(IMPORT, HERE / SOURCES))
            if turn:  # in the first, collections and indexes are made, and byte code is written
                rows.append(row)
    took, cpu, before, empty, importing = (list(column) for column in zip(*rows, strict=True))
    print(f"first answer after: median {statistics.median(took):.0f} ms, best {min(took):.0f} ms")
    print(f"CPU of a start and stop: median {statistics.median(cpu):.0f} ms")
    print(f"ratio to an empty Python: median {_ratio(took, empty):.1f}")
    print(f"ratio to the imports alone: median {_ratio(took, importing):.2f}")
    if options.against:
        print(f"ratio to {options.against}: median {_ratio(took, before):.2f}")
    found = imports()
    print(f"\nimports: {sum(ms for _, ms in found):.0f} ms in all, of them")
    print(bench_harness.table(["package", "ms"], [[name, f"{ms:.1f}"] for name, ms in found[:20]]))


def _ratio(some: list[float], others: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


if __name__ == "__main__":
    main()
