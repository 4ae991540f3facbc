"""One command, started under a guard: the run's side of ``guard``."""

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, cast

from claude_projects.plan import PROMPT_PLACEHOLDER, Definition
from claude_projects.text import printable

_ERROR_TAIL = 4000  # characters of the error output that go into an error message


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for a signal, None where there is none."""

    status: int | None
    trouble: str | None = None

    @property
    def well(self) -> bool:
        """Whether it ended with exit status 0."""
        return self.status == 0

    def __str__(self) -> str:
        if self.status is None:
            return self.trouble or "the command could not be started"
        if self.status >= 0:
            return f"exit code {self.status}"
        with contextlib.suppress(ValueError):
            return f"ended by {Signals(-self.status).name}"
        return f"ended by signal {-self.status}"


class Child:
    """A running command. ``tick`` it every second, or the guard holds it."""

    def __init__(
        self,
        task: Definition,
        *,
        prompt_file: Path,
        out: Path,
        err: Path,
        environment: dict[str, str],
        freeze_after: float,
    ) -> None:
        argv, stdin = arguments(task, prompt_file)
        self._guard = subprocess.Popen(  # noqa: S603 - our own file, in our own interpreter
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._guard.stdin is None or self._guard.stdout is None:
            raise RuntimeError("a pipe is missing")
        self._commands, self._answers = self._guard.stdin, self._guard.stdout
        self.pid: int | None = None
        """The command's process id, which is that of its group; None until it has been started."""
        self._unread = b""
        self._ended: Ended | None = None
        order: dict[str, Any] = {
            "command": argv,
            "stdin": str(stdin),
            "stdout": str(out),
            "stderr": str(err),
            "environment": environment,
            "freeze_after": freeze_after,
        }
        self._send(json.dumps(order).encode() + b"\n")

    @property
    def answers(self) -> int | None:
        """A file descriptor that is readable when there is news; None when the end is known."""
        return None if self._answers.closed else self._answers.fileno()

    def tick(self) -> None:
        """Tell the guard that this process lives and that the work is its own."""
        self._send(b".")

    def interrupt(self) -> None:
        """Pass on SIGINT to the command's process group."""
        self._send(b"i")

    def terminate(self) -> None:
        """Pass on SIGTERM to the command's process group."""
        self._send(b"t")

    def kill(self) -> Ended:
        """Kill the command and everything that it has started, and wait until that is done."""
        self._send(b"k")
        while (ended := self.ended(1.0)) is None:
            pass
        return ended

    def ended(self, patience: float = 0.0) -> Ended | None:
        """How the command ended, None while it runs; waits up to ``patience`` seconds for news."""
        if self._ended is None and select.select([self._answers], [], [], patience)[0]:
            received = os.read(self._answers.fileno(), 65536)
            if received:
                *lines, self._unread = (self._unread + received).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            else:
                # The guard ended without a word. It takes its descendants with it, unless it was killed
                # outright.
                if self.pid is not None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.pid, 9)
                self._ended = Ended(None, "the guard of the command was killed")
        if self._ended is not None and self._guard.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                self._commands.close()
            self._guard.wait()
            self._answers.close()
        return self._ended

    def _take(self, answer: dict[str, Any]) -> None:
        if "pid" in answer:
            self.pid = answer["pid"]
        elif "error" in answer:
            self._ended = Ended(None, f"the command could not be started: {answer['error']}")
        elif "status" in answer:
            self._ended = Ended(answer["status"])

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, and ``ended`` says so
            self._commands.write(message)
            self._commands.flush()


def arguments(task: Definition, prompt_file: Path) -> tuple[str | list[str], Path]:
    """The command of a task, and the file that is its standard input.

    A prompt takes the place of ``{prompt}`` in the command's words; where the command does not have it, the
    prompt is written to ``prompt_file`` and comes on standard input. In a string for the shell it is not
    put into the text, where it would be read as shell; ``{prompt}`` becomes ``"$CLAUDE_PROJECTS_PROMPT"``,
    see ``environment_of``.
    """
    if task.prompt is None:
        return task.command, Path(os.devnull)
    if isinstance(task.command, str):
        if PROMPT_PLACEHOLDER in task.command:
            return task.command.replace(PROMPT_PLACEHOLDER, '"$CLAUDE_PROJECTS_PROMPT"'), Path(os.devnull)
    elif any(PROMPT_PLACEHOLDER in word for word in task.command):
        return [word.replace(PROMPT_PLACEHOLDER, task.prompt) for word in task.command], Path(os.devnull)
    prompt_file.write_text(task.prompt, encoding="utf-8")
    return task.command, prompt_file


def environment_of(task: Definition, session_id: str | None, task_id: str | None) -> dict[str, str]:
    """What a command finds in its environment beside what the run has: its ids and its prompt."""
    known = {
        "CLAUDE_PROJECTS_SESSION_ID": session_id,
        "CLAUDE_PROJECTS_TASK_ID": task_id,
        "CLAUDE_PROJECTS_TASK_NAME": task.name,
        "CLAUDE_PROJECTS_PROMPT": task.prompt,
    }
    return {name: value for name, value in known.items() if value is not None}


def tail(path: Path, start: int) -> str:
    """The end of a log from byte ``start`` on, as text that anybody can store and show."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 4 * _ERROR_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return printable(text)[-_ERROR_TAIL:]


def claude_result(path: Path, start: int) -> dict[str, Any] | None:
    """What ``claude -p --output-format json`` says of its work, None where the output is something else."""
    with contextlib.suppress(OSError, ValueError):
        with path.open("rb") as file:
            file.seek(start)
            said: Any = json.loads(file.read(4 * 1024 * 1024))
        if isinstance(said, dict) and cast("dict[str, Any]", said).get("type") == "result":
            return cast("dict[str, Any]", said)
    return None


def figures(said: dict[str, Any]) -> dict[str, Any]:
    """What is kept of claude's report, as far as it is what it should be."""
    kept = {name: said[name] for name in ("num_turns", "total_cost_usd", "duration_ms") if name in said}
    numbers = {
        name: one
        for name, one in kept.items()
        if isinstance(one, int | float) and abs(one) < 2**53 and not isinstance(one, bool)
    }
    session_id = said.get("session_id")
    return {"session_id": printable(session_id)[:200], **numbers} if isinstance(session_id, str) else numbers
