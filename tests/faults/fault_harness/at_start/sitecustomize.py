"""What Python does first in a client whose clock can be set wrong.

libfaketime 0.9.10 answers `clock_nanosleep` until an absolute time with EINVAL where it leaves the monotonic
clock alone, so that every `time.sleep` would be an OSError. Here it waits as long in another system call.
"""

from __future__ import annotations

import select
import time


def _sleep(seconds: float, /) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
