"""The real API as a process that can be killed and brought back on the same port."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from ports import free_port

from client_harness.waiting import until

KEY = "7f6c2f2e-6b0c-4a3e-9f57-1d2c3b4a5e6f"


class Server:
    """``state-tracking-api serve`` on a database of its own."""

    def __init__(self, uri: str, database: str, log: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._environment = {
            **os.environ,
            "MONGODB_URI": uri,
            "MONGODB_DATABASE": database,
            "API_KEYS": f"tests={KEY}",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "RATE_LIMIT_PER_MINUTE": "100000",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers from its database."""
        with self.log.open("ab") as log:
            command = [str(Path(sys.executable).with_name("state-tracking-api")), "serve"]
            self._process = process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

        # One client for all attempts: making one reads the system's certificates, and a loop of that starves
        # the very server that it waits for.
        with httpx.Client(base_url=self.url, headers={"X-API-Key": KEY}, timeout=60) as asking:

            def answers() -> bool:
                assert process.poll() is None, f"the server has ended: {self.log.read_text()[-2000:]}"
                try:
                    return asking.get("/api/sessions").is_success
                except httpx.HTTPError:
                    return False

            until(answers, "the server to answer")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            process.wait(60)
        finally:
            process.kill()  # nothing that has ended; what has not must not outlive the test
            process.wait()
