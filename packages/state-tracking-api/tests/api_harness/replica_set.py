"""Three real mongods that elect a primary, and take over when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ports import free_port
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from api_harness.server import wait_until
from state_tracking_api.embedded import find_mongod

NAME = "three"
MEMBERS = 3
# Elections within about two seconds; the default is ten.
ELECTION_MS = 2000


class ReplicaSet:
    """The members by the port that each listens on.

    Args:
        directory: for data and logs.
        advertised: the port under which everybody, the other members included, is to reach a member, where
            that is not its own: something may then stand between them.
        parameters: further `--setParameter` options.
        election_ms: after so much silence of the primary another one is elected.
    """

    def __init__(
        self,
        directory: Path,
        advertised: Mapping[int, int] | None = None,
        parameters: Mapping[str, str] | None = None,
        election_ms: int = ELECTION_MS,
    ) -> None:
        self._directory = directory
        self.ports = list(advertised) if advertised else [free_port() for _ in range(MEMBERS)]
        self._election_ms = election_ms
        self._advertised = advertised or {port: port for port in self.ports}
        # Without the first a signalled shutdown waits 15 seconds for clients to find another node.
        self._parameters = {"shutdownTimeoutMillisForSignaledShutdown": "0", **(parameters or {})}
        self._members: dict[int, subprocess.Popen[bytes]] = {}
        for port in self.ports:
            self.start(port)

    @property
    def uri(self) -> str:
        """Connection string that names every member."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._advertised.values())
        return f"mongodb://{hosts}/?replicaSet={NAME}"

    def start(self, port: int) -> None:
        """Start a member, or start it again on the data that it has."""
        data = self._directory / str(port)
        data.mkdir(parents=True, exist_ok=True)
        options = [f"--setParameter={name}={value}" for name, value in self._parameters.items()]
        self._members[port] = subprocess.Popen(
            [
                *(find_mongod(), "--dbpath", data, "--replSet", NAME, "--port", str(port)),
                *("--bind_ip", "127.0.0.1", "--nounixsocket", "--logpath", data / "mongod.log"),
                *("--logappend", "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64", *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def pid(self, port: int) -> int:
        """Process id of a member."""
        return self._members[port].pid

    def runs(self, port: int) -> bool:
        """Whether a member has not ended."""
        return self._members[port].poll() is None

    def initiate(self) -> None:
        """Make a replica set of them, and wait for its primary."""
        wait_until(lambda: all(self.hello(port) for port in self.ports), "every member answers", 60)
        with MongoClient[dict[str, Any]](
            "127.0.0.1", self.ports[0], directConnection=True, serverSelectionTimeoutMS=30_000
        ) as client:
            members = [
                {"_id": i, "host": f"127.0.0.1:{self._advertised[port]}"} for i, port in enumerate(self.ports)
            ]
            client.admin.command(
                "replSetInitiate",
                {"_id": NAME, "members": members, "settings": {"electionTimeoutMillis": self._election_ms}},
            )
        wait_until(lambda: self.primary() is not None, "a primary is elected", 60)

    def primary(self) -> int | None:
        """Port of the primary; None while there is none."""
        states = {port: self.hello(port) for port in self.ports}
        return next((port for port, said in states.items() if said and said["isWritablePrimary"]), None)

    def hello(self, port: int) -> dict[str, Any] | None:
        """What a member says about itself; None where it does not answer."""
        if not self.runs(port):
            return None
        try:
            with MongoClient[dict[str, Any]](
                "127.0.0.1",
                port,
                directConnection=True,
                serverSelectionTimeoutMS=1000,
                connectTimeoutMS=1000,
                socketTimeoutMS=1000,
            ) as client:
                return client.admin.command("hello")
        except PyMongoError:
            return None

    def kill(self, port: int) -> None:
        """SIGKILL a member."""
        self._members[port].kill()
        self._members[port].wait()

    def kill_primary(self) -> int:
        """SIGKILL the primary; its port."""
        # Not at the first try where a member is too busy to answer in time, or another is elected just now.
        port = wait_until(self.primary, "there is a primary", 30)
        self.kill(port)
        return port

    def stop(self) -> None:
        """Stop every member, a suspended one too."""
        for process in self._members.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
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
