"""A real redis-server of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

import redis
from ports import free_port

from api_harness.server import wait_until

INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends", "redis-server")


def find_redis() -> str:
    """The redis-server to run; installs Debian's where there is none and we may.

    Raises AssertionError where there is none and it cannot be installed.
    """
    found = shutil.which("redis-server")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        subprocess.run(
            INSTALL, check=True, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        )
        found = shutil.which("redis-server")
    assert found, "redis-server is needed: apt-get install redis-server"
    return found


class RedisServer:
    """One redis-server on the loopback address, without persistence; can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._binary = find_redis()
        self._directory = directory
        self.port = free_port()
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and return when it answers."""
        self._process = subprocess.Popen(
            [
                self._binary,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
                *("--dir", str(self._directory)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, "redis-server answers")
        return self

    def kill(self) -> None:
        """SIGKILL; its counters are gone with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, answers stay away."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, "redis-server has ended"
        with suppress(redis.ConnectionError), redis.Redis(port=self.port) as client:
            return bool(client.ping())
        return False
