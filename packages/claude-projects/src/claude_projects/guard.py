"""The process between ``claude-projects run`` and a task's command: the command never outlives the run.

A run that is killed with SIGKILL cannot stop anything any more, and somebody else will do its work again.
So each command is started by this guard, which holds a pipe to the run: when the pipe breaks, whatever was
the reason, everything that the command has started is killed. The pipe also carries a tick every second.
When the ticks stop (the run is suspended, so it cannot learn that it has been replaced), the command is
suspended too, and goes on with the next tick, which the run sends only after it has asked whether the work
is still its own.

- On every POSIX system the command's process group is killed.
- On Linux the guard is also a "child subreaper": processes that left the group or lost their parents are
  found and killed as well, and where the guard itself is killed, the kernel kills the command
  (PR_SET_PDEATHSIG).

Protocol. Standard input: one line of JSON (the order), then single characters: ``.`` tick, ``i`` SIGINT,
``t`` SIGTERM, ``k`` SIGKILL. Standard output: lines of JSON: ``{"pid": n}`` or ``{"error": "…"}``, at last
``{"status": n}``, which is negative for a signal. This file is run by itself and imports nothing but the
standard library.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SIGNALS = {ord("i"): signal.SIGINT, ord("t"): signal.SIGTERM}
_LEFTOVER_GRACE = 2.0


def main() -> int:
    """Carry out the order that comes on standard input."""
    commands, answers = sys.stdin.fileno(), sys.stdout.fileno()
    order = json.loads(_read_line(commands))
    woken, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    told_to_end: list[int] = []

    def note(number: int, _: object) -> None:
        if number != signal.SIGCHLD:
            told_to_end.append(number)

    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = _start(order)
    except OSError as error:
        _say(answers, {"error": f"{error.filename or order['command']}: {error.strerror or error}"})
        return 0
    except ValueError as error:  # a NUL in a word
        _say(answers, {"error": str(error)})
        return 0
    _say(answers, {"pid": child.pid})
    held, last_tick = False, time.monotonic()
    while child.poll() is None:
        ready = select.select([commands, woken], [], [], 0.5)[0]
        if woken in ready:
            os.read(woken, 4096)
        received = os.read(commands, 4096) if commands in ready else None
        if received == b"" or told_to_end:  # the run is gone, or somebody ends the guard
            _kill_everything(child.pid)
            return 1
        if received:
            last_tick = time.monotonic()
            _obey(received, child.pid)
            if held:
                _signal_group(child.pid, signal.SIGCONT)
                held = False
        elif not held and time.monotonic() - last_tick > order["freeze_after"]:
            _signal_group(child.pid, signal.SIGSTOP)
            held = True
    _end_group(child.pid)
    _say(answers, {"status": child.returncode})
    return 0


def _obey(received: bytes, group: int) -> None:
    for byte in received:
        if byte == ord("k"):
            _kill_everything(group)
        elif byte in _SIGNALS:
            _signal_group(group, _SIGNALS[byte])


def _start(order: dict[str, Any]) -> "subprocess.Popen[bytes]":
    command: str | list[str] = order["command"]
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    # The key opens every session of everybody, and what a command prints ends up in logs and error messages.
    inherited = {name: value for name, value in os.environ.items() if name != "CLAUDE_PROJECTS_API_KEY"}
    with (
        Path(order["stdin"]).open("rb") as stdin,
        Path(order["stdout"]).open("ab") as stdout,
        Path(order["stderr"]).open("ab") as stderr,
    ):
        return subprocess.Popen(  # noqa: S603 - running the plan's commands is what this is for
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**inherited, **order["environment"]},
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - the guard has one thread
        )


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_group(group: int) -> None:
    """End what a finished command has left in its group; what left the group (a daemon) was meant to stay."""
    _signal_group(group, signal.SIGTERM)
    _signal_group(group, signal.SIGCONT)
    deadline = time.monotonic() + _LEFTOVER_GRACE
    while _group_lives(group) and time.monotonic() < deadline:
        time.sleep(0.02)
        _bury()
    _signal_group(group, signal.SIGKILL)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill_everything(group: int) -> None:
    """Kill the group and, on Linux, every descendant of this process, until none is left."""
    _signal_group(group, signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while (alive := _descendants()) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _bury() -> None:
    """Wait for orphans that became ours and have ended: dead processes keep a group alive."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants() -> list[int]:
    processes = _processes()
    found: list[int] = []
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, (parent, _) in processes.items() if parent in frontier}
        found += [pid for pid in frontier if processes[pid][1] != "Z"]
    return found


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and state of every process, where the system has /proc."""
    table: dict[int, tuple[int, str]] = {}
    if sys.platform != "linux":
        return table
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # no process, or one that has just ended
            pid = int(entry.name)
            stat = (entry / "stat").read_text(errors="replace")
            state, parent = stat.rpartition(")")[2].split()[:2]
            table[pid] = (int(parent), state)
    return table


def _read_line(file: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(file, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return line


def _say(file: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(file, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
