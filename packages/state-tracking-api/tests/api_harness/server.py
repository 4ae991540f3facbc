"""`state-tracking-api serve` as a process of its own, started, watched and stopped by whoever tests it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from ports import free_port

Found = TypeVar("Found")

COMMAND = Path(sys.executable).with_name("state-tracking-api")
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of servers that speak plain HTTP: httpx would read every certificate of the system for each."""
EXIT_SECONDS = 10.0
"""SIGTERM ends a server within this time."""

SETTINGS = (
    "MONGODB_URI",
    "MONGODB_DATABASE",
    "API_KEYS",
    "HOST",
    "PORT",
    "ENVIRONMENT",
    "LOG_LEVEL",
    "STALL_THRESHOLD_MS",
    "STALL_SCAN_INTERVAL_SECONDS",
    "RETENTION_DAYS",
    "RATE_LIMIT_PER_MINUTE",
    "RATE_LIMIT_STORAGE_URI",
    "REQUEST_TIMEOUT_MS",
    "DB_TIMEOUT_MS",
    "CORS_ORIGINS",
    "SCHEDULER",
)


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with only those of the server's variables that `settings` names."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return inherited | dict(settings)


def wait_until(probe: Callable[[], Found | None], what: str, seconds: float = 20.0) -> Found:
    """Call `probe` until its answer is true and return that; AssertionError naming `what` otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def run(
    *arguments: str, environment: Mapping[str, str | None] | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `state-tracking-api` with `arguments` to its end, which must come within `seconds`."""
    chosen = {name: value for name, value in (environment or {}).items() if value is not None}
    return subprocess.run(
        [COMMAND, *arguments],
        check=False,
        env=clean_environment(chosen),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


class Server:
    """One running `serve`: its address, its key, its log lines, and its end.

    Args:
        environment: the server's variables on top of `defaults`; a value of None leaves the variable out.
    """

    def __init__(self, **environment: str | None) -> None:
        self.port = free_port()
        self.key = str(uuid.uuid4())
        defaults = {
            "API_KEYS": f"tests={self.key}",
            "PORT": str(self.port),
            "SCHEDULER": "off",
            "RATE_LIMIT_PER_MINUTE": "1000000",
        }
        chosen = {name: value for name, value in (defaults | environment).items() if value is not None}
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.lines: list[dict[str, Any]] = []
        self.other_output: list[str] = []
        self.errors: list[str] = []
        self._new_line = threading.Condition()
        self.process = subprocess.Popen(
            [COMMAND, "serve"],
            env=clean_environment(chosen),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read_log, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @classmethod
    def start(cls, **environment: str | None) -> Self:
        """Start a server and return when its /health answers 200."""
        server = cls(**environment)
        try:
            server.wait_until_healthy()
        except BaseException:
            server.kill()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_healthy(self) -> None:
        """Return when /health answers 200; AssertionError with the server's own words if it ends before."""
        # One client for all tries: making one takes far more processor time than asking does.
        with httpx.Client(timeout=5, verify=NO_TLS, trust_env=False) as client:

            def healthy() -> bool:
                code = self.process.poll()
                assert code is None, f"serve ended with {code}: {''.join(self.errors)} {self.other_output}"
                try:
                    return client.get(f"{self.base_url}/health").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(healthy, "/health answers 200", seconds=60)

    def accepts(self) -> bool:
        """Whether it answers a new connection."""
        try:
            health = httpx.get(f"{self.base_url}/health", timeout=5, verify=NO_TLS, trust_env=False)
        except httpx.TransportError:
            return False
        return health.status_code == 200

    def line_where(
        self, matches: Callable[[dict[str, Any]], bool], what: str, seconds: float = 20.0
    ) -> dict[str, Any]:
        """The first log line, past or to come, that `matches`; AssertionError with the lines otherwise."""
        deadline = time.monotonic() + seconds
        seen = 0
        with self._new_line:
            while True:
                for line in self.lines[seen:]:
                    if matches(line):
                        return line
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"no log line within {seconds} s: {what}; there were {self.lines}")
                self._new_line.wait(left)

    def stop(self) -> None:
        """SIGTERM; asserts exit code 0 within the promised time, and silence on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.assert_clean_exit()

    def assert_clean_exit(self) -> None:
        """Wait for the end that somebody else has asked for, and assert that it was a clean one."""
        try:
            code = self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired as late:
            self.kill()
            raise AssertionError(f"serve was still running {EXIT_SECONDS} s after SIGTERM") from late
        self._join()
        assert code == 0, f"serve ended with {code}: {''.join(self.errors)}"
        assert not self.errors, f"standard error: {''.join(self.errors)}"
        assert not self.other_output, f"not JSON on standard output: {self.other_output}"

    def kill(self) -> None:
        """SIGKILL, without a question."""
        self.process.kill()
        self.process.wait()
        self._join()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def _read_log(self) -> None:
        assert self.process.stdout
        for text in self.process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            with self._new_line:
                if isinstance(line, dict):
                    self.lines.append(line)
                else:
                    self.other_output.append(text)
                self._new_line.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr
        for text in self.process.stderr:
            self.errors.append(text)
