"""A short round of random faults, and the proof that a round finds what it should (docs/RELIABILITY.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_harness.cluster import Cluster
from fault_harness.mutants import MUTANTS
from fault_harness.network import Harm
from fault_harness.rounds import COLUMNS, SHORT, Outcome, Shape, bug_is_found, header, hunt, play
from fault_harness.schedule import KINDS, Fault, Scene, schedule

SEED = 13838
"""It has every kind of fault, and hits the window of VS Code and the run while they are at work."""
WHATS = {"kill", "suspend", "cut", "hang", "slow", "deaf", "half_open", "half_closed", "clock"}
SCENE = Scene(("server-0", "server-1"), ("raw-0", "run-0-here"), ("run-0-here",))


def test_a_seed_decides_every_fault_and_each_kind_has_its_turn() -> None:
    faults = schedule(SEED, 200, SCENE)
    assert faults == schedule(SEED, 200, SCENE)
    assert faults != schedule(SEED + 1, 200, SCENE)
    assert {fault.what for fault in faults[: len(KINDS)]} == WHATS
    assert all(fault.at + fault.seconds <= 200.02 for fault in faults)


def test_a_harm_hits_its_way_and_never_the_harness() -> None:
    harm = Harm("server-*", "mongo-1", "cut")
    assert harm.hits("server-0", "mongo-1")
    assert not harm.hits("mongo-0", "mongo-1")
    assert not harm.hits("server-0", "mongo-2")
    assert not Harm("*", "*", "cut").hits("harness", "mongo-1")


def test_a_round_is_a_row_of_the_page_s_table(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/RELIABILITY.md").read_text()
    assert header() in page
    whats = ("kill", "kill", "suspend", "hang", "slow", "clock")
    outcome = Outcome(7, Shape(servers=3), [], tmp_path, [Fault(1, 1, what, "server-0") for what in whats])
    outcome.wrong = ["something"]
    outcome.figures = {
        "requests": 24,
        "answers": {"2xx": 9, "4xx": 7, "503, 504": 5, "5xx": 2, "never": 1},
        "snapshots": 11,
        "recoveries": 3,
        "done": 4,
        "attempts": {"run": 2, "sdk-async": 3},
        "faults_s": 25.4,
        "settled_s": 6.6,
    }
    assert outcome.row() == (
        "| 7 | 3 | 6: 2 killed, 1 suspended, 2 of the network, 1 clock | 24 | 9 / 7 / 5 / 1 / 5xx: 2 "
        "| 11 | 3 | 4 of 4 in 5 attempts | 25 s, 7 s | 1 sentence |"
    )
    assert outcome.row().count(" | ") == len(COLUMNS) - 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for events; on a machine that is busy they take their time
async def test_what_was_acknowledged_holds_and_every_orchestration_ends(
    cluster: Cluster, tmp_path: Path
) -> None:
    outcome = await play(cluster, SEED, SHORT, tmp_path / "round")
    assert not outcome.wrong, outcome.summary()
    figures = outcome.figures
    assert {"kill", "suspend"} <= {fault.what for fault in outcome.begun}
    # Between two elections nobody is the primary, and what is meant for it does not happen.
    always_there = [
        fault
        for fault in outcome.faults
        if fault.what not in {"kill", "suspend"}
        and not {"primary", "secondary"} & {fault.target, fault.source}
    ]
    assert set(always_there) <= set(outcome.begun)
    assert len({fault.what for fault in always_there}) > 4
    assert figures["snapshots"] > 10
    assert figures["answers"]["2xx"] > 50
    assert figures["recoveries"] > 0
    assert figures["done"] == SHORT.orchestrations
    assert figures["attempts"]["run"] > 1, "a fault hit it while it was at work"
    assert figures["attempts"]["extension"] > 1, "a fault hit it while it was at work"


@pytest.mark.slow
@pytest.mark.timeout(900)  # it waits for events; on a machine that is busy they take their time
@pytest.mark.parametrize("mutant", [*MUTANTS, "takeover-is-ignored"])
async def test_a_bug_put_in_on_purpose_is_found(cluster: Cluster, tmp_path: Path, mutant: str) -> None:
    outcome = await play(cluster, SEED, hunt(mutant), tmp_path / "round")
    assert bug_is_found(mutant, outcome.wrong), outcome.summary()
