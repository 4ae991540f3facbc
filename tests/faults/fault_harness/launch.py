"""`state-tracking-api serve` in this process, with what a round wants of it: `launch.py MUTANT COOL_DOWN`.

The circuit breaker's cool-down of 30 seconds is longer than a short round; everything else that is scaled
down has a setting. A mutant is a bug put in on purpose, see mutants.py; `none` is the server as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fault_harness.mutants import MUTANTS
from state_tracking_api import breaker, cli


def main() -> None:
    """Serve."""
    mutant, cool_down = sys.argv[1:]
    breaker.COOL_DOWN_SECONDS = float(cool_down)
    if mutant != "none":
        MUTANTS[mutant].put_in()
    sys.argv = ["state-tracking-api", "serve"]
    cli.main()


if __name__ == "__main__":
    main()
