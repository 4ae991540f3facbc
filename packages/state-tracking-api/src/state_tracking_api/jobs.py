"""Background jobs: bounded, idempotent, each under a lease in the database (PRD 3.2, 3.4).

A job may be run twice, at once, or be killed half-way, and the result is the same. The lease only keeps
several instances from doing the same work side by side.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pymongo
from pymongo.errors import PyMongoError

from state_tracking_api import cleanup, clock, consistency, detection, health, log, presence
from state_tracking_api.background import end
from state_tracking_api.clock import Clock, iso
from state_tracking_api.errors import ApiError
from state_tracking_api.lifecycle import Stamp
from state_tracking_api.metadata import Json
from state_tracking_api.settings import Settings, Switch
from state_tracking_api.storage import Storage, is_away

JOB_TIMEOUT_SECONDS = 600
# Short, for the sessions that fall silent while the holder of the scan's lease has died with it.
LEASE = timedelta(seconds=20)
RELEASE_TIMEOUT_SECONDS = 1
# How often an instance looks whether a session has become overdue; one query on an index.
WAKE_SECONDS = 1.0
# How long a job that has failed is left alone; where it judges silence, not for long. Where the database was
# away, not at all: silence is to be judged as soon as it is back.
PAUSE = timedelta(seconds=60)
SHORT_PAUSE = timedelta(seconds=5)
# Bounds of the gap between two signs of the service's presence that counts as an outage.
MIN_AWAY = timedelta(seconds=3)
MAX_AWAY = timedelta(seconds=10)


@dataclass(frozen=True)
class Job:
    """A background job: its name, what it does, and when it is due after its last run."""

    name: str
    run: Callable[[Storage, Settings, Stamp], Awaitable[Json]]
    due: Callable[[Settings, datetime, datetime], bool]
    judges_silence: bool = False


def _scan_due(settings: Settings, now: datetime, last: datetime) -> bool:
    # A little early rather than late: STALL_SCAN_INTERVAL_SECONDS is the most that may lie between two scans.
    return now - last >= timedelta(seconds=settings.stall_scan_interval_seconds - WAKE_SECONDS)


def _every(span: timedelta) -> Callable[[Settings, datetime, datetime], bool]:
    return lambda _settings, now, last: now - last >= span


def _daily(hour_utc: int) -> Callable[[Settings, datetime, datetime], bool]:
    def due(_settings: Settings, now: datetime, last: datetime) -> bool:
        today = now.replace(hour=hour_utc, minute=0, second=0, microsecond=0)
        latest = today if now >= today else today - timedelta(days=1)
        return last < latest

    return due


DETECT_FAILURES = "detect-failures"
CLEANUP = "cleanup"
CHECK_CONSISTENCY = "check-consistency"

JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job(DETECT_FAILURES, detection.detect_failures, _scan_due, judges_silence=True),
        Job(
            "mark-machines-offline",
            detection.mark_machines_offline,
            _every(timedelta(seconds=30)),
            judges_silence=True,
        ),
        Job("fail-abandoned", detection.fail_abandoned, _every(timedelta(minutes=10))),
        Job(CLEANUP, cleanup.cleanup, _daily(hour_utc=2)),
        Job(CHECK_CONSISTENCY, consistency.check, _every(timedelta(hours=1))),
    )
}


async def run(
    storage: Storage, settings: Settings, name: str, *, now: Clock = clock.now, repair: bool = False
) -> Json:
    """Run a job once, now; `{"skipped": …}` where another instance is running it.

    `repair` lets check-consistency mend what it finds. Raises KeyError for a name that is none of JOBS.
    """
    job = JOBS[name]
    if repair:
        job = replace(job, run=partial(consistency.check, repair=True))

    async def leased() -> Json:
        async with lease(storage, name) as held:
            if not held:
                return {"skipped": f"{name} is running on another instance"}
            return await _run_held(storage, settings, job, now, _away_between_runs(settings))

    # The check must run on data that is too broken for its unique indexes, to say so.
    return await storage.through(leased, prepared=name != CHECK_CONSISTENCY)


async def detect_now(storage: Storage, settings: Settings, stamp: Stamp) -> Json:
    """Look for silent sessions for a caller who asks for it; what detect_failures returns."""
    with_scheduler = settings.scheduler is Switch.ON
    away_after = _away_between_signs(settings) if with_scheduler else _away_between_runs(settings)
    stamp = await _judging(storage, settings, stamp, away_after)
    return await detection.detect_failures(storage, settings, stamp)


def _away_between_signs(settings: Settings) -> timedelta:
    # The scheduler leaves a sign every second; a gap of a few, or of half a short threshold, is an outage.
    return max(MIN_AWAY, min(MAX_AWAY, settings.stall_threshold / 2))


def _away_between_runs(settings: Settings) -> timedelta:
    # Run from outside, nobody else leaves a sign in between: only a longer silence was an outage.
    return max(settings.stall_threshold, timedelta(seconds=2 * settings.stall_scan_interval_seconds))


async def _note_presence(storage: Storage, settings: Settings, away_after: timedelta) -> datetime | None:
    """Leave a sign of the service's presence; the time of it by the database's clock."""
    if not settings.outage_grace:
        return None
    noted = await presence.note(storage, away_after, settings.stall_threshold)
    if noted.outage is not None and noted.is_news and await presence.claim_news(storage, noted.outage):
        log.get().warning(
            "The service was away; sessions that lived through it have fresh grace",
            gone_at=iso(noted.outage.gone_at),
            back_at=iso(noted.outage.back_at),
        )
    return noted.at


async def _judging(storage: Storage, settings: Settings, stamp: Stamp, away_after: timedelta) -> Stamp:
    """The stamp with which silence is judged, after a sign of our presence.

    The clock was read before: a standstill until that moment is found by the sign, and one after it cannot
    make anybody's silence longer. Nor may a clock of ours that has jumped ahead: the earlier of it and the
    database's counts.
    """
    at = await _note_presence(storage, settings, away_after)
    return stamp if at is None else replace(stamp, now=min(stamp.now, at))


async def _run_held(
    storage: Storage, settings: Settings, job: Job, now: Clock, away_after: timedelta
) -> Json:
    started = time.monotonic()
    stamp = Stamp(now(), f"job:{job.name}")
    if job.judges_silence:
        stamp = await _judging(storage, settings, stamp, away_after)
    with pymongo.timeout(JOB_TIMEOUT_SECONDS):
        result = await job.run(storage, settings, stamp)
    affected = next((result[name] for name in _AFFECTED if name in result), 0)
    log.get().info(
        "Background job executed",
        job_name=job.name,
        sessions_affected=affected,
        duration_ms=round((time.monotonic() - started) * 1000, 3),
    )
    await storage.jobs.update_one({"_id": job.name}, {"$set": {"last_run": stamp.now}})
    return result


_AFFECTED = ("marked_stalled", "marked_failed", "deleted_sessions")


@asynccontextmanager
async def lease(storage: Storage, name: str) -> AsyncGenerator[bool]:
    """Hold a job's lease while the block runs; yields False where another instance holds it.

    Its times are the database's, so that the clocks of the instances need not agree. It is renewed while the
    holder lives and runs out on its own where the holder dies.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4()}"
    await storage.jobs.update_one({"_id": name}, {"$setOnInsert": {"created_at": clock.now()}}, upsert=True)
    until = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": int(LEASE.total_seconds())}}
    take: list[Mapping[str, Any]] = [{"$set": {"lease_owner": owner, "lease_until": until}}]
    free = {"$lte": [{"$ifNull": ["$lease_until", datetime.fromtimestamp(0, UTC)]}, "$$NOW"]}
    taken = await storage.jobs.update_one({"_id": name, "$expr": free}, take)
    if not taken.matched_count:
        yield False
        return

    async def renew() -> None:
        while True:
            await asyncio.sleep(LEASE.total_seconds() / 3)
            with suppress(PyMongoError):  # the next time may be in time as well
                await storage.jobs.update_one({"_id": name, "lease_owner": owner}, take)

    renewing = asyncio.create_task(renew())
    try:
        yield True
    finally:
        await end(renewing)
        # Where the database is away, the lease runs out on its own. The end must not wait for it,
        # nor may its failure take the place of the cancellation that has brought us here.
        with suppress(PyMongoError), pymongo.timeout(RELEASE_TIMEOUT_SECONDS):
            await storage.jobs.update_one(
                {"_id": name, "lease_owner": owner}, {"$set": {"lease_owner": None, "lease_until": None}}
            )


async def last_run(storage: Storage, name: str) -> datetime | None:
    """When a job was last run by any instance; None before its first run."""
    found = await storage.jobs.find_one({"_id": name}, {"last_run": 1})
    return None if found is None else found.get("last_run")


class Scheduler:
    """Runs the jobs when they are due, until it is cancelled."""

    def __init__(self, storage: Storage, settings: Settings, now: Clock = clock.now) -> None:
        self._storage = storage
        self._settings = settings
        self._now = now
        self._started = now()
        self._away_after = _away_between_signs(settings)
        self._paused_until: dict[str, datetime] = {}

    async def run(self) -> None:
        """Wake every second, run what is due; a database that is away is waited for.

        What judges silence, and the sign of our presence, must not wait for a cleanup that takes minutes:
        silence would be noticed late, and the service be taken for away.
        """
        others = [job for job in JOBS.values() if not job.judges_silence]
        loops = [
            asyncio.create_task(self._keep_watch()),
            asyncio.create_task(self._keep_running(others)),
        ]
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(*loops)

    async def _keep_watch(self) -> None:
        jobs = [job for job in JOBS.values() if job.judges_silence]
        while True:
            await self._survive("presence", self._note_presence)
            await self._run_due(jobs)
            await asyncio.sleep(WAKE_SECONDS)

    async def _keep_running(self, jobs: Sequence[Job]) -> None:
        while True:
            await self._run_due(jobs)
            await asyncio.sleep(WAKE_SECONDS)

    async def _run_due(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            paused_until = self._paused_until.get(job.name)
            if paused_until is not None and self._now() < paused_until:
                continue
            if not await self._survive(job.name, partial(self._run_if_due, job)):
                self._paused_until[job.name] = self._now() + (SHORT_PAUSE if job.judges_silence else PAUSE)

    async def _survive(self, name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do the work, whatever comes of it; tells whether it may be tried again at once."""
        try:
            await self._storage.through(work)
        except (PyMongoError, ApiError) as error:
            log.get().warning("Background job failed", job_name=name, error=str(error)[:500])
            return isinstance(error, ApiError) or is_away(error)
        except Exception:  # noqa: BLE001 - a defect in one job must not end the others
            log.get().exception("Background job crashed", job_name=name)
            return False
        return True

    async def _note_presence(self) -> None:
        await _note_presence(self._storage, self._settings, self._away_after)

    async def _run_if_due(self, job: Job) -> None:
        if not await self._is_due(job):
            return
        async with lease(self._storage, job.name) as held:
            # Another instance may have run it between our look and our lease.
            if held and await self._is_due(job):
                await _run_held(self._storage, self._settings, job, self._now, self._away_after)

    async def _is_due(self, job: Job) -> bool:
        now = self._now()
        # A daily job that never ran waits for its hour; it does not run at the first start.
        first = self._started if job.name == CLEANUP else datetime.fromtimestamp(0, UTC)
        last = await last_run(self._storage, job.name) or first
        if job.due(self._settings, now, last):
            return True
        if job.name != DETECT_FAILURES:
            return False
        outage = await presence.latest_outage(self._storage) if self._settings.outage_grace else None
        waiting = health.overdue(now, self._settings.stall_threshold, outage)
        return await self._storage.sessions.find_one(waiting, {"_id": 1}) is not None
