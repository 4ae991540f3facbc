"""The network between the processes: every connection passes here, and can be harmed here.

A place is a process by name (`server-0`, `mongo-2`, `run-1`). The network has one listener for each way to a
place. Who connects to it is known by the listener, where only one process has its address (a client's), or by
the first message on the connection, where whoever calls a mongod introduces himself: the servers by the
`appname` of their connection string, a mongod whose test commands are on by `hostInfo`. So what harms the way
from one place to another leaves the same target's other callers alone.

What can happen to a way:

- `cut`: what is open is reset, new connections too.
- `hang`: nothing passes and nothing is said; when it is over, everything arrives.
- `slow`: every piece takes so many seconds longer.
- `deaf`: requests arrive, their answers are lost; when it is over, the connection is reset.
- `half_open`: the far side has been reset, the near one does not know; when it is over, it is told.
- `half_closed`: the same the other way round: the target goes on waiting for somebody who is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from fault_harness.history import History, Tap

HARMS = ("cut", "hang", "slow", "deaf", "half_open", "half_closed")
# As BSON has them: a document's field with a string for its value.
_HOST_INFO = re.compile(rb"\x02hostInfo\x00.{4}([^\x00]+)\x00", re.DOTALL)
_APPLICATION = re.compile(rb"\x03application\x00.{4}\x02name\x00.{4}([^\x00]+)\x00", re.DOTALL)
_FORGETFUL = {"deaf", "half_open", "half_closed"}
"""A connection that has lived through one of these has lost bytes, and cannot go on."""


@dataclass(frozen=True)
class Harm:
    """What happens to the ways whose source and target match (`*` is everybody but the harness)."""

    source: str
    target: str
    what: str
    seconds: float = 0.0

    def hits(self, source: str, target: str) -> bool:
        """Whether this way is harmed."""
        return source != "harness" and fnmatch(source, self.source) and fnmatch(target, self.target)


class Network:
    """All listeners, the connections through them, and the present harms."""

    def __init__(self, places: Callable[[str], str | None], history: Callable[[], History | None]) -> None:
        self._places = places
        self._history = history
        self._harms: list[Harm] = []
        self._listeners: list[asyncio.Server] = []
        self.connections: set[Connection] = set()

    async def listen(
        self,
        targets: Callable[[], list[tuple[str, int]]],
        *,
        source: str | None = None,
        port: int = 0,
        tapped: bool = False,
    ) -> int:
        """Open a way to one of `targets` (place and port; each connection goes to the next); its port.

        `source` is who connects, where only one does. `tapped`: HTTP is spoken, and goes into the history.
        """
        loop = asyncio.get_running_loop()
        turn = iter(range(1 << 30))

        def made() -> Connection:
            return Connection(self, source, targets, next(turn), tapped=tapped)

        listener = await loop.create_server(lambda: made().near, "127.0.0.1", port, backlog=512)
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def harm(self, source: str, target: str) -> Harm | None:
        """What happens on a way now; the latest harm wins."""
        return next((harm for harm in reversed(self._harms) if harm.hits(source, target)), None)

    def begin(self, harm: Harm) -> None:
        """Let something happen."""
        self._harms.append(harm)
        for connection in list(self.connections):
            connection.harmed()

    def end(self, harm: Harm | None = None) -> None:
        """Let it stop; without an argument, everything."""
        self._harms = [] if harm is None else [one for one in self._harms if one is not harm]
        for connection in list(self.connections):
            connection.harmed()

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.reset()
        await asyncio.sleep(0)

    def tap(self, source: str, target: str) -> Tap | None:
        """The recorder of a new connection."""
        history = self._history()
        return None if history is None else Tap(history, source, target)

    def who(self, first: bytes) -> str | None:
        """The place that a first message comes from; None where the message is not complete yet."""
        if len(first) < 4 or len(first) < int.from_bytes(first[:4], "little"):
            return None
        said = _HOST_INFO.search(first) or _APPLICATION.search(first)
        return (said and self._places(said[1].decode("latin-1"))) or "harness"


class _End(asyncio.Protocol):
    """One end of a connection; what it hears, the connection deals with."""

    def __init__(self, heard: Callable[[bytes], None], gone: Callable[[], None]) -> None:
        self._heard, self._gone = heard, gone
        self.made: Callable[[], None] | None = None
        self.transport: asyncio.Transport | None = None
        self.open = False

    def connection_made(self, transport: Any) -> None:
        self.transport, self.open = transport, True
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.made is not None:
            self.made()

    def data_received(self, data: bytes) -> None:
        self._heard(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.open = False
        self._gone()

    def send(self, data: bytes) -> bool:
        """Send; False where the connection is at its end already."""
        if not self.open or self.transport is None or self.transport.is_closing():
            return False
        self.transport.write(data)
        return True

    def finish(self) -> None:
        """Close, after what was sent."""
        if self.open and self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Close as if the other side did not know the connection."""
        if self.open and self.transport is not None:
            linger = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
            self.transport.abort()


class Connection:
    """One connection: its near end (who called), its far end (the target), and what is on its way."""

    def __init__(
        self,
        network: Network,
        source: str | None,
        targets: Callable[[], list[tuple[str, int]]],
        turn: int,
        *,
        tapped: bool,
    ) -> None:
        self._network, self._source = network, source
        self._targets, self._turn, self._tapped = targets, turn, tapped
        self._target = ""
        self._tap: Tap | None = None
        self._held: list[tuple[_End, bytes, list[int]]] = []
        self._unsent: list[bytes] = []
        self._not_before = {True: 0.0, False: 0.0}
        self._lossy = False
        self._connecting: asyncio.Task[None] | None = None
        self.near = _End(lambda data: self._passes(data, inwards=True), self._near_gone)
        self.far = _End(lambda data: self._passes(data, inwards=False), self._far_gone)
        self.near.made = self._accepted

    def _accepted(self) -> None:
        self._network.connections.add(self)
        if self._source is not None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        assert self._source is not None
        candidates = self._targets()
        for offset in range(len(candidates)):
            place, port = candidates[(self._turn + offset) % len(candidates)]
            harm = self._network.harm(self._source, place)
            if harm is not None and harm.what in {"cut", "half_open"}:
                if harm.what == "half_open":
                    self._target, self._lossy = place, True
                    return
                continue
            try:
                await asyncio.get_running_loop().create_connection(lambda: self.far, "127.0.0.1", port)
            except OSError:
                continue
            self._target = place
            self._tap = self._network.tap(self._source, place) if self._tapped else None
            for data in self._unsent:
                self._passes(data, inwards=True)
            self._unsent = []
            if not self.near.open:
                self._near_gone()
            return
        self.reset()

    @property
    def _harm(self) -> Harm | None:
        return self._network.harm(self._source or "", self._target)

    def _passes(self, data: bytes, *, inwards: bool) -> None:
        if inwards and not self._target:
            self._unsent.append(data)
            if self._source is None:
                self._source = self._network.who(b"".join(self._unsent))
                if self._source is not None:
                    self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        harm = self._harm
        what = None if harm is None else harm.what
        ended: list[int] = []
        if self._tap is not None and not inwards:
            ended = self._tap.answer(data)  # said is said, whoever hears it
        if what in {"half_open", "half_closed"} or (what == "deaf" and not inwards):
            self._lossy = True
            return
        if self._lossy:
            self.reset()
            return
        end = self.far if inwards else self.near
        if what == "hang" or self._held:
            self._held.append((end, data, ended))
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + (harm.seconds if harm is not None and what == "slow" else 0.0)
        due = max(due, self._not_before[inwards])
        if due > loop.time():
            self._not_before[inwards] = due
            loop.call_at(due, self._deliver, end, data, ended)
        else:
            self._deliver(end, data, ended)

    def _deliver(self, end: _End, data: bytes, ended: list[int]) -> None:
        if end is self.far and self._tap is not None and end.open:
            self._tap.request(data)
        if end.send(data) and self._tap is not None:
            self._tap.handed(ended)

    def harmed(self) -> None:
        """Something has begun or ended to happen on some way; on this one?"""
        harm = self._harm
        what = None if harm is None else harm.what
        if what == "cut" or (self._lossy and what not in _FORGETFUL):
            self.reset()
        elif what == "half_open":
            self._lossy = True
            self.far.reset()
        elif what == "half_closed":
            self._lossy = True
            self._reset_near()
        elif what != "hang" and self._held:
            held, self._held = self._held, []
            for end, data, ended in held:
                self._deliver(end, data, ended)

    def reset(self) -> None:
        """Reset both ends."""
        self._reset_near()
        self.far.reset()
        self._forget()

    def _reset_near(self) -> None:
        if self._tap is not None and self.near.open:
            self._tap.reset()
        self.near.reset()

    def _near_gone(self) -> None:
        if not (self._lossy and self._harm is not None and self._harm.what == "half_closed"):
            self._closes(self.far)

    def _far_gone(self) -> None:
        if not (self._lossy and self._harm is not None and self._harm.what == "half_open"):
            self._closes(self.near)

    def _closes(self, other: _End) -> None:
        harm = self._harm
        if harm is not None and harm.what in {"hang", *_FORGETFUL} and other.open:
            self._lossy = True  # not even the end of a connection passes; it is told when this is over
            return
        delay = max(self._not_before.values()) - asyncio.get_running_loop().time()
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, other.finish)
        else:
            other.finish()
        self._forget()

    def _forget(self) -> None:
        if not self.near.open and not self.far.open:
            self._network.connections.discard(self)
