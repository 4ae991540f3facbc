"""What this machine itself remembers of a run: locks, logs, and which tasks are done.

The API is where a run is known to everybody; the journal is for the time in which the API cannot be
reached. A run that was killed while the API was away has reported nothing of what it did in that time, and
yet none of it may be done again. So each task's end is written down here, to disk, before the next task
begins.

Everything is in one directory, see ``settings.state_dir``:

    locks/<project and machine>.lock     held while a run or resume is at work
    <project>/<start>-<run>/journal.jsonl
    <project>/<start>-<run>/01-<task>.out.log, 01-<task>.err.log
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from claude_projects.errors import ClaudeProjectsError


class LockedError(ClaudeProjectsError):
    """Another process of this machine holds the lock; ``holder`` is what it wrote there."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def lock(directory: Path, project_id: str, machine_id: str) -> "Generator[None, None, None]":
    """Be the only one on this machine to work on ``project_id`` as ``machine_id``; raises LockedError.

    The kernel gives the lock back when its holder ends, however it ends. It needs no API, so two runs that
    both start while the API is away are kept apart too.
    """
    name = hashlib.sha256(f"{project_id}\0{machine_id}".encode()).hexdigest()[:24]
    path = directory / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(file.read().strip() or "another process") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield


@dataclass
class Journal:
    """The journal of one run on this machine.

    ``run_ids`` are the run's names, the first one its own; it has another where it began while the API was
    away and then turned out to continue a run that the API knows. ``done`` holds the digests of the tasks
    that were completed here. ``has_session`` says whether the API ever knew of it, ``ended`` that
    everything was done, ``finished`` that the API knows that too, so that the journal has served its
    purpose.
    """

    directory: Path
    run_ids: list[str]
    done: set[str] = field(default_factory=set[str])
    has_session: bool = False
    ended: bool = False
    finished: bool = False

    def joined(self, session_id: str, run_id: str) -> None:
        """Note that the API has a session of this run, and what it calls the run."""
        self.append({"session": session_id, "run_id": run_id})

    def completed(self, digest: str) -> None:
        """Note a completed task."""
        self.append({"completed": digest})

    def end(self, *, told: bool) -> None:
        """Note that everything is done, and whether the API knows."""
        self.append({"ended": True, "finished": told})

    def append(self, entry: dict[str, Any]) -> None:
        """Write an entry. On return it is on the disk."""
        self._take(entry)
        with (self.directory / "journal.jsonl").open("a", encoding="utf-8") as file:
            # It begins a line of its own even after one that was torn when the machine lost its power.
            file.write("\n" + json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _take(self, entry: dict[str, Any]) -> None:
        if isinstance(run_id := entry.get("run_id"), str) and run_id not in self.run_ids:
            self.run_ids.append(run_id)
        if isinstance(digest := entry.get("completed"), str):
            self.done.add(digest)
        self.has_session = self.has_session or "session" in entry
        self.ended = self.ended or entry.get("ended") is True
        self.finished = self.finished or entry.get("finished") is True

    @classmethod
    def read(cls, path: Path) -> "tuple[dict[str, Any], Journal]":
        """A journal and its first entry; what cannot be read is as if it were not there."""
        journal, header = cls(path.parent, []), dict[str, Any]()
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):  # the last line of a machine that lost its power
                    entry: Any = json.loads(line)
                    if isinstance(entry, dict):
                        entry = cast("dict[str, Any]", entry)
                        header = header or entry
                        journal._take(entry)
        return header, journal


class Journals:
    """All journals below a state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, project_id: str, run_id: str | None) -> Journal | None:
        """The journal of a run."""
        return next((one for _, one in self._of(project_id) if run_id in one.run_ids), None)

    def unfinished(self, project_id: str, plan: str, machine_id: str) -> Journal | None:
        """The latest journal of a plan on this machine, unless the API knows the end of it."""
        wanted = {"project_id": project_id, "plan": plan, "machine_id": machine_id}
        for header, journal in self._of(project_id):
            if all(header.get(name) == value for name, value in wanted.items()):
                return None if journal.finished else journal
        return None

    def open(self, project_id: str, run_id: str, plan: str, machine_id: str) -> Journal:
        """The journal of a run: the one that is there, or a new one."""
        there = self.find(project_id, run_id)
        if there is not None:
            return there
        made = (
            self.directory
            / _slug(project_id)
            / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{run_id[:8]}"
        )
        made.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and output are nobody else's business
        journal = Journal(made, [])
        journal.append({"run_id": run_id, "project_id": project_id, "plan": plan, "machine_id": machine_id})
        return journal

    def _of(self, project_id: str) -> list[tuple[dict[str, Any], Journal]]:
        """Newest first."""
        paths = (self.directory / _slug(project_id)).glob("*/journal.jsonl")
        return [Journal.read(path) for path in sorted(paths, reverse=True)]


def log_paths(journal: Journal, index: int, name: str) -> tuple[Path, Path]:
    """Where the output and the error output of a task go; running again, it writes on in the same files."""
    stem = f"{index + 1:02d}-{_slug(name)}"
    return journal.directory / f"{stem}.out.log", journal.directory / f"{stem}.err.log"


def _slug(text: str) -> str:
    """A file name that people recognise; what makes it unique stands elsewhere."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:48]
    return (
        plain
        if plain and plain == text
        else f"{plain or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    )
