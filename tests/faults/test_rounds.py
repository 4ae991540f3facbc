"""A short round of random faults, and the proof that a round finds what it should (docs/RELIABILITY.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fault_harness.cluster import Cluster
from fault_harness.mutants import EXTENSION_MUTANTS, MUTANTS
from fault_harness.network import Harm
from fault_harness.rounds import SHORT, hunt, play
from fault_harness.schedule import KINDS, Scene, schedule

SEED = 13838
"""It has every kind of fault, and hits the window of VS Code and the run while they are at work."""
SCENE = Scene(("server-0", "server-1"), ("raw-0", "run-0-here"), ("run-0-here",))


def test_a_seed_decides_every_fault_and_each_kind_has_its_turn() -> None:
    faults = schedule(SEED, 200, SCENE)
    assert faults == schedule(SEED, 200, SCENE)
    assert faults != schedule(SEED + 1, 200, SCENE)
    assert {fault.what for fault in faults[: len(KINDS)]} == {
        *("kill", "suspend", "cut", "hang", "slow", "deaf", "half_open", "half_closed", "clock")
    }
    assert all(fault.at + fault.seconds <= 200.02 for fault in faults)


def test_a_harm_hits_its_way_and_never_the_harness() -> None:
    harm = Harm("server-*", "mongo-1", "cut")
    assert harm.hits("server-0", "mongo-1")
    assert not harm.hits("mongo-0", "mongo-1")
    assert not harm.hits("server-0", "mongo-2")
    assert not Harm("*", "*", "cut").hits("harness", "mongo-1")


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for events; on a machine that is busy they take their time
async def test_what_was_acknowledged_holds_and_every_orchestration_ends(
    cluster: Cluster, tmp_path: Path
) -> None:
    outcome = await play(cluster, SEED, SHORT, tmp_path / "round")
    assert not outcome.wrong, outcome.summary()
    assert outcome.faults
    assert outcome.figures["orchestrations"] == f"{SHORT.orchestrations}/{SHORT.orchestrations}"


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for events; on a machine that is busy they take their time
@pytest.mark.parametrize("mutant", [*MUTANTS, "takeover-is-ignored"])
async def test_a_bug_put_in_on_purpose_is_found(cluster: Cluster, tmp_path: Path, mutant: str) -> None:
    outcome = await play(cluster, SEED, hunt(mutant), tmp_path / "round")
    found_by = (MUTANTS | EXTENSION_MUTANTS)[mutant].found_by
    assert any(re.search(found_by, sentence) for sentence in outcome.wrong), outcome.summary()
