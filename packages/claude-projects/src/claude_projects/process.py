"""Which process is behind a session, and whether it still lives.

A process id alone proves nothing: it is used again, it means something else after a reboot, on another
machine, and in another container. So a process is described by where its id is valid (the boot and the
process-id namespace) and by the moment at which it started, and it is judged only from the same place. Seen
from anywhere else it is unseen, and then only its heartbeats tell whether it lives.
"""

import os
import socket
import sys
import uuid
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

import psutil

from claude_projects.models import Metadata, Session

_PROC = Path("/proc")
_HIDDEN = "hidden"


class Presence(Enum):
    """What can be said about the process behind a session."""

    ALIVE = "alive"
    DEAD = "dead"
    UNSEEN = "unseen"


@dataclass(frozen=True)
class Process:
    """A process, told apart from every other one that ever was."""

    pid: int
    started: str
    place: str
    hostname: str

    @classmethod
    def current(cls) -> "Process":
        """This process."""
        started = _start_of(os.getpid())
        if started is None:
            raise RuntimeError("this process cannot find itself in the process table")
        return cls(os.getpid(), started, _place(), socket.gethostname())

    @classmethod
    def of(cls, session: Session) -> "Process | None":
        """The process that says it is behind ``session``, None where none does.

        A successor inherits the metadata of its original, and for a moment the description of a process
        that is not behind it: the description names the session that it is meant for, except in a session
        that was created with it.
        """
        said: Any = session.metadata.get("process")
        if not isinstance(said, dict):
            return None
        said = cast("dict[str, Any]", said)
        meant_for = said.get("session_id")
        if meant_for != session.session_id and (meant_for is not None or session.recovered_from is not None):
            return None
        pid, started, place = said.get("pid"), said.get("started"), said.get("place")
        if type(pid) is not int or pid <= 0 or not isinstance(started, str) or not isinstance(place, str):
            return None
        return cls(pid, started, place, str(said.get("hostname", "")))

    def describe(self, session_id: str | None) -> Metadata:
        """The description for the metadata of ``session_id`` (None: of a session that is being created)."""
        return {**asdict(self), "session_id": session_id, "ended": False}

    def presence(self) -> Presence:
        """Whether it lives. A suspended process lives; one that has ended and was not yet buried does not."""
        if self.place != _place():
            return Presence.UNSEEN
        started = _start_of(self.pid)
        if started == _HIDDEN:
            return Presence.UNSEEN
        return Presence.ALIVE if started == self.started else Presence.DEAD

    def __str__(self) -> str:
        return f"process {self.pid} on {self.hostname}"


def presence_behind(session: Session) -> Presence:
    """Whether the process behind ``session`` lives, as far as it can be seen from here.

    A process that stops work says so as its last word, and then it need not be seen to be known as gone.
    """
    process = Process.of(session)
    if process is None:
        return Presence.UNSEEN
    return Presence.DEAD if session.metadata["process"].get("ended") is True else process.presence()


def _start_of(pid: int) -> str | None:
    """When ``pid`` started, in a form that only this place understands; None where no such process lives.

    ``_HIDDEN`` where there is one, but it is not shown to us: another user's, with ``hidepid`` for example.
    """
    if sys.platform == "linux":
        # Ticks since boot: unlike a time of day they do not change when the clock is set.
        try:
            fields = (
                (_PROC / str(pid) / "stat")
                .read_text(encoding="utf-8", errors="replace")
                .rpartition(")")[2]
                .split()
            )
        except OSError:
            return _HIDDEN if _exists(pid) else None
        return None if fields[0] in {"Z", "X", "x"} else f"tick {fields[19]}"
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"second {round(process.create_time())}"
    except psutil.AccessDenied:
        return _HIDDEN
    except psutil.Error:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _place() -> str:
    """Where process ids mean the same as here: this boot of this system, and this namespace of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the link's text is meant, not its target
    except OSError:
        return f"{uuid.getnode():x} boot {round(psutil.boot_time() / 60)}"
    return f"{boot} {namespace}"
