"""Whether the service itself was there: the brake of the failure detection.

Sessions fall silent in the eyes of a service that was away, or whose database was. Nobody may be marked for
that. Whoever runs the detection leaves its time in the database every second or so; a gap in these times is
an outage, and sessions that lived through it get their whole threshold again from the moment it ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo import ReturnDocument

from state_tracking_api.lifecycle import Document, Outage
from state_tracking_api.storage import Storage

_ID = "presence"
_CHECK = "check-consistency"

# What is shown as a suspected outage, and for how long after it was noticed.
SUSPECTED_FOR = timedelta(minutes=15)
SAME_MINUTE = timedelta(seconds=60)
MIN_SUSPECTS = 3


@dataclass(frozen=True, slots=True)
class Noted:
    """A sign of the service's presence: when, the latest outage, and whether that may be news."""

    at: datetime
    outage: Outage | None
    is_news: bool


async def note(storage: Storage, away_after: timedelta, settled: timedelta) -> Noted:
    """Say that the service is there, by the database's clock; more than `away_after` of silence is an outage.

    Whoever signs also promises when to sign again, so that a job that is run now and then does not hide the
    outage of a service that signs every second. An outage that begins before the service was back for as
    long as `settled` goes on from the one before: a service that starts again and again was not there.
    """
    own = away_after // timedelta(milliseconds=1)
    gap: dict[str, Any] = {
        "$gt": [
            {"$subtract": ["$$NOW", {"$ifNull": ["$seen_at", "$$NOW"]}]},
            {"$min": ["$away_after_ms", own]},
        ]
    }
    goes_on: dict[str, Any] = {
        "$and": [
            {"$gt": ["$back_at", None]},
            {"$lt": [{"$subtract": ["$seen_at", "$back_at"]}, settled // timedelta(milliseconds=1)]},
        ]
    }
    change = {
        "gone_at": {
            "$cond": [gap, {"$cond": [goes_on, "$gone_at", "$seen_at"]}, {"$ifNull": ["$gone_at", None]}]
        },
        "back_at": {"$cond": [gap, "$$NOW", {"$ifNull": ["$back_at", None]}]},
        "seen_at": "$$NOW",
        "away_after_ms": own,
    }
    noted = await storage.jobs.find_one_and_update(
        {"_id": _ID}, [{"$set": change}], upsert=True, return_document=ReturnDocument.AFTER
    )
    assert noted is not None  # noqa: S101 - it is an upsert
    return Noted(noted["seen_at"], _outage(noted), noted["back_at"] != noted.get("told_back_at"))


async def claim_news(storage: Storage, outage: Outage) -> bool:
    """Whether the caller is the one to say that the service was away: nobody else will.

    It need not be who left the sign that ended the outage: the answer to that may have been lost, as that of
    a database that stood still is, which carries out what it was sent meanwhile.
    """
    claimed = await storage.jobs.update_one(
        {"_id": _ID, "told_back_at": {"$ne": outage.back_at}}, {"$set": {"told_back_at": outage.back_at}}
    )
    return claimed.modified_count > 0


async def latest_outage(storage: Storage) -> Outage | None:
    """The last time that the service was away, as far as it is known."""
    found = await storage.jobs.find_one({"_id": _ID})
    return None if found is None else _outage(found)


async def suspect_outage(storage: Storage, now: datetime) -> bool:
    """Note that most sessions fell silent at once, which rather tells of a fault of ours than of theirs.

    Tells whether that is news: while one is suspected already it goes on, and is not counted again.
    """
    goes_on = {"$gt": ["$suspected_at", now - SUSPECTED_FOR]}
    before = {"$ifNull": ["$suspected_outages", 0]}
    change = {"suspected_at": now, "suspected_outages": {"$add": [before, {"$cond": [goes_on, 0, 1]}]}}
    found = await storage.jobs.find_one_and_update({"_id": _ID}, [{"$set": change}], upsert=True)
    return not _is_suspected(found, now)


async def suspected_outages(storage: Storage) -> int:
    """How often an outage has been suspected so far."""
    found = await storage.jobs.find_one({"_id": _ID}, {"suspected_outages": 1}) or {}
    return found.get("suspected_outages", 0)


async def is_outage_suspected(storage: Storage, now: datetime) -> bool:
    """Whether most sessions fell silent at once a short while ago."""
    return _is_suspected(await storage.jobs.find_one({"_id": _ID}, {"suspected_at": 1}), now)


def _is_suspected(noted: Document | None, now: datetime) -> bool:
    at = None if noted is None else noted.get("suspected_at")
    return at is not None and now - at < SUSPECTED_FOR


async def note_check(storage: Storage, now: datetime, violations: int) -> None:
    """Keep what a check of the data has found."""
    found = {"checked_at": now, "violations": violations}
    await storage.jobs.update_one({"_id": _CHECK}, {"$set": found}, upsert=True)


async def latest_check(storage: Storage) -> Document:
    """When the data was last checked and how many violations were left; both None before the first time."""
    found = await storage.jobs.find_one({"_id": _CHECK}) or {}
    return {"checked_at": found.get("checked_at"), "violations": found.get("violations")}


def _outage(noted: Document) -> Outage | None:
    if noted.get("back_at") is None:
        return None
    return Outage(gone_at=noted["gone_at"], back_at=noted["back_at"])
