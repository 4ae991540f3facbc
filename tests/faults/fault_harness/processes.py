"""Processes that can be killed, suspended and started again, and never outlive the harness."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Proc:
    """A process by the name of its place; each start of it goes on in the same log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        log: Path,
        cwd: Path | None = None,
    ) -> None:
        self.name, self.log = name, log
        self._command, self._environment, self._cwd = list(command), dict(environment), cwd
        self._process: subprocess.Popen[bytes] | None = None
        self.suspended = False

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it makes one system call
            )
        self.suspended = False

    @property
    def pid(self) -> int:
        """Its process id, 0 before the first start."""
        return 0 if self._process is None else self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs, and before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self.runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def suspend(self) -> None:
        """SIGSTOP."""
        self.suspended = True
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.suspended = False
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self.runs:
            self._process.kill()
            self._process.wait()

    async def ended(self, seconds: float) -> int | None:
        """Wait for its end for at most so many seconds; its exit code, None where it still runs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.runs:
                    await asyncio.sleep(0.05)
        return self.code

    def words(self) -> str:
        """The last of what it has written."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


async def until(look: Callable[[], bool], what: str, seconds: float, every: float = 0.05) -> None:
    """Wait until `look` is true; AssertionError naming `what` where that takes too long."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not look():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(every)
