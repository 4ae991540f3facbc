"""The command line as a user has it: a process, its output, its signals."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from client_harness.server import KEY
from client_harness.waiting import until


@dataclass
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its output, decoded."""
        return json.loads(self.out)


class Running:
    """A command that is at work."""

    def __init__(self, process: "subprocess.Popen[bytes]", out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        """What it has written so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has complained about so far."""
        return self._err.read_text()

    def signal(self, number: int) -> None:
        """Send a signal to the process alone, not to its children."""
        self.process.send_signal(number)

    def finish(self, deadline: float = 120.0) -> Finished:
        """Wait for its end."""
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.out}\n{self.err}") from None
        return Finished(code, self.out, self.err)

    def children(self) -> list[psutil.Process]:
        """Everything that it has started, as of now."""
        return psutil.Process(self.process.pid).children(recursive=True)


@dataclass
class Machine:
    """Somebody's computer: a directory to work in, a state directory, an address of the API, a machine id."""

    home: Path
    url: str
    machine_id: str
    key: str = KEY
    environment: dict[str, str] = field(default_factory=dict[str, str])
    started: list[Running] = field(default_factory=list[Running])

    @property
    def work(self) -> Path:
        """The directory that commands are run in."""
        path = self.home / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start(self, *arguments: str, hangup: signal.Handlers = signal.SIG_DFL) -> Running:
        """Start ``claude-projects`` with these arguments.

        ``hangup`` is what SIGHUP does when it starts: nohup, under which the tests themselves may be run,
        ignores it.
        """
        out = self.home / f"{len(self.started)}.out"
        err = self.home / f"{len(self.started)}.err"
        self.work.mkdir(parents=True, exist_ok=True)
        with out.open("wb") as stdout, err.open("wb") as stderr:
            before = signal.signal(signal.SIGHUP, hangup)
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("claude-projects")), *arguments],
                cwd=self.work,
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
            signal.signal(signal.SIGHUP, before)
        running = Running(process, out, err)
        self.started.append(running)
        return running

    def do(self, *arguments: str, deadline: float = 120.0) -> Finished:
        """Run ``claude-projects`` with these arguments to its end."""
        return self.start(*arguments).finish(deadline)

    def variables(self) -> dict[str, str]:
        """The environment of its commands."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("CLAUDE_PROJECTS_")},
            "HOME": str(self.home),
            "CLAUDE_PROJECTS_STATE_DIR": str(self.home / "state"),
            "CLAUDE_PROJECTS_CONFIG": str(self.home / "config.toml"),
            "CLAUDE_PROJECTS_URL": self.url,
            "CLAUDE_PROJECTS_API_KEY": self.key,
            "CLAUDE_PROJECTS_MACHINE_ID": self.machine_id,
            "CLAUDE_PROJECTS_HEARTBEAT_SECONDS": "0.5",
            **self.environment,
        }

    def plan(self, text: str, name: str = "plan.toml") -> str:
        """Write a plan file; the answer is its path."""
        path = self.home / name
        path.write_text(text)
        return str(path)

    def effects(self, name: str = "effects") -> list[str]:
        """The lines that commands have appended to a file in the working directory."""
        path = self.work / name
        return path.read_text().split() if path.exists() else []

    def await_effect(self, line: str) -> None:
        """Wait until a command has appended ``line``."""
        until(lambda: line in self.effects(), f"the effect {line!r}, output: {[r.err for r in self.started]}")

    def clear(self) -> None:
        """End whatever still runs."""
        for running in self.started:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGCONT)
                running.process.kill()
                running.process.wait(60)
