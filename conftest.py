"""What all tests share: one real mongod for each test process."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tests"))

from state_tracking_api.embedded import Mongod

# After how long a silence a connection of the database's driver asks whether the other end is there.
DRIVER_KEEPALIVE_SECONDS = 120


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Let nobody's test fail for a socket that the database's driver did not close.

    It leaves one to the garbage collector where it is cancelled while it connects, as its monitors are when
    a client is closed or a member is lost; which test runs when the collector comes is chance. Any other
    socket that nobody closed does fail the test.
    """
    report = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        left = unraisable.object
        if not (isinstance(left, socket.socket) and _is_of_the_driver(left)):
            report(unraisable)

    sys.unraisablehook = hook


def _is_of_the_driver(left: socket.socket) -> bool:
    if sys.platform != "linux" or left.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return left.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == DRIVER_KEEPALIVE_SECONDS


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
