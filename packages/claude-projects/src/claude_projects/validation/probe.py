"""How a validation talks to the deployment: measured, within the rate limit, and from several threads."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from claude_projects.errors import ClaudeProjectsError
from claude_projects.exchange import retry_after

# Others may use the same key: this share of its requests is left to them.
RESERVE = 0.1
_PATIENCE = 5


class UnansweredError(ClaudeProjectsError):
    """The deployment gave no answer, or refused for too long to listen."""


class HaltedError(ClaudeProjectsError):
    """The validation is being broken off; whoever waits, stops waiting."""


@dataclass(frozen=True)
class Reply:
    """An answer: status, headers, decoded body (text where it is no JSON), and the seconds it took."""

    status: int
    headers: Mapping[str, str]
    body: Any
    seconds: float

    def field(self, name: str) -> Any:
        """A field of the body, None where there is none."""
        return self.body.get(name) if isinstance(self.body, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]

    @property
    def said(self) -> str:
        """Status and message, for people."""
        message = self.field("message")
        return f"{self.status} {message}" if message else str(self.status)

    @property
    def date(self) -> datetime:
        """The server's clock, to the second; ours where it does not tell."""
        try:
            return parsedate_to_datetime(self.headers["date"])
        except (KeyError, ValueError):
            return datetime.now(UTC)


def percentile(samples: Iterable[float], share: float) -> float:
    """The nearest-rank percentile, for ``share`` from 0 to 1; NaN where there are no samples."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass
class _Allowance:
    """What the rate limit still permits, as far as the last answer told."""

    limit: int | None = None
    remaining: int = 0
    resets_at: float = 0.0  # by our monotonic clock

    def wait(self) -> float:
        """Seconds until the next request may be sent without eating into the reserve."""
        left = self.resets_at - time.monotonic()
        if self.limit is None or left <= 0 or self.remaining > self.limit * RESERVE:
            return 0.0
        return left

    def read(self, reply: Reply) -> None:
        try:
            limit = int(reply.headers["x-ratelimit-limit"])
            remaining = int(reply.headers["x-ratelimit-remaining"])
            resets = float(reply.headers["x-ratelimit-reset"])
        except (KeyError, ValueError):
            return
        self.limit, self.remaining = limit, remaining
        # The reset is a time of the server's clock, so it is compared with that; Date is cut to the second.
        self.resets_at = time.monotonic() + max(0.0, resets - reply.date.timestamp())


@dataclass
class Probe:
    """Sends requests. ``note`` is told when it waits; ``halt`` ends every wait and lets nothing more be sent.

    A ``patient`` one keeps to the key's rate limit and waits out a 429; for the other, a 429 is an answer.
    """

    url: str
    key: str | None
    note: Callable[[str], object] = print
    timeout: float = 30.0
    patient: bool = True
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    requests: int = 0
    throttled: int = 0
    waited: float = 0.0
    halt: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        self._http = httpx.Client(timeout=httpx.Timeout(self.timeout, connect=10.0), limits=limits)
        self._lock = threading.Lock()
        self._allowance = _Allowance()
        self._waiting_until = 0.0

    @property
    def limit(self) -> int | None:
        """Requests per minute that the key may send, None where that is not known."""
        return self._allowance.limit

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def pause(self, seconds: float) -> None:
        """Wait. Raises HaltedError where the validation is broken off."""
        if self.halt.wait(max(0.0, seconds)):
            raise HaltedError("broken off")

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        measure: Iterable[str] = (),
        key: str | None = "own",
        query: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request; its latency is kept under each name in ``measure``.

        ``key`` may be another key, or None for none. A 429 is waited for and repeated, and its time does not
        count. Raises UnansweredError where no answer comes, HaltedError where the validation is broken off.
        """
        headers = {"Accept": "application/json"}
        sent = self.key if key == "own" else key
        if sent is not None:
            headers["X-API-Key"] = sent
        for _ in range(_PATIENCE):
            if key == "own" and self.patient:
                self._keep_pace()
            if self.halt.is_set():
                raise HaltedError("broken off")
            reply = self._once(method, path, body, headers, query)
            if reply.status != 429 or not self.patient:
                with self._lock:
                    for name in measure:
                        self.latencies[name].append(reply.seconds)
                return reply
            seconds = retry_after(reply.headers) or 1.0
            with self._lock:
                self.throttled += 1
            self._wait(seconds, "The API asks for patience (429)")
        raise UnansweredError(f"{method} {path}: still 429 after {_PATIENCE} times of waiting")

    def _once(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], query: Mapping[str, str] | None
    ) -> Reply:
        began = time.perf_counter()
        try:
            answer = self._http.request(
                method, f"{self.url}{path}", json=body, headers=dict(headers), params=query
            )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last: a key beyond ASCII
            raise UnansweredError(f"{method} {path}: no answer: {error or type(error).__name__}") from error
        seconds = time.perf_counter() - began
        try:
            decoded: Any = answer.json() if answer.content else None
        except ValueError:
            decoded = answer.text
        reply = Reply(answer.status_code, answer.headers, decoded, seconds)
        with self._lock:
            self.requests += 1
            if "X-API-Key" in headers:
                self._allowance.read(reply)
        return reply

    def _keep_pace(self) -> None:
        with self._lock:
            seconds = self._allowance.wait()
            if seconds == 0:
                self._allowance.remaining -= 1
        if seconds:
            self._wait(seconds, f"Waiting for the rate limit of {self.limit} requests a minute")

    def _wait(self, seconds: float, why: str) -> None:
        self.note(f"{why}: {seconds:.0f} s")
        with self._lock:  # threads wait at the same time, which is one wait
            now = time.monotonic()
            self.waited += max(0.0, now + seconds - max(now, self._waiting_until))
            self._waiting_until = max(self._waiting_until, now + seconds)
        self.pause(seconds)
