"""The server's clock, the only one that counts; and how its times are written in answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def now() -> datetime:
    """This moment in UTC, in whole milliseconds: that is what the database stores."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and Z. `moment` must be in UTC."""
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def iso_or_none(moment: datetime | None) -> str | None:
    """As `iso`, for a time that may be unset."""
    return None if moment is None else iso(moment)
