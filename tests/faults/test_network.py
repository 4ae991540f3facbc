"""Each fault of the network and of the clocks does what its name says, to whom it is meant for, and ends."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fault_harness.clients import Clients
from fault_harness.cluster import Cluster
from fault_harness.history import clock
from fault_harness.network import Harm, Network

DELAY = 0.05
YEARS = 10 * 365 * 86400


class Echo(asyncio.Protocol):
    """The far side of one connection: it says what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set()


class Caller:
    """The near side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hears(self, data: bytes) -> None:
        assert await self.reader.readexactly(len(data)) == data

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await self.reader.readexactly(1)


class Ways:
    """A server, and the ways of two callers to it."""

    def __init__(self) -> None:
        self.network = Network(lambda _: None, lambda: None)
        self.echoes: list[Echo] = []
        self.callers: list[Caller] = []
        self._ports: dict[str, int] = {}

    async def open(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._echo, "127.0.0.1", 0)
        port = int(server.sockets[0].getsockname()[1])
        for source in ("harmed", "spared"):
            self._ports[source] = await self.network.listen(lambda: [("server-0", port)], source=source)
        return server

    def _echo(self) -> Echo:
        self.echoes.append(Echo())
        return self.echoes[-1]

    async def call(self, source: str) -> Caller:
        """Connect."""
        self.callers.append(Caller(*await asyncio.open_connection("127.0.0.1", self._ports[source])))
        return self.callers[-1]

    async def talk(self, source: str) -> tuple[Caller, Echo]:
        """Connect, and be answered once."""
        caller = await self.call(source)
        caller.say(b"first")
        await caller.hears(b"first")
        return caller, self.echoes[-1]

    def begin(self, what: str) -> Harm:
        """Harm one of the two ways."""
        harm = Harm("harmed", "server-*", what, DELAY)
        self.network.begin(harm)
        return harm


@pytest.fixture
async def ways() -> AsyncIterator[Ways]:
    found = Ways()
    server = await found.open()
    async with asyncio.timeout(30):
        yield found
    for caller in found.callers:
        caller.writer.close()
    await found.network.close()
    server.close()


async def test_cut_resets_what_is_open_and_what_is_opened(ways: Ways) -> None:
    (open_, _), (spared, _) = await ways.talk("harmed"), await ways.talk("spared")
    harm = ways.begin("cut")
    await open_.is_reset()
    await (await ways.call("harmed")).is_reset()
    spared.say(b"second")
    await spared.hears(b"second")
    ways.network.end(harm)
    await ways.talk("harmed")


async def test_hang_lets_nothing_pass_and_then_everything(ways: Ways) -> None:
    (caller, echo), (spared, _) = await ways.talk("harmed"), await ways.talk("spared")
    harm = ways.begin("hang")
    caller.say(b"second")
    new = await ways.call("harmed")
    new.say(b"from the beginning")
    for number in range(5):  # there was time enough for it to arrive
        spared.say(b"%d" % number)
        await spared.hears(b"%d" % number)
    assert echo.heard == b"first"
    assert all(b"beginning" not in one.heard for one in ways.echoes)
    ways.network.end(harm)
    await caller.hears(b"second")
    await new.hears(b"from the beginning")


async def test_slow_takes_its_time_both_ways(ways: Ways) -> None:
    caller, _ = await ways.talk("harmed")
    harm = ways.begin("slow")
    asked = asyncio.get_running_loop().time()
    caller.say(b"second")
    await caller.hears(b"second")
    assert asyncio.get_running_loop().time() - asked >= 2 * DELAY
    ways.network.end(harm)
    caller.say(b"third")
    await caller.hears(b"third")


async def test_deaf_loses_the_answer_to_a_request_that_arrived(ways: Ways) -> None:
    (caller, echo), (spared, _) = await ways.talk("harmed"), await ways.talk("spared")
    harm = ways.begin("deaf")
    caller.say(b"second")
    while echo.heard != b"firstsecond":
        spared.say(b".")
        await spared.hears(b".")
    for _ in range(5):  # there was time enough for it to arrive
        spared.say(b".")
        await spared.hears(b".")
    assert not caller.reader.at_eof()
    ways.network.end(harm)
    await caller.is_reset()  # and nothing came before


async def test_half_open_is_gone_for_the_server_alone(ways: Ways) -> None:
    caller, echo = await ways.talk("harmed")
    harm = ways.begin("half_open")
    await echo.lost.wait()
    caller.say(b"second")
    new = await ways.call("harmed")
    new.say(b"to nobody")
    await ways.talk("spared")
    assert len(ways.echoes) == 2, "nothing reaches the server"
    assert echo.heard == b"first"
    assert caller.reader.exception() is None
    ways.network.end(harm)
    await caller.is_reset()
    await new.is_reset()


async def test_half_closed_is_gone_for_the_caller_alone(ways: Ways) -> None:
    caller, echo = await ways.talk("harmed")
    harm = ways.begin("half_closed")
    await caller.is_reset()
    await ways.talk("spared")
    assert not echo.lost.is_set()
    ways.network.end(harm)
    await echo.lost.wait()


PYTHON = """
import json, time
said = lambda: print(json.dumps([time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)]), flush=True)
began = time.time()
said()
while abs(time.time() - began) < 1e6: time.sleep(0.02)
said()
"""
NODE = """
const said = () => console.log(JSON.stringify([Date.now() / 1000, require("node:os").uptime()]));
const began = Date.now();
said();
setInterval(() => { if (Math.abs(Date.now() - began) > 1e9) { said(); process.exit(); } }, 20);
"""


@pytest.mark.parametrize(
    "command", [(sys.executable, "-c", PYTHON), ("node", "-e", NODE)], ids=["python", "node"]
)
async def test_a_clock_is_set_under_a_process_and_the_time_since_boot_goes_on(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    clients = Clients(Cluster(tmp_path), tmp_path, 1, "world")
    environment = clients.environment("somebody", tmp_path)
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            for error, wrong_by in (("", 0), ("-10y", -YEARS)):
                if error:
                    clients.set_clock("somebody", error)
                before = clock()
                wall, since_boot = json.loads(await process.stdout.readline())
                assert abs(wall - time.time() - wrong_by) < 86400
                assert before - 60 < since_boot <= clock() + 0.01
            assert await process.wait() == 0, "also sleeping is left alone"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
