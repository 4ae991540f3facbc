"""The embedded mongod and `dev`: data stays, nobody shares it, nothing is left behind."""

from __future__ import annotations

import importlib.resources
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from ports import free_port
from pymongo import MongoClient

from api_harness.server import clean_environment, wait_until
from state_tracking_api import cli, embedded
from state_tracking_api.embedded import EmbeddedError, Mongod
from state_tracking_api.settings import load

COMMAND = Path(sys.executable).with_name("state-tracking-api")


class Dev:
    """One running `state-tracking-api dev`."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir
        self.base_url = f"http://127.0.0.1:{port}"
        self.output = data_dir.with_suffix(".log").open("a+")
        self.process = subprocess.Popen(
            [COMMAND, "dev", "--data-dir", data_dir],
            env=clean_environment({"PORT": str(port), "RATE_LIMIT_PER_MINUTE": "10000"}),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    @property
    def key(self) -> str:
        """The key that it has made."""
        return (self.data_dir / "api-key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        """What a request with the key carries."""
        return {"X-API-Key": self.key}

    def healthy(self) -> bool:
        """Whether it answers and its database does."""
        assert self.process.poll() is None, self.output_so_far()
        try:
            return httpx.get(f"{self.base_url}/health/detailed", headers=self.headers).status_code == 200
        except (httpx.TransportError, FileNotFoundError):
            return False

    def mongod(self) -> psutil.Process:
        """Its database."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() == "mongod")

    def output_so_far(self) -> str:
        """What it has printed."""
        self.output.seek(0)
        return self.output.read()


@contextmanager
def dev(data_dir: Path) -> Generator[Dev]:
    """A `dev` that answers; stopped with SIGTERM at the end, where it still runs."""
    running = Dev(data_dir, free_port())
    try:
        wait_until(running.healthy, "dev answers", 60)
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            assert running.process.wait(20) == 0
        running.output.close()


def gone(process: psutil.Process) -> bool:
    """Whether the process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_greeting_has_an_address_and_a_key_that_work(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as running:
        printed = running.output_so_far()
        assert f"{running.base_url}/dashboard#key={running.key}" in printed
        answer = httpx.get(f"{running.base_url}/api/sessions", headers=running.headers)
        assert answer.status_code == 200


def test_data_and_key_survive_a_restart(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as first:
        created = httpx.post(
            f"{first.base_url}/api/sessions",
            headers=first.headers,
            json={"project_id": "p", "machine_id": "m"},
        ).json()
        key = first.key
    with dev(tmp_path / "data") as second:
        assert second.key == key
        path = f"{second.base_url}/api/sessions/{created['session_id']}"
        assert httpx.get(path, headers=second.headers).json()["created_at"] == created["created_at"]


def test_sigterm_stops_the_database_too(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as running:
        mongod = running.mongod()
        running.process.terminate()
        assert running.process.wait(20) == 0
        assert gone(mongod)


def test_a_second_dev_on_the_same_data_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as first:
        second = subprocess.run(
            [COMMAND, "dev", "--data-dir", tmp_path / "data"],
            env=clean_environment({"PORT": str(free_port())}),
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"in use by another process (pid {first.process.pid})" in second.stderr
        assert first.healthy()


def test_sigkill_leaves_no_orphan_and_no_lock(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as first:
        mongod = first.mongod()
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        # At once, while the old database may still be going down: it is waited for.
        with dev(tmp_path / "data") as second:
            wait_until(lambda: gone(mongod), "the orphan has ended")
            assert second.healthy()


def test_a_database_that_was_killed_starts_again(tmp_path: Path) -> None:
    with Mongod.start(tmp_path) as first, MongoClient(first.uri) as client:
        client["db"]["things"].insert_one({"_id": 1})
        os.kill(first.pid, signal.SIGKILL)
    with Mongod.start(tmp_path) as second, MongoClient(second.uri) as client:
        assert client["db"]["things"].count_documents({}) == 1
        with client.start_session() as session, session.start_transaction():
            client["db"]["things"].insert_one({"_id": 2}, session=session)


def test_a_port_that_is_taken_is_told_in_one_sentence(tmp_path: Path) -> None:
    with dev(tmp_path / "data") as first:
        port = first.base_url.rpartition(":")[2]
        second = subprocess.run(
            [COMMAND, "dev", "--data-dir", tmp_path / "other"],
            env=clean_environment({"PORT": port}),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 1
        assert second.stderr.startswith(f"Cannot listen on 127.0.0.1:{port}")


def test_without_any_mongod_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    def missing(_package: str) -> None:
        raise ModuleNotFoundError

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(EmbeddedError, match=r"install MongoDB 6\.0 or newer"):
        embedded.find_mongod()


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "echo 'libcrypto.so.3: cannot open shared object file' >&2; exit 127",
            "libcrypto.so.3: cannot open",
        ),
        ("kill -ILL $$", "need AVX"),
        ("exit 14", "ended with exit code 14; its log is "),
    ],
)
def test_a_mongod_that_cannot_run_here_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, sentence: str
) -> None:
    stand_in(monkeypatch, tmp_path, script)
    with pytest.raises(EmbeddedError, match=re.escape(sentence)):
        Mongod.start(tmp_path / "data")


def test_a_free_port_that_was_taken_in_the_meantime_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = embedded.find_mongod()
    once = tmp_path / "once"
    stand_in(monkeypatch, tmp_path, f'test -e {once} || {{ touch {once}; exit 48; }}; exec {real} "$@"')
    with Mongod.start(tmp_path / "data") as running, MongoClient(running.uri) as client:
        assert client.admin.command("ping")["ok"] == 1


def stand_in(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Put a mongod of this shell script first on PATH."""
    program = directory / "bin" / "mongod"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def test_a_key_file_left_empty_by_a_crash_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "api-key").touch()
    with dev(tmp_path / "data") as running:
        assert uuid.UUID(running.key).version == 4


def test_the_greeting_has_an_address_that_can_be_opened(capsys: pytest.CaptureFixture[str]) -> None:
    for host, address in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("box", "box")):  # noqa: S104
        cli._greet(load(mongodb_uri="mongodb://x", api_keys=str(uuid.uuid4()), host=host, port=3000), "key")
        assert f"http://{address}:3000/dashboard" in capsys.readouterr().out
