"""The uptime watch: ``GET /health`` now and then for hours, kept in a file, so that it can go on."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claude_projects.validation.probe import Probe, UnansweredError, percentile

UPTIME_TARGET = 0.995
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def span(text: str) -> float:
    """Seconds of a time span such as 90s, 30m, 24h, 7d. Raises ValueError."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS:
        raise ValueError(f"{text!r} is not a time span such as 90s, 30m, 24h or 7d")
    seconds = float(number) * _UNITS[unit]
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is not longer than nothing")
    return seconds


@dataclass
class Watch:
    """What was seen so far. Time in which nobody watched counts neither as up nor as down."""

    path: Path
    url: str
    interval: float
    at: list[float] = field(default_factory=list[float])
    up: list[bool] = field(default_factory=list[bool])
    milliseconds: list[float] = field(default_factory=list[float])

    @classmethod
    def of(cls, path: Path, url: str, interval: float) -> "Watch":
        """Go on with the watch in ``path``, or begin one. Raises ValueError where it watches another address.

        A last line that was cut off when the watch was killed is left out.
        """
        watch = cls(path, url, interval)
        if path.exists():
            complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
            for line in complete.splitlines():
                sample: Any = json.loads(line)
                if sample["url"] != url:
                    raise ValueError(f"{path} is a watch of {sample['url']}; give another --watch-file")
                watch._add(float(sample["at"]), up=bool(sample["up"]), ms=float(sample["ms"]))
            path.write_text(f"{complete}\n" if complete else "", encoding="utf-8")
        return watch

    def _add(self, at: float, *, up: bool, ms: float) -> None:
        self.at.append(at)
        self.up.append(up)
        if up:
            self.milliseconds.append(ms)

    def look(self, probe: Probe) -> bool:
        """Ask once and keep the answer; whether it was up."""
        why = ""
        try:
            reply = probe.send("GET", "/health", key=None)
            up, ms = reply.status == 200 and reply.field("status") == "ok", 1000 * reply.seconds
            why = "" if up else reply.said
        except UnansweredError as error:
            up, ms, why = False, 0.0, str(error)
        sample = {"at": round(time.time(), 3), "url": self.url, "up": up, "ms": round(ms, 3)}
        self._add(float(sample["at"]), up=up, ms=ms)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample | ({"why": why} if why else {})) + "\n")
        return up

    @property
    def _steps(self) -> list[float]:
        """The time that each sample but the last stands for; a gap stands for nothing."""
        longest = max(3 * self.interval, self.interval + 60)
        steps = [after - before for before, after in zip(self.at, self.at[1:], strict=False)]
        return [step if 0 <= step <= longest else 0.0 for step in steps]

    @property
    def watched(self) -> float:
        """Seconds that were watched."""
        return sum(self._steps)

    @property
    def uptime(self) -> float:
        """Share of the watched time in which it was up; of the samples, where there is only one."""
        if not self.watched:
            return sum(self.up) / len(self.up) if self.up else 0.0
        # From one look to the next the state is taken to be the one that was seen first.
        return sum(step for step, up in zip(self._steps, self.up, strict=False) if up) / self.watched

    @property
    def held(self) -> bool:
        """Whether the uptime target is met (PRD 4.4, section 3)."""
        return bool(self.up) and self.uptime >= UPTIME_TARGET

    def outages(self) -> list[tuple[float, float]]:
        """Begin (Unix time) and length in seconds of every stretch in which it was down."""
        found: list[tuple[float, float]] = []
        begin: float | None = None
        for at, up in zip(self.at, self.up, strict=True):
            if not up and begin is None:
                begin = at
            elif up and begin is not None:
                found.append((begin, at - begin))
                begin = None
        if begin is not None:
            found.append((begin, self.at[-1] - begin))
        return found

    def summary(self) -> dict[str, Any]:
        """For programs."""
        longest = max((length for _, length in self.outages()), default=0.0)
        return {
            "url": self.url,
            "held": self.held,
            "watched_seconds": round(self.watched, 1),
            "samples": len(self.at),
            "uptime": round(self.uptime, 6),
            "target": UPTIME_TARGET,
            "outages": [{"began_at": _iso(at), "seconds": round(s, 1)} for at, s in self.outages()],
            "longest_outage_seconds": round(longest, 1),
            "latency_ms": {
                f"p{share}": round(percentile(self.milliseconds, share / 100), 3)
                if self.milliseconds
                else None
                for share in (50, 95, 99)
            },
        }

    def as_text(self) -> str:
        """For people."""
        found = self.summary()
        latency = found["latency_ms"]
        verdict = "held" if self.held else "FAILED"
        lines = [
            f"Watched {self.url} for {self.watched / 3600:.2f} hours with {len(self.at)} looks.",
            f"Uptime {100 * self.uptime:.3f} % (target {100 * UPTIME_TARGET} %): {verdict}.",
            f"GET /health: p50 {latency['p50']} ms, p95 {latency['p95']} ms, p99 {latency['p99']} ms.",
        ]
        lines += [f"Down from {one['began_at']} for {one['seconds']} s." for one in found["outages"]]
        return "\n".join(lines) + "\n"


def watch(seen: Watch, probe: Probe, seconds: float, note: Callable[[str], object]) -> None:
    """Look until so many seconds have been watched in all, those of earlier runs included."""
    while True:
        up = seen.look(probe)
        left = seconds - seen.watched
        note(
            f"{'up' if up else 'DOWN'}, uptime {100 * seen.uptime:.3f} %, {max(0.0, left) / 3600:.2f} h left"
        )
        if left <= 0:
            return
        probe.pause(min(seen.interval, left))


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
