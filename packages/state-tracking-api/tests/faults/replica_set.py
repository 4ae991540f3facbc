"""Three real mongods that elect a primary, and take over when it is killed."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from api_harness.server import free_port, wait_until
from state_tracking_api.embedded import find_mongod

NAME = "three"
# Elections within about two seconds; the default is ten.
ELECTION_MS = 2000


class ReplicaSet:
    """The members by port."""

    def __init__(self, directory: Path) -> None:
        self._members: dict[int, subprocess.Popen[bytes]] = {}
        for port in (free_port() for _ in range(3)):
            data = directory / str(port)
            data.mkdir(parents=True)
            self._members[port] = subprocess.Popen(
                [
                    *(find_mongod(), "--dbpath", data, "--replSet", NAME, "--port", str(port)),
                    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--logpath", data / "mongod.log"),
                    *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64"),
                    *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def uri(self) -> str:
        """Connection string that names every member."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._members)
        return f"mongodb://{hosts}/?replicaSet={NAME}"

    def initiate(self) -> None:
        """Make a replica set of them, and wait for its primary."""
        first = next(iter(self._members))
        with MongoClient[dict[str, Any]](
            "127.0.0.1", first, directConnection=True, serverSelectionTimeoutMS=30_000
        ) as client:
            members = [{"_id": i, "host": f"127.0.0.1:{port}"} for i, port in enumerate(self._members)]
            client.admin.command(
                "replSetInitiate",
                {"_id": NAME, "members": members, "settings": {"electionTimeoutMillis": ELECTION_MS}},
            )
        wait_until(lambda: self.primary() is not None, "a primary is elected", 60)

    def primary(self) -> int | None:
        """Port of the primary; None while there is none."""
        for port, process in self._members.items():
            if process.poll() is not None:
                continue
            try:
                with MongoClient[dict[str, Any]](
                    "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=1000
                ) as client:
                    if client.admin.command("hello")["isWritablePrimary"]:
                        return port
            except PyMongoError:
                continue
        return None

    def kill_primary(self) -> int:
        """SIGKILL the primary; its port."""
        port = self.primary()
        assert port is not None
        self._members[port].kill()
        self._members[port].wait()
        return port

    def stop(self) -> None:
        """Stop every member."""
        for process in self._members.values():
            process.terminate()
        for process in self._members.values():
            process.wait(30)


@contextmanager
def three_nodes(directory: Path) -> Generator[ReplicaSet]:
    """A running replica set of three."""
    made = ReplicaSet(directory)
    try:
        made.initiate()
        yield made
    finally:
        made.stop()
