"""One replica set of three for all rounds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "packages/state-tracking-api/tests")]

from fault_harness.cluster import Cluster


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A replica set; its servers come and go with the rounds."""
    async with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
