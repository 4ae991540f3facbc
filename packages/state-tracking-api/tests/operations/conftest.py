"""What the tests of operation share beyond a server and a database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from operations.redis_server import RedisServer


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis of this test's own, running."""
    server = RedisServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.kill()
