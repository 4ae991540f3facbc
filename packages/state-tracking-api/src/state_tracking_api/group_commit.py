"""Group commit: writes that wait for the database at the same time share their round trips.

Most of what a small write costs, here and in the database, is not the write but the round trip, its driver
session and its acknowledgement by a majority. While the database is at work on earlier writes, those that
come are gathered and sent as one command, followed by one that reads what they have left
(docs/decisions/0009-group-commit.md).
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pymongo
from bson.errors import BSONError
from pymongo import ReturnDocument, UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, PyMongoError

from state_tracking_api import log
from state_tracking_api.lifecycle import Document

# With so many operations under way further writes are gathered. Not with one: it may be waiting for a lock,
# and every other write would be gathered for as long as its patience lasts.
UNDER_WAY = 2
# How long a write is gathered at most, whatever holds the operations under way up.
PATIENCE_SECONDS = 0.02
TOGETHER = 100
# One write that waits for a lock holds up those that were sent with it: for so long, then each goes alone.
TOGETHER_TIMEOUT_SECONDS = 1.0
# After that nothing is gathered for a while: where the database is slow, or a lock is held for long, sending
# everything a second time would only make it slower.
APART_SECONDS = 10.0

Shows = Callable[[Document, bool], bool]


@dataclass(slots=True, frozen=True, eq=False)
class _Waiting:
    key: str
    write: UpdateOne
    shows: Shows
    answer: asyncio.Future[Document | None]


class GroupCommit:
    """Updates of single documents of a collection, each told apart by its key field, alone or together."""

    def __init__(
        self,
        collection: AsyncCollection[Document],
        key_field: str,
        projection: Mapping[str, Any],
        timeout_seconds: float,
    ) -> None:
        """`timeout_seconds` is how long whoever asks waits at most; half of it may be spent together."""
        self._timeout = min(TOGETHER_TIMEOUT_SECONDS, timeout_seconds / 2)
        self._apart_until = -math.inf
        self._collection = collection
        self._key_field = key_field
        self._projection = projection
        self._waiting: list[_Waiting] = []
        self._under_way = 0
        self._patience: asyncio.TimerHandle | None = None
        self._groups: set[asyncio.Task[None]] = set()

    async def find_one_and_update(
        self,
        key: str,
        condition: Mapping[str, Any],
        update: Mapping[str, Any],
        shows: Shows,
    ) -> Document | None:
        """Update the document with this key where it meets the condition; returns it as it is afterwards.

        None where it does not. `shows` is given a document that was read later, and whether it is known that
        the update was made to it; it tells whether this is the answer: that the update, or one to the same
        effect, went through, and nothing has happened since that must be told. Where it is not, the update is
        sent again by itself, so that one that is done twice must be as good as one that is done once.

        Raises what the driver's own `find_one_and_update` raises.
        """
        if self._under_way >= UNDER_WAY and time.monotonic() >= self._apart_until:
            found = await self._in_company(_Waiting(key, UpdateOne(condition, update), shows, _future()))
            if found is not None:
                return found
        self._under_way += 1
        try:
            return await self._collection.find_one_and_update(
                condition, update, projection=self._projection, return_document=ReturnDocument.AFTER
            )
        finally:
            self._has_ended()

    async def _in_company(self, waiting: _Waiting) -> Document | None:
        self._waiting.append(waiting)
        if self._patience is None:
            self._be_patient()
        return await waiting.answer

    def _be_patient(self) -> None:
        self._patience = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._send)

    def _has_ended(self) -> None:
        self._under_way -= 1
        if self._waiting:
            self._send()

    def _send(self) -> None:
        """Send what has been gathered."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        gathered, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
        if self._waiting:
            self._be_patient()
        group = [waiting for waiting in gathered if not waiting.answer.done()]  # or its request was cancelled
        if len(group) == 1:
            group[0].answer.set_result(None)
        elif group:
            self._under_way += 1
            # In a context of its own: the deadline of whoever comes first is not that of all.
            task = asyncio.create_task(self._write_together(group), context=contextvars.Context())
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)

    async def _write_together(self, group: list[_Waiting]) -> None:
        found: dict[str, Document] = {}
        written = False
        try:
            with pymongo.timeout(self._timeout):
                written = await self._update(group)
                theirs = {self._key_field: {"$in": [waiting.key for waiting in group]}}
                documents = await self._collection.find(theirs, self._projection).to_list()
            found = {document[self._key_field]: document for document in documents}
        except (PyMongoError, BSONError) as error:
            # What it means is for each to find out alone.
            self._apart_until = time.monotonic() + APART_SECONDS
            log.get().warning(
                "Writes could not be sent together", error=type(error).__name__, count=len(group)
            )
        finally:
            for waiting in group:
                if not waiting.answer.done():
                    document = found.get(waiting.key)
                    shown = document is not None and waiting.shows(document, written)
                    waiting.answer.set_result(document if shown else None)
            self._has_ended()

    async def _update(self, group: list[_Waiting]) -> bool:
        """Send the updates; tells whether it is known that every one was made."""
        try:
            done = await self._collection.bulk_write([waiting.write for waiting in group], ordered=False)
        except BulkWriteError as error:
            # One that the database refuses is refused again when it comes by itself; the others were made.
            if (error.details or {}).get("writeConcernErrors"):
                raise
            return False
        return done.matched_count == len(group)


def _future() -> asyncio.Future[Document | None]:
    return asyncio.get_running_loop().create_future()
