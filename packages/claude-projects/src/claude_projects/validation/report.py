"""What a validation has found: kept, and told as text, JSON and Markdown."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from claude_projects.validation.probe import percentile

HELD, FAILED = "held", "FAILED"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what should be, whether it is, and what was found."""

    what: str
    held: bool
    found: str = ""


@dataclass
class Result:
    """What came of one scenario. ``error`` says why it ended early."""

    name: str
    title: str
    prd: str
    checks: list[Check] = field(default_factory=list[Check])
    seconds: float = 0.0
    error: str | None = None
    ended: bool = False

    @property
    def held(self) -> bool:
        """Whether it came to its end and every check held."""
        return self.ended and self.error is None and all(check.held for check in self.checks)

    @property
    def wrong(self) -> list[str]:
        """What did not hold, a sentence each."""
        said = [f"{c.what}: {c.found}" if c.found else c.what for c in self.checks if not c.held]
        return said + ([self.error] if self.error else [])


@dataclass(frozen=True)
class Latency:
    """Measured times of one kind of request, in milliseconds, against the limit for the 95th percentile."""

    name: str
    samples: int
    p50: float
    p95: float
    p99: float
    limit: float

    @classmethod
    def of(cls, name: str, seconds: Iterable[float], limit: float) -> "Latency":
        """Summarise samples that are in seconds."""
        ms = [1000 * one for one in seconds]
        return cls(name, len(ms), percentile(ms, 0.5), percentile(ms, 0.95), percentile(ms, 0.99), limit)

    @property
    def held(self) -> bool:
        """Whether the 95th percentile is below its limit; no samples do not hold."""
        return self.p95 < self.limit


@dataclass
class Report:
    """Everything about one validation."""

    url: str
    project_id: str
    started_at: str
    client_version: str
    server_version: str | None = None
    ended_at: str = ""
    times: dict[str, Any] = field(default_factory=dict[str, Any])
    results: list[Result] = field(default_factory=list[Result])
    left_out: list[str] = field(default_factory=list[str])
    latencies: list[Latency] = field(default_factory=list[Latency])
    requests: int = 0
    throttled: int = 0
    waited_seconds: float = 0.0
    interrupted: bool = False

    @property
    def held(self) -> bool:
        """Whether everything that was to be looked at was, and held."""
        return not self.interrupted and bool(self.results) and not self._failed

    @property
    def _failed(self) -> list[str]:
        failed = [one.name for one in self.results if not one.held]
        # A scenario that was not chosen cannot be red, but a latency that was measured on the way can.
        return failed or [f"p95 of {one.name}" for one in self.latencies if not one.held]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.interrupted:
            return "Broken off: this is no verdict on the deployment."
        if not self.held:
            return f"Did not hold: {', '.join(self._failed)}."
        return f"Held; not looked at: {', '.join(self.left_out)}." if self.left_out else "All scenarios held."

    def as_json(self) -> str:
        """For programs."""
        document: dict[str, Any] = {
            "held": self.held,
            "verdict": self.verdict,
            "url": self.url,
            "server_version": self.server_version,
            "client_version": self.client_version,
            "project_id": self.project_id,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "interrupted": self.interrupted,
            "left_out": self.left_out,
            "times": self.times,
            "requests": self.requests,
            "throttled": self.throttled,
            "waited_seconds": round(self.waited_seconds, 1),
            "scenarios": [
                {
                    "name": one.name,
                    "title": one.title,
                    "prd": one.prd,
                    "held": one.held,
                    "seconds": round(one.seconds, 3),
                    "error": one.error,
                    "checks": [vars(check) for check in one.checks],
                }
                for one in self.results
            ],
            "latencies_ms": [
                {
                    "name": one.name,
                    "samples": one.samples,
                    "p50": _number(one.p50),
                    "p95": _number(one.p95),
                    "p99": _number(one.p99),
                    "p95_limit": one.limit,
                    "held": one.held,
                }
                for one in self.latencies
            ],
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def as_text(self) -> str:
        """For people at a terminal."""
        lines = [f"Validation of {self.url} (version {self.server_version or 'unknown'})", ""]
        for one in self.results:
            state = HELD if one.held else FAILED
            lines.append(
                f"  {state:<7} {one.name:<18} {one.title} ({len(one.checks)} checks, {one.seconds:.1f} s)"
            )
            lines += [f"          - {sentence}" for sentence in one.wrong]
        if self.latencies:
            lines += ["", "  Latency in ms           samples      p50      p95      p99   limit of p95"]
            lines += [
                f"  {one.name:<22}{one.samples:>8}{_ms(one.p50):>9}{_ms(one.p95):>9}{_ms(one.p99):>9}"
                f"{one.limit:>9.0f} {'' if one.held else FAILED}".rstrip()
                for one in self.latencies
            ]
        waited = f", {self.waited_seconds:.0f} s waiting for the rate limit" if self.waited_seconds else ""
        lines += ["", f"  {self.requests} requests, {self.throttled} refused with 429{waited}.", ""]
        return "\n".join([*lines, self.verdict]) + "\n"

    def as_markdown(self) -> str:
        """For a ticket or a wiki."""
        lines = [
            f"# Validation of {self.url}",
            "",
            f"**{self.verdict}**",
            "",
            f"Server {self.server_version or 'unknown'}, client {self.client_version}.",
            f"{self.started_at} to {self.ended_at}, project `{self.project_id}`.",
            "",
            "| scenario | PRD | result | checks | seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {one.title} (`{one.name}`) | {one.prd} | {HELD if one.held else f'**{FAILED}**'} "
            f"| {len(one.checks)} | {one.seconds:.1f} |"
            for one in self.results
        ]
        wrong = [f"- `{one.name}`: {sentence}" for one in self.results for sentence in one.wrong]
        if wrong:
            lines += ["", "## What did not hold", "", *wrong]
        if self.latencies:
            lines += [
                *("", "## Latency in milliseconds", ""),
                "| request | samples | p50 | p95 | p99 | limit of p95 | result |",
                "| --- | --- | --- | --- | --- | --- | --- |",
            ]
            lines += [
                f"| {one.name} | {one.samples} | {_ms(one.p50)} | {_ms(one.p95)} | {_ms(one.p99)} "
                f"| {one.limit:.0f} | {HELD if one.held else f'**{FAILED}**'} |"
                for one in self.latencies
            ]
        lines += ["", "## Every check", ""]
        for one in self.results:
            lines += [f"### {one.title}", ""]
            lines += [f"- [{'x' if check.held else ' '}] {check.what}" for check in one.checks]
            lines.append("")
        return "\n".join(lines).rstrip() + "\n"


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
