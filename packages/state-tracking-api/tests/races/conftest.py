"""Two server processes on one database, and 50 requests at once spread over both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from api_harness.api import Api
from api_harness.pair import Pair
from api_harness.servers import Documents, Servers

# Races are about who wins, not about how long 50 collisions take on a machine that is busy otherwise.
PATIENT = {"REQUEST_TIMEOUT_MS": "100000", "DB_TIMEOUT_MS": "60000"}


@pytest.fixture(scope="module")
def api(shared: Servers, database: Documents) -> Iterator[Api]:
    """A synchronous client of the first of the module's two servers."""
    server = shared.start(database, **PATIENT)
    with Api(server.base_url, server.key) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(api: Api, shared: Servers, database: Documents) -> AsyncIterator[Pair]:
    """Both servers, to which requests go by turns."""
    key = api.http.headers["X-API-Key"]
    second = shared.start(database, API_KEYS=key, **PATIENT)
    async with Pair([str(api.http.base_url), second.base_url], key) as both:
        yield both
