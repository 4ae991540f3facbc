"""The programs behind docs/BENCHMARKS.md run, and measure what they say; no figure is held here."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from docs_harness import ROOT

import layers
import speed

TABLES = 3


def _run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT / "bench",
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_speed_measures_every_scenario_against_the_same_work() -> None:
    """A yardstick that does other work than the server is found here, not when somebody measures again."""
    wrote = _run("speed.py", "--rounds", "1", "--seconds", "0.1", "--concurrency", "2", "--sessions", "50")
    assert "NOT THE SAME WORK" not in wrote, wrote
    rows = re.findall(r"^\| ([a-z ]+) \|(?: [\d.]+(?: \((?:[\d.]+|nan)\))? \|)+$", wrote, re.MULTILINE)
    assert rows == [*speed.SCENARIOS] * TABLES, wrote


NOTHINGS = [one for name, one in vars(layers).items() if name.startswith("No") and inspect.isclass(one)]


@pytest.mark.parametrize("nothing", NOTHINGS)
def test_what_takes_a_layer_out_overrides_what_is_there(nothing: type) -> None:
    (base,) = nothing.__bases__
    overridden = [name for name, one in vars(nothing).items() if inspect.isfunction(one)]
    assert overridden
    for name in overridden:
        assert inspect.signature(getattr(nothing, name)) == inspect.signature(getattr(base, name)), name


@pytest.mark.timeout(600)
def test_every_layer_can_be_taken_out() -> None:
    """In a process of its own, whose server is whole no longer."""
    assert len(NOTHINGS) == 3
    _run("-c", "import layers; [layers.take_out(layer) for layer in layers.LAYERS]")
