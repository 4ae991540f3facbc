"""How many requests a key may make (PRD 5.2); counted in memory, or in storage that instances share."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from pymongo.asynchronous.database import AsyncDatabase

from state_tracking_api import log, shared_counters
from state_tracking_api.lifecycle import Document
from state_tracking_api.metrics import Metrics
from state_tracking_api.settings import Settings

# A shared storage that does not answer must not hold requests up: they are let through then.
STORAGE_TIMEOUT_SECONDS = 0.5
# Nor may every request find out anew that it is away.
ASK_AGAIN_SECONDS = 1.0
WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left for a key: whether this request may pass, and the window's limit, rest and end."""

    allowed: bool
    limit: int
    remaining: int
    ends_at: float

    @property
    def resets_at(self) -> int:
        """When the window ends, in whole seconds since the epoch."""
        return math.ceil(self.ends_at)

    @property
    def retry_after(self) -> int:
        """Seconds until the window ends: at least one, at most its length."""
        return min(WINDOW_SECONDS, max(1, math.ceil(self.ends_at - time.time())))


class RateLimiter:
    """Windows of 60 seconds that begin with a key's first request, never cut by the wall clock."""

    def __init__(
        self, settings: Settings, metrics: Metrics, database: AsyncDatabase[Document] | None = None
    ) -> None:
        """Count where the settings say; in `database` itself where that is the place."""
        self._limit = settings.rate_limit_per_minute
        self._item = RateLimitItemPerMinute(self._limit)
        self._storage = _storage(settings, database)
        self._in_memory = isinstance(self._storage, MemoryStorage)
        self._names: dict[str, str] = {}
        self._metrics = metrics
        self._away = False
        self._ask_again_at = 0.0

    async def hit(self, key: str) -> Allowance:
        """Count one request of a key. Where the shared storage is away it passes, logged and counted."""
        if self._in_memory:
            return await self._hit(key)
        if time.monotonic() < self._ask_again_at:
            return self._pass()
        try:
            async with asyncio.timeout(STORAGE_TIMEOUT_SECONDS):
                allowance = await self._hit(key)
        except Exception as error:  # noqa: BLE001 - each storage raises errors of its own driver
            self._ask_again_at = time.monotonic() + ASK_AGAIN_SECONDS
            if not self._away:
                self._away = True
                log.get().warning("Rate limit storage is away; requests pass", error=type(error).__name__)
            return self._pass()
        if self._away:
            self._away = False
            log.get().info("Rate limit storage is back")
        return allowance

    def _pass(self) -> Allowance:
        self._metrics.rate_limit_failures.inc()
        return Allowance(True, self._limit, self._limit, time.time() + WINDOW_SECONDS)

    async def close(self) -> None:
        """Close the connections to a shared storage."""
        if isinstance(self._storage, shared_counters.SharedCounters):
            await self._storage.close()

    async def _hit(self, key: str) -> Allowance:
        # What `limits` calls a fixed window, without its second look at the counter to tell what is left.
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = self._item.key_for(key)
        count = await self._storage.incr(name, WINDOW_SECONDS)
        ends_at = await self._storage.get_expiry(name)
        return Allowance(count <= self._limit, self._limit, max(0, self._limit - count), ends_at)


def _storage(settings: Settings, database: AsyncDatabase[Document] | None) -> Storage:
    uri = settings.rate_limit_storage_uri.get_secret_value()
    if urlsplit(uri).scheme == "memory":
        return MemoryStorage()
    if uri.startswith("mongodb"):
        at_hand = database if uri == settings.mongodb_uri.get_secret_value() else None
        return shared_counters.SharedCounters(f"async+{uri}", database=at_hand)
    from limits.storage import storage_from_string  # noqa: PLC0415 - not needed without Redis

    storage = storage_from_string(f"async+{uri}", implementation="redispy")
    assert isinstance(storage, Storage)  # noqa: S101 - the scheme says so
    return storage
