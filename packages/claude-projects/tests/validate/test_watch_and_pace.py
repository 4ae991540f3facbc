"""What a watch counts, and how a validation keeps to a rate limit: without a server."""

import json
import time
from pathlib import Path

import pytest

from claude_projects.validation.probe import HaltedError, Probe, Reply
from claude_projects.validation.watch import Watch, span

URL = "http://127.0.0.1:1"


def watched(directory: Path, samples: list[tuple[float, bool]], interval: float = 30.0) -> Watch:
    """A watch that has seen these (time, up) samples."""
    path = directory / "watch.jsonl"
    lines = [json.dumps({"at": at, "url": URL, "up": up, "ms": 5.0}) for at, up in samples]
    path.write_text("".join(f"{line}\n" for line in lines))
    return Watch.of(path, URL, interval)


def test_time_in_which_nobody_watched_counts_neither_as_up_nor_as_down(tmp_path: Path) -> None:
    seen = watched(tmp_path, [(0, True), (30, True), (60, True), (10_000, True), (10_030, True)])
    assert seen.watched == 90
    assert seen.uptime == 1.0


def test_an_outage_lasts_until_it_is_seen_up_again(tmp_path: Path) -> None:
    seen = watched(tmp_path, [(0, True), (30, False), (60, False), (90, True), (120, True)])
    assert seen.outages() == [(30, 60)]
    assert seen.uptime == 0.5
    assert not seen.held


def test_a_day_with_seven_minutes_of_outage_misses_no_target(tmp_path: Path) -> None:
    minutes = [(60.0 * minute, not 100 <= minute < 107) for minute in range(24 * 60 + 1)]
    assert watched(tmp_path, minutes, 60).held
    minutes = [(60.0 * minute, not 100 <= minute < 108) for minute in range(24 * 60 + 1)]
    assert not watched(tmp_path, minutes, 60).held


def test_a_watch_of_another_address_is_not_gone_on_with(tmp_path: Path) -> None:
    watched(tmp_path, [(0, True)])
    with pytest.raises(ValueError, match="is a watch of"):
        Watch.of(tmp_path / "watch.jsonl", "http://elsewhere", 30)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800), ("1.5h", 5400)]
)
def test_time_spans_are_read(text: str, seconds: float) -> None:
    assert span(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0s", "infd", "nanh", "1w"])
def test_what_is_no_time_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"span|nothing|float"):
        span(text)


def headers(remaining: int, seconds: float) -> dict[str, str]:
    """The headers of an answer whose clock is a year behind ours."""
    return {
        "x-ratelimit-limit": "100",
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(1_768_824_000 + seconds),
        "date": "Mon, 19 Jan 2026 12:00:00 GMT",
    }


@pytest.mark.parametrize(("remaining", "waits"), [(100, False), (11, False), (10, True), (0, True)])
def test_a_tenth_of_the_rate_limit_is_left_to_others(remaining: int, waits: bool) -> None:
    probe = Probe(URL, "key", note=lambda _: None)
    probe._allowance.read(Reply(200, headers(remaining, 40), None, 0.0))
    seconds = probe._allowance.wait()
    probe.close()
    assert (35 < seconds <= 40) if waits else seconds == 0


def test_whoever_waits_stops_waiting_when_the_validation_is_broken_off() -> None:
    probe = Probe(URL, "key", note=lambda _: None)
    probe.halt.set()
    began = time.monotonic()
    with pytest.raises(HaltedError):
        probe.pause(60)
    probe.close()
    assert time.monotonic() - began < 30
