"""Rate limit counters in MongoDB, for several instances that share one limit."""

from __future__ import annotations

import time
from typing import Any

from limits.aio.storage import Storage
from pymongo import AsyncMongoClient, ReturnDocument, WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from state_tracking_api.lifecycle import Document

DATABASE = "claude-projects"


class SharedCounters(Storage):
    """One document per key, one round trip per request.

    The counters of `limits` for MongoDB want Motor, which is deprecated, and three round trips. A window
    begins with a key's first request and ends by the database's clock. There are as many documents as keys,
    so nothing needs to expire. Importing this module registers the scheme.
    """

    STORAGE_SCHEME = ["async+mongodb", "async+mongodb+srv"]  # noqa: RUF012 - as the base class declares it

    def __init__(
        self,
        uri: str,
        *,
        wrap_exceptions: bool = False,
        database: AsyncDatabase[Document] | None = None,
        **options: float | str | bool,
    ) -> None:
        """Count in `database` where there is a connection to it already, else in the one that `uri` names."""
        super().__init__(uri, wrap_exceptions=wrap_exceptions, **options)
        self._uri = uri.removeprefix("async+")
        self._database = database
        self._client: AsyncMongoClient[Document] | None = None
        self._seen: dict[str, tuple[int, float]] = {}

    @property
    def base_exceptions(self) -> type[Exception]:
        """What MongoDB raises."""
        return PyMongoError

    @property
    def _counters(self) -> Any:
        if self._database is None:
            self._client = AsyncMongoClient(
                self._uri,
                tz_aware=True,
                maxPoolSize=10,
                connectTimeoutMS=2_000,
                serverSelectionTimeoutMS=2_000,
                timeoutMS=2_000,
            )
            self._database = self._client.get_default_database(DATABASE)
        return self._database.get_collection("rate_limits", write_concern=WriteConcern(1))

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count `amount` for a key, in its window of `expiry` seconds; returns the count with it."""
        running = {"$gt": ["$expires_at", "$$NOW"]}
        ends = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": expiry}}
        fields = {
            "count": {"$cond": [running, {"$add": ["$count", amount]}, amount]},
            "expires_at": {"$cond": [running, "$expires_at", ends]},
        }
        counter = await self._counters.find_one_and_update(
            {"_id": key}, [{"$set": fields}], upsert=True, return_document=ReturnDocument.AFTER
        )
        self._seen[key] = counter["count"], counter["expires_at"].timestamp()
        return counter["count"]

    async def get(self, key: str) -> int:
        """The count as of the last `incr` here: asked for right after it, to say what is left."""
        return self._seen.get(key, (0, 0.0))[0]

    async def get_expiry(self, key: str) -> float:
        """When the window ends, as of the last `incr` here; seconds since the epoch."""
        return self._seen.get(key, (0, time.time()))[1]

    async def check(self) -> bool:
        """Whether the database answers."""
        try:
            await self._counters.database.command("ping")
        except PyMongoError:
            return False
        return True

    async def reset(self) -> int | None:
        """Forget every counter; returns how many there were."""
        return (await self._counters.delete_many({})).deleted_count

    async def clear(self, key: str) -> None:
        """Forget one counter."""
        await self._counters.delete_one({"_id": key})

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
