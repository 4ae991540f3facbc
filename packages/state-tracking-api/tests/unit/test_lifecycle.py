"""Statuses and the stall rule, as pure functions of document and time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from state_tracking_api import lifecycle
from state_tracking_api.lifecycle import Outage, SessionStatus, TaskStatus

NOW = datetime(2026, 1, 19, 12, 0, tzinfo=UTC)
THRESHOLD = timedelta(minutes=3)
LIMIT = THRESHOLD


def session(status: SessionStatus, silent: timedelta = timedelta(0), **more: Any) -> dict[str, Any]:
    """A session that was last heard of `silent` ago, started an hour before that."""
    last = NOW - silent
    return {"status": status, "last_heartbeat": last, "created_at": last - timedelta(hours=1), **more}


def test_nothing_leads_out_of_an_ended_session() -> None:
    for status in lifecycle.ENDED:
        assert lifecycle.SESSION_TRANSITIONS[status] == frozenset()


def test_a_live_session_may_enter_every_other_status() -> None:
    for status in lifecycle.LIVE:
        assert lifecycle.SESSION_TRANSITIONS[status] == frozenset(SessionStatus) - {status}


def test_only_blocked_may_be_said_again_of_a_task() -> None:
    again = {status for status in TaskStatus if status in lifecycle.TASK_TRANSITIONS[status]}
    assert again == {TaskStatus.BLOCKED}


def test_a_finished_task_can_only_be_blocked() -> None:
    for status in lifecycle.TASK_FINISHED:
        assert lifecycle.TASK_TRANSITIONS[status] == {TaskStatus.BLOCKED}


@pytest.mark.parametrize("status", list(SessionStatus))
def test_only_a_live_session_that_is_not_fenced_holds_its_machine(status: SessionStatus) -> None:
    assert lifecycle.holds_its_machine(session(status)) == (status in lifecycle.LIVE)
    assert not lifecycle.holds_its_machine(session(status, fenced=True))


def test_silence_of_exactly_the_threshold_is_not_yet_a_stall() -> None:
    at_limit = session(SessionStatus.ACTIVE, THRESHOLD)
    past_limit = session(SessionStatus.ACTIVE, THRESHOLD + timedelta(milliseconds=1))
    assert not lifecycle.is_overdue(at_limit, NOW, THRESHOLD)
    assert lifecycle.is_healthy(at_limit, NOW, THRESHOLD)
    assert lifecycle.is_overdue(past_limit, NOW, THRESHOLD)
    assert not lifecycle.is_healthy(past_limit, NOW, THRESHOLD)


@pytest.mark.parametrize("status", [s for s in SessionStatus if s is not SessionStatus.ACTIVE])
def test_only_an_active_session_becomes_overdue(status: SessionStatus) -> None:
    silent = session(status, timedelta(days=1))
    assert not lifecycle.is_overdue(silent, NOW, THRESHOLD)
    assert lifecycle.is_stalled(silent, NOW, THRESHOLD) == (status is SessionStatus.STALLED)
    assert not lifecycle.is_healthy(silent, NOW, THRESHOLD)


def test_a_sessions_own_threshold_wins_over_the_default() -> None:
    patient = session(SessionStatus.ACTIVE, timedelta(minutes=5), stall_threshold_ms=600_000)
    hasty = session(SessionStatus.ACTIVE, timedelta(seconds=20), stall_threshold_ms=10_000)
    assert not lifecycle.is_overdue(patient, NOW, THRESHOLD)
    assert lifecycle.is_overdue(hasty, NOW, THRESHOLD)


def test_a_heartbeat_from_the_future_counts_as_no_silence() -> None:
    assert lifecycle.silence(session(SessionStatus.ACTIVE, -timedelta(hours=1)), NOW) == timedelta(0)


class TestGraceAfterAnOutage:
    """The service was away from ten minutes ago until a minute ago."""

    outage = Outage(gone_at=NOW - timedelta(minutes=10), back_at=NOW - timedelta(minutes=1))

    def overdue(self, silent: timedelta, now: datetime = NOW, **more: Any) -> bool:
        return lifecycle.is_overdue(
            session(SessionStatus.ACTIVE, silent, **more), now, THRESHOLD, self.outage
        )

    def test_who_lived_when_it_went_away_is_not_held_to_the_silence(self) -> None:
        assert not self.overdue(timedelta(minutes=11))

    def test_who_was_silent_before_it_went_away_gets_no_grace(self) -> None:
        assert self.overdue(timedelta(minutes=14))

    def test_the_grace_is_one_threshold_from_its_return(self) -> None:
        assert not self.overdue(timedelta(minutes=11), NOW + timedelta(minutes=2))
        assert self.overdue(timedelta(minutes=11), NOW + timedelta(minutes=2, milliseconds=1))

    def test_who_started_after_its_return_gets_no_grace(self) -> None:
        started = self.outage.back_at + timedelta(seconds=1)
        assert self.overdue(timedelta(minutes=5), created_at=started)
