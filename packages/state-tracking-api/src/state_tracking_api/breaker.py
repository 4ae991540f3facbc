"""Circuit breaker for the database (PRD 5.2): leaves one that is away alone, and tries again later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FAILURES = 5
WINDOW_SECONDS = 60.0
COOL_DOWN_SECONDS = 30.0


class Pass:
    """The right to call the database once; what became of it is told with the pass in hand."""

    __slots__ = ()


_PASS = Pass()


class CircuitBreaker:
    """Closed: everything passes. Open: nothing does. Half open: one trial decides."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self.on_change: Callable[[str], None] | None = None
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._opened_at: float | None = None
        self._trial: Pass | None = None
        self._trial_at = 0.0

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
        latest = self._opened_at if self._trial is None else self._trial_at
        return max(0.0, latest + COOL_DOWN_SECONDS - self._monotonic())

    def admits(self) -> Pass | None:
        """A pass to the database, or None; in the half-open state only the first one gets one, the trial."""
        if self._opened_at is None:
            return _PASS
        if self.retry_after() > 0:
            return None
        # A trial that never reports back is replaced after another cool-down.
        self._trial, self._trial_at = Pass(), self._monotonic()
        return self._trial

    def succeeded(self) -> bool:
        """A call reached the database; tells whether this closed the circuit."""
        if self._failures:
            self._failures.clear()
        if self._opened_at is None:
            return False
        self._opened_at = self._trial = None
        self._changed()
        return True

    def inconclusive(self, admitted: Pass) -> None:
        """A call ended before it came to the database; where it was the trial, the next one may try.

        One that was under way when the circuit opened says nothing about the trial.
        """
        if admitted is self._trial:
            self._trial = None

    def failed(self, admitted: Pass) -> bool:
        """A call did not reach the database; tells whether this opened the circuit.

        While it is open only the trial's failure counts: those that were under way when it opened would put
        the next trial off.
        """
        now = self._monotonic()
        self._failures.append(now)
        if self._opened_at is not None:
            if admitted is self._trial:
                self._opened_at, self._trial = now, None
            return False
        if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECONDS:
            self._opened_at = now
            self._changed()
            return True
        return False

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self.state)
