"""Looks at the stored data all the time, each time as of one moment, and says what is wrong in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from fault_harness.history import History
from fault_harness.state import ENDED, Document, State, wrong_with

_FIELDS = {"_id": 0, "events": 0, "beats": 0}


class Watcher:
    """What was seen in a round: how many snapshots, what was wrong, and who had ended."""

    def __init__(
        self, client: AsyncMongoClient[Document], database: str, history: History, sought: str = ""
    ) -> None:
        self._client, self._database, self._history = client, database, history
        self._sought = re.compile(sought)
        self.snapshots = 0
        self.stop = asyncio.Event()
        self.found = asyncio.Event()
        """Set as soon as something is wrong that matches `sought`."""
        self.wrong: list[str] = []
        self.ended: dict[str, datetime] = {}

    async def look(self) -> None:
        """Read everything in one snapshot; nothing happens where the database does not answer."""
        with contextlib.suppress(PyMongoError):
            async with self._client.start_session(snapshot=True) as session:
                found = [
                    await self._client[self._database][name].find({}, _FIELDS, session=session).to_list()
                    for name in ("sessions", "tasks", "machines")
                ]
            state = State.of(*found)
            self.snapshots += 1
            for sentence in [*wrong_with(state), *self._lives_again(state)]:
                if sentence not in self.wrong:
                    self.wrong.append(sentence)
                    self._history.note("wrong", snapshot=self.snapshots, sentence=sentence)
                    if self._sought.search(sentence):
                        self.found.set()

    def _lives_again(self, state: State) -> Iterable[str]:
        """Whether what had ended in an earlier snapshot lives in this one, and has changed since.

        A primary that has been replaced and does not know it yet gives older snapshots.
        """
        for key, one in state.sessions.items():
            if one["status"] in ENDED:
                self.ended[key] = one["updated_at"]
            elif key in self.ended and one["updated_at"] > self.ended[key]:
                yield f"session {key} had ended and is {one['status']}"

    async def watch(self, pause: float) -> None:
        """Look until told to stop."""
        while not self.stop.is_set():
            await self.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), pause)


def whole_state(client: Any, database: str) -> State:
    """Everything as it is at the end, events included."""
    data = client[database]
    return State.of(data.sessions.find(), data.tasks.find(), data.machines.find())
