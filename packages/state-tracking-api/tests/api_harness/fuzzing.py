"""How much the generating tests ask: a bounded number in `make test`, as many as one likes in `make fuzz`."""

from __future__ import annotations

import os

import pytest

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""How many examples were asked for; 0 in `make test`, whose examples are the same ones every time."""

without_end = pytest.mark.timeout(0 if EXAMPLES else 600)
"""For a test that takes as long as its examples do: its work is bounded, not its time."""
