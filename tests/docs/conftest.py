"""The service that the documents' commands are run against."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "bench"))

from docs_harness import KEY, FirstTerminal, environment, until
from ports import free_port

from state_tracking_api.embedded import Mongod


@pytest.fixture(scope="module")
def service(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`serve`; the value is the environment of whoever runs the commands, the server's own included."""
    directory = tmp_path_factory.mktemp("service")
    port = free_port()
    server = {
        "MONGODB_URI": mongod.uri,
        "MONGODB_DATABASE": "documents",
        "API_KEYS": f"reader={KEY}",
        "RATE_LIMIT_PER_MINUTE": "100000",
    }
    ours = environment(
        directory,
        CLAUDE_PROJECTS_URL=f"http://127.0.0.1:{port}",
        CLAUDE_PROJECTS_API_KEY=KEY,
        **server,
    )
    command = [str(Path(sys.executable).with_name("state-tracking-api")), "serve"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=ours | {"PORT": str(port)}, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (directory / "log").read_text()[-2000:]
        try:
            return asking.get(f"http://127.0.0.1:{port}/api/sessions").is_success
        except httpx.HTTPError:
            return False

    try:
        with httpx.Client(headers={"X-API-Key": KEY}, timeout=10) as asking:
            until(answers, "the service to answer")
        # The pages take it for granted that there is something to look at.
        session = {"project_id": "documents", "machine_id": "reader"}
        url, headers = f"http://127.0.0.1:{port}/api/sessions", {"X-API-Key": KEY}
        httpx.post(url, json=session, headers=headers, timeout=30).raise_for_status()
        yield ours
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def first_terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstTerminal]:
    """The terminal in which the service runs."""
    terminal = FirstTerminal(tmp_path_factory.mktemp("checkout"), free_port())
    try:
        yield terminal
    finally:
        terminal.stop()
