"""The record: every request that reached a server and every answer that left one, as JSON lines.

It is taken in the middle, where a client's connection passes the harness. So no client has to write anything
down, none can lose its notes by being killed, all times are of one clock, and the black boxes (the command
line, the SDK) are recorded as fully as the harness's own callers. An answer counts from the moment at which
the server gave it, whether or not the client ever saw it: what a server has acknowledged must be so.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_READ_SECONDS = 2.0
"""After so long a client that is not suspended has read what was sent to it."""


def clock() -> float:
    """Seconds since boot: the same for every process, whatever wall clock each believes in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class History:
    """Writes the record of one round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._operations = 0
        self.heard: Counter[str] = Counter()
        """How many requests each client has sent."""

    def note(self, kind: str, **said: Any) -> None:
        """Append an entry."""
        entry = {"t": round(clock(), 4), "kind": kind, **said}
        self._file.write(json.dumps(entry, default=str) + "\n")

    def next_operation(self) -> int:
        """A number for a request and its answer."""
        self._operations += 1
        return self._operations

    def close(self) -> None:
        """Write what is left to the disk; again changes nothing."""
        self._file.close()


@dataclass
class Operation:
    """One request and what came of it; `status` is None where no answer left the server."""

    number: int
    client: str
    server: str
    method: str
    path: str
    body: Any
    asked: float
    answered: float | None = None
    status: int | None = None
    answer: Any = None
    handed: float | None = None
    """When the whole answer had been sent to the client, over a connection that was not reset soon after."""

    @property
    def well(self) -> bool:
        """Whether the server has acknowledged it."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        return f"operation {self.number} ({self.client} → {self.server}: {self.method} {self.path})"


def read(path: Path) -> list[Json]:
    """The entries of a record."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def operations(entries: list[Json]) -> list[Operation]:
    """Requests with their answers, in the order in which they were asked."""
    found: dict[int, Operation] = {}
    for entry in entries:
        if entry["kind"] == "ask":
            found[entry["op"]] = Operation(
                entry["op"],
                entry["client"],
                entry["server"],
                entry["method"],
                entry["path"].partition("?")[0],
                entry["body"],
                entry["t"],
            )
        elif entry["kind"] == "answer":
            operation = found[entry["op"]]
            operation.answered, operation.status = entry["t"], entry["status"]
            operation.answer = entry["body"]
        elif entry["kind"] == "handed":
            found[entry["op"]].handed = entry["t"]
        elif entry["kind"] == "unsure":
            found[entry["op"]].handed = None
    return list(found.values())


class Tap:
    """Listens to one client's connection to a server: HTTP/1.1, bodies by Content-Length."""

    def __init__(self, history: History, client: str, server: str) -> None:
        self._history = history
        self._who = {"client": client, "server": server}
        self._requests, self._answers = _Messages(), _Messages()
        self._waiting: list[int] = []
        self._handed: list[tuple[int, float]] = []

    def request(self, data: bytes) -> None:
        """Bytes that go on to the server."""
        for first, body in self._requests.take(data):
            method, path, _ = first.split(" ", 2)
            operation = self._history.next_operation()
            self._history.heard[self._who["client"]] += 1
            self._waiting.append(operation)
            self._history.note("ask", op=operation, **self._who, method=method, path=path, body=body)

    def answer(self, data: bytes) -> list[int]:
        """Bytes that come from the server; the operations whose answers end with them."""
        ended: list[int] = []
        for first, body in self._answers.take(data):
            if not self._waiting:
                continue  # such as the answer to a request that was cut off in the middle
            status = int(first.split(" ", 2)[1])
            ended.append(self._waiting.pop(0))
            self._history.note("answer", op=ended[-1], status=status, body=body)
        return ended

    def handed(self, operations: list[int]) -> None:
        """The answers to these have been sent to the client."""
        for operation in operations:
            self._handed = [(operation, clock())]
            self._history.note("handed", op=operation)

    def reset(self) -> None:
        """The client's connection is reset, and what it has not read is gone."""
        for operation, at in self._handed:
            if clock() - at < _READ_SECONDS:
                self._history.note("unsure", op=operation)
        self._handed = []


class _Messages:
    """Cuts a stream into HTTP messages: the first line and the decoded body of each."""

    def __init__(self) -> None:
        self._buffer = b""

    def take(self, data: bytes) -> Iterator[tuple[str, Any]]:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            length = int(headers.get("content-length", "0"))
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            yield head[0], _decoded(body)


def _decoded(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("latin-1")
