"""Rounds of random faults: `faults.py [--minutes M] [--seed N]`; `make faults` calls it.

What is printed is the table of docs/RELIABILITY.md, a row for each round; whatever a row has no place for
goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("tests/faults", "tests", "packages/state-tracking-api/tests")]

from fault_harness.cluster import Cluster
from fault_harness.mutants import EXTENSION_MUTANTS, MUTANTS
from fault_harness.rounds import Outcome, Shape, bug_is_found, header, hunt, play


def arguments() -> Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no round after so many")
    parser.add_argument("--rounds", type=int, help="play no more than so many")
    parser.add_argument("--seed", type=int, help="play the round of this seed, once")
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--servers", type=int, default=0)
    parser.add_argument("--extensions", type=int, default=1, help="orchestrations of the VS Code extension")
    parser.add_argument("--items", type=int, default=8, help="pieces of work in each orchestration")
    parser.add_argument(
        "--mutant",
        choices=[*MUTANTS, *EXTENSION_MUTANTS],
        help="put this bug in; fails where it is not found",
    )
    parser.add_argument(
        "--control", action="store_true", help="the rounds that look for the mutant, without it"
    )
    parser.add_argument("--keep", type=Path, default=ROOT / ".cache/faults")
    chosen = parser.parse_args()
    if chosen.control and chosen.mutant is None:
        parser.error("--control is the control of a --mutant")
    return chosen


def shape_of(chosen: Namespace, seed: int) -> Shape:
    """The round that is to be played."""
    if chosen.mutant is not None:
        hunted = hunt(chosen.mutant)
        return replace(hunted, mutant="none") if chosen.control else hunted
    return Shape(
        seconds=chosen.seconds,
        servers=chosen.servers or 1 + seed % 3,
        extensions=chosen.extensions,
        items=chosen.items,
    )


def amiss(outcome: Outcome) -> bool:
    """Whether it is not as it should be: something was wrong, or the bug that is in there was not found."""
    if outcome.shape.mutant == "none":
        return bool(outcome.wrong)
    return not bug_is_found(outcome.shape.mutant, outcome.wrong)


async def main() -> int:
    """Play rounds until the time is over; how many were not as they should be."""
    chosen = arguments()
    deadline = time.monotonic() + chosen.minutes * 60
    failed = played = 0
    print(header(), flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        async with Cluster(Path(scratch)) as cluster:
            while True:
                seed = chosen.seed if chosen.seed is not None else random.randrange(1 << 31)
                directory = chosen.keep / f"{seed}-{time.strftime('%H%M%S')}"
                outcome = await play(cluster, seed, shape_of(chosen, seed), directory)
                played += 1
                print(outcome.row(), flush=True)
                if outcome.wrong or outcome.figures["at_once"]:
                    print(outcome.summary(), file=sys.stderr, flush=True)
                if amiss(outcome):
                    failed += 1
                    again = f"kept in {directory}; again: make faults SEED={seed}"
                    print(f"  {again}", file=sys.stderr, flush=True)
                else:
                    shutil.rmtree(directory)
                enough = chosen.seed is not None or played == chosen.rounds
                if enough or time.monotonic() > deadline:
                    return failed


if __name__ == "__main__":
    sys.exit(min(1, asyncio.run(main())))
