"""Circuit breaker for the database (PRD 5.2): leaves one that is away alone, and tries again later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FAILURES = 5
WINDOW_SECONDS = 60.0
COOL_DOWN_SECONDS = 30.0


class CircuitBreaker:
    """Closed: everything passes. Open: nothing does. Half open: one trial decides."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.on_change: Callable[[str], None] | None = None
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._opened_at: float | None = None
        self._trial_at: float | None = None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        if self._opened_at is None:
            return "closed"
        return "open" if self.retry_after() > 0 else "half_open"

    def retry_after(self) -> float:
        """Seconds until a trial is let through; 0 where one would pass now."""
        if self._opened_at is None:
            return 0.0
        latest = self._opened_at if self._trial_at is None else self._trial_at
        return max(0.0, latest + COOL_DOWN_SECONDS - self._monotonic())

    def admits(self) -> bool:
        """Whether a call may go to the database now; in the half-open state only the first one may."""
        if self._opened_at is None:
            return True
        if self.retry_after() > 0:
            return False
        # A trial that never reports back (its request was cancelled) is replaced after another cool-down.
        self._trial_at = self._monotonic()
        return True

    def succeeded(self) -> bool:
        """A call reached the database; tells whether this closed the circuit."""
        if self._failures:
            self._failures.clear()
        if self._opened_at is None:
            return False
        self._opened_at = self._trial_at = None
        self._changed()
        return True

    def inconclusive(self) -> None:
        """A call ended before it came to the database; where it was the trial, the next one may try."""
        if self._trial_at is not None and self._opened_at is not None:
            self._trial_at = None

    def failed(self) -> bool:
        """A call did not reach the database; tells whether this opened the circuit."""
        now = self._monotonic()
        self._failures.append(now)
        if self._opened_at is not None:
            self._opened_at, self._trial_at = now, None
            return False
        if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECONDS:
            self._opened_at = now
            self._changed()
            return True
        return False

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self.state)
