"""The service as it stands: a replica set of three, server processes, and the network around them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pymongo
from ports import free_port
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from api_harness.replica_set import MEMBERS, ReplicaSet
from api_harness.server import clean_environment
from fault_harness.history import History
from fault_harness.network import Network
from fault_harness.processes import Proc

LAUNCHER = Path(__file__).with_name("launch.py")

STALL_THRESHOLD_MS = 3000
SETTINGS = {
    "SCHEDULER": "on",
    "STALL_THRESHOLD_MS": str(STALL_THRESHOLD_MS),
    "STALL_SCAN_INTERVAL_SECONDS": "1",
    "DB_TIMEOUT_MS": "5000",
    "REQUEST_TIMEOUT_MS": "8000",
    "RATE_LIMIT_PER_MINUTE": "1000000",
}
# Longer than a busy machine needs to answer a heartbeat, and shorter than a round.
ELECTION_MS = 4000
PARAMETERS = {
    # What a killed server had open in a transaction stays locked for this long; 60 by default, and a round
    # is to see the end of it.
    "transactionLifetimeLimitSeconds": "5",
    "enableTestCommands": "1",  # a mongod then introduces itself to whom it calls
}


class Cluster:
    """The replica set, which lives for many rounds, and the servers of the present round."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = str(uuid.uuid4())
        self.history: History | None = None
        self.network = Network(self._introduced, lambda: self.history)
        self.servers: dict[str, Proc] = {}
        self.server_ports: dict[str, int] = {}
        self.clients: dict[str, Proc] = {}
        self.suspended: set[str] = set()

    async def __aenter__(self) -> Self:
        self._ports = {free_port(): f"mongo-{index}" for index in range(MEMBERS)}
        advertised = {
            port: await self.network.listen(lambda place=place, port=port: [(place, port)])
            for port, place in self._ports.items()
        }
        self.replica_set = ReplicaSet(
            self.directory / "mongo", advertised, PARAMETERS, election_ms=ELECTION_MS
        )
        self._direct: dict[int, AsyncMongoClient[dict[str, Any]]] = {
            port: AsyncMongoClient("127.0.0.1", port, directConnection=True) for port in self._ports
        }
        try:
            await asyncio.to_thread(self.replica_set.initiate)
            await self.whole()
        except BaseException:
            await asyncio.to_thread(self.replica_set.stop)
            raise
        self.uri = self.replica_set.uri
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.network.end()
        for proc in [*self.servers.values(), *self.clients.values()]:
            proc.kill()
        for client in self._direct.values():
            await client.close()
        await asyncio.to_thread(self.replica_set.stop)
        await self.network.close()

    # Places

    def _introduced(self, name: str) -> str | None:
        """Who somebody is that has introduced himself to a mongod."""
        port = name.rpartition(":")[2]
        return self._ports.get(int(port)) if port.isdigit() else name if name in self.servers else None

    async def place(self, role: str) -> str | None:
        """Who is meant by a role: `primary` and `secondary` are found out, the rest are names already."""
        if role not in {"primary", "secondary"}:
            return role
        said = await self._members()
        if role == "secondary":
            return next((place for place, one in said.items() if one and one["secondary"]), None)
        # One that was suspended may still believe that it is the primary; the last one elected is right.
        primaries = {place: one for place, one in said.items() if one and one["isWritablePrimary"]}
        return max(primaries, key=lambda place: primaries[place]["electionId"], default=None)

    async def _members(self, seconds: float = 2.0) -> dict[str, dict[str, Any] | None]:
        """What every member says about itself; None where it does not answer."""

        async def ask(port: int) -> dict[str, Any] | None:
            if not self.replica_set.runs(port) or self._ports[port] in self.suspended:
                return None
            try:
                with pymongo.timeout(seconds):
                    return await self._direct[port].admin.command("hello")
            except PyMongoError:
                return None

        answers = await asyncio.gather(*(ask(port) for port in self._ports))
        return dict(zip(self._ports.values(), answers, strict=True))

    # Servers

    async def start_servers(
        self, count: int, database: str, mutant: str, cool_down: float, logs: Path
    ) -> None:
        """Start so many servers on a database of their own, and wait until they can write."""
        environment = clean_environment(
            SETTINGS
            | {
                "MONGODB_DATABASE": database,
                "API_KEYS": f"faults={self.key}",
            }
        )
        for index in range(count):
            name = f"server-{index}"
            port = free_port()
            command = [sys.executable, str(LAUNCHER), mutant, f"{cool_down:g}"]
            self.server_ports[name] = port
            uri = f"{self.uri}&serverSelectionTimeoutMS=2000&appname={name}"
            own = {"PORT": str(port), "MONGODB_URI": uri}
            self.servers[name] = Proc(name, command, environment | own, logs / f"{name}.log")
            self.servers[name].start()
        await self.served()

    async def served(self, seconds: float = 180.0) -> None:
        """Wait until every server answers from the database."""

        async def answers(name: str) -> None:
            while True:
                assert self.servers[name].runs, f"{name} has ended: {self.servers[name].words()}"
                try:
                    url = f"http://127.0.0.1:{self.server_ports[name]}/api/sessions?limit=1"
                    if (await client.get(url)).is_success:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)

        headers = {"X-API-Key": self.key}
        async with httpx.AsyncClient(headers=headers, timeout=10, trust_env=False) as client:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(answers(name) for name in self.servers))

    def endpoints(self) -> list[tuple[str, int]]:
        """Every server's place and port."""
        return list(self.server_ports.items())

    async def stop_servers(self) -> list[str]:
        """SIGTERM; a sentence for each that does not end well within its ten seconds."""
        wrong: list[str] = []
        for proc in self.servers.values():
            proc.signal(signal.SIGTERM)
        for name, proc in self.servers.items():
            code = await proc.ended(20)
            if code != 0:
                wrong.append(f"{name} ended with {code} after SIGTERM")
                proc.kill()
        self.servers, self.server_ports = {}, {}
        return wrong

    # Faults of processes

    def runs(self, place: str) -> bool:
        """Whether there is a process now, suspended or not."""
        if place.startswith("mongo"):
            return self.replica_set.runs(self._port(place))
        proc = self.servers.get(place) or self.clients.get(place)
        return proc is not None and proc.runs

    def kill(self, place: str) -> None:
        """SIGKILL whoever stands there."""
        if place.startswith("mongo"):
            self.replica_set.kill(self._port(place))
        else:
            self._proc(place).kill()
        self.suspended.discard(place)

    def start(self, place: str) -> None:
        """Start a server or a member again."""
        if place.startswith("mongo"):
            if not self.replica_set.runs(self._port(place)):
                self.replica_set.start(self._port(place))
        elif not self._proc(place).runs:
            self._proc(place).start()

    def suspend(self, place: str) -> None:
        """SIGSTOP."""
        self.suspended.add(place)
        if place.startswith("mongo"):
            if self.replica_set.runs(self._port(place)):
                os.kill(self.replica_set.pid(self._port(place)), signal.SIGSTOP)
        else:
            self._proc(place).suspend()

    def go_on(self, place: str) -> None:
        """SIGCONT."""
        self.suspended.discard(place)
        if place.startswith("mongo"):
            if self.replica_set.runs(self._port(place)):
                os.kill(self.replica_set.pid(self._port(place)), signal.SIGCONT)
        else:
            self._proc(place).go_on()

    async def heal(self) -> None:
        """Undo every fault, and wait until all members and servers are there."""
        self.network.end()
        for place in list(self.suspended):
            self.go_on(place)
        for place in [*self._ports.values(), *self.servers]:
            self.start(place)
        await self.whole()
        await self.served()

    async def whole(self, seconds: float = 180.0) -> None:
        """Wait until there is a primary and every other member follows it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            said = await self._members(10)
            states = [
                (bool(one and one["isWritablePrimary"]), bool(one and one["secondary"]))
                for one in said.values()
            ]
            if sorted(states) == [(False, True), (False, True), (True, False)]:
                return
            assert loop.time() < deadline, f"the replica set is not whole: {said}"
            await asyncio.sleep(0.1)

    def _proc(self, place: str) -> Proc:
        return self.servers[place] if place in self.servers else self.clients[place]

    def _port(self, place: str) -> int:
        return next(port for port, name in self._ports.items() if name == place)

    # The harness's own way to the data

    def database_client(self, **options: Any) -> MongoClient[dict[str, Any]]:
        """A client for the checks."""
        return MongoClient(self.uri, tz_aware=True, **options)

    def watching_client(self) -> AsyncMongoClient[dict[str, Any]]:
        """A client for whoever looks at the data while everything is on fire."""
        return AsyncMongoClient(
            self.uri, tz_aware=True, timeoutMS=1500, serverSelectionTimeoutMS=1000, connectTimeoutMS=1000
        )
