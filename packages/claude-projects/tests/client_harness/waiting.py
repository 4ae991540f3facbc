"""Waiting for events, with a deadline and never for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(look: Callable[[], T], what: str, deadline: float = 120.0) -> T:
    """The first truthy answer of ``look``; an AssertionError naming ``what`` after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:g} s in vain for: {what}")
        time.sleep(0.02)
