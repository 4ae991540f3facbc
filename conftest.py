"""What all tests share: one real mongod for each test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from state_tracking_api.embedded import Mongod


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A real single-node replica set for the whole run.

    Its TTL monitor is off, so that what a test sees deleted, the server deleted, and looks every second once
    a test turns it on; test commands are on, so that a command can be made to fail.
    """
    parameters = {
        "ttlMonitorEnabled": "false",
        "ttlMonitorSleepSecs": "1",
        "enableTestCommands": "1",
        "diagnosticDataCollectionEnabled": "false",
    }
    with Mongod.start(tmp_path_factory.mktemp("mongod"), parameters=parameters) as running:
        yield running
