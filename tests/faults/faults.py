"""Rounds of random faults: `faults.py [--minutes M] [--seed N]`; `make faults` calls it."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "packages/state-tracking-api/tests")]

from fault_harness.cluster import Cluster
from fault_harness.mutants import EXTENSION_MUTANTS, MUTANTS
from fault_harness.rounds import Shape, hunt, play


async def main() -> int:
    """Play rounds until the time is over; the number of rounds in which something was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, help="play the round of this seed, once")
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--servers", type=int, default=0)
    parser.add_argument("--extensions", type=int, default=1, help="orchestrations of the VS Code extension")
    parser.add_argument("--items", type=int, default=8, help="pieces of work in each orchestration")
    parser.add_argument("--mutant", choices=[*MUTANTS, *EXTENSION_MUTANTS], default="none")
    parser.add_argument("--keep", type=Path, default=ROOT / ".cache/faults")
    chosen = parser.parse_args()
    deadline = time.monotonic() + chosen.minutes * 60
    failed = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        async with Cluster(Path(scratch)) as cluster:
            while True:
                seed = chosen.seed if chosen.seed is not None else random.randrange(1 << 31)
                servers = chosen.servers or 1 + seed % 3
                if chosen.mutant in EXTENSION_MUTANTS:
                    shape = hunt(chosen.mutant)
                else:
                    shape = Shape(
                        seconds=chosen.seconds,
                        servers=servers,
                        extensions=chosen.extensions,
                        items=chosen.items,
                        mutant=chosen.mutant,
                    )
                directory = chosen.keep / f"{seed}-{time.strftime('%H%M%S')}"
                outcome = await play(cluster, seed, shape, directory)
                print(outcome.summary(), flush=True)
                if outcome.wrong:
                    failed += 1
                    print(f"  kept in {directory}; again: make faults SEED={seed}", flush=True)
                else:
                    shutil.rmtree(directory)
                if chosen.seed is not None or time.monotonic() > deadline:
                    return failed


if __name__ == "__main__":
    sys.exit(min(1, asyncio.run(main())))
