"""How long the function takes from the start of its process to its first answer, and what its imports cost.

    make bench-lambda

The package is built for this machine's architecture with the function's own Python where that is here; the
database is a real mongod that has been set up before, as in production. Lambda's CPU at 512 MB is not this
machine's: the figures compare changes, they do not foretell AWS.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "packages/state-tracking-api/tests"), str(ROOT / "infra")]

import package as packaging  # noqa: E402

from aws.lambda_harness import KEY, Function, Package, http_event  # noqa: E402
from state_tracking_api.embedded import Mongod  # noqa: E402

RUNS = 10
REQUESTS = {
    "GET /health": http_event("GET", "/health"),
    "POST /api/sessions": http_event(
        "POST", "/api/sessions", {"project_id": "p", "machine_id": "m"}, headers={"X-API-Key": KEY}
    ),
}


def main() -> None:
    """Build, start ten times for each kind of first request, print a table; then the imports of one start."""
    version = packaging.PYTHON
    interpreter = packaging.interpreter(version)
    with tempfile.TemporaryDirectory() as folder, Mongod.start(Path(folder) / "mongod") as mongod:
        work = Path(folder)
        packaging.build(work / "bundle", version, f"{os.uname().machine}-manylinux_2_28")
        install = [packaging.uv(), "pip", "install", "--quiet", "--target", str(work / "runtime")]
        lock = str(ROOT / "infra/requirements-runtime.lock")
        packaging.run([*install, "--python-version", version, "--require-hashes", "--requirement", lock])
        secrets = {"MONGODB_URI": mongod.uri, "API_KEYS": KEY, "ALARM_EMAIL": "operator@example.com"}
        graph = subprocess.check_output(
            ["node", "infra/testing/evaluate.mjs", "prod", "--work", str(work)],
            cwd=ROOT,
            env={**os.environ, **secrets, "LAMBDA_BUNDLE": str(work / "bundle")},
        )
        package = Package(work / "artifacts/Server/code.zip", json.loads(graph))
        root = package.extract(work / "task")
        environment = {**package.function["environment"]["variables"], "RATE_LIMIT_PER_MINUTE": "100000"}

        def start(**more: str) -> Function:
            runtime, handler = work / "runtime", package.function["handler"]
            return Function(interpreter, root, runtime, handler, {**environment, **more})

        with start() as first:  # sets the database up
            first.invoke(http_event("GET", "/health"))
        size = package.archive.stat().st_size / 1e6
        print(
            f"Python {version}, zip {size:.1f} MB, {os.cpu_count()} cores; milliseconds, {RUNS} starts each\n"
        )
        print(f"{'first request':<22}{'median':>8}{'min':>8}{'max':>8}")
        for name, event in REQUESTS.items():
            taken: list[float] = []
            for number in range(RUNS):
                with start(MONGODB_DATABASE="claude-projects") as function:
                    if "body" in event:
                        event["body"] = json.dumps(
                            {"project_id": "p", "machine_id": f"{name}-{number}-{os.getpid()}"}
                        )
                    seconds = function.first(event)
                    taken.append(seconds * 1000)
            print(f"{name:<22}{statistics.median(taken):>8.0f}{min(taken):>8.0f}{max(taken):>8.0f}")
        with start(PYTHONPROFILEIMPORTTIME="1") as function:
            function.invoke(http_event("GET", "/health"))
            print("\n" + breakdown(function.log))


def breakdown(log: str) -> str:
    """Milliseconds by top-level package, its own modules' time only, from Python's -X importtime."""
    own: dict[str, float] = {}
    for micros, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", log):
        top = name.split(".")[0]
        own[top] = own.get(top, 0.0) + int(micros) / 1000
    total = sum(own.values())
    rows = sorted(own.items(), key=lambda item: -item[1])[:20]
    lines = [f"{name:<26}{value:>7.1f}" for name, value in rows]
    return "\n".join([f"{'imports, own time':<26}{total:>7.1f}", *lines])


if __name__ == "__main__":
    main()
