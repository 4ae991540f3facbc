"""A server and a database per module, and fresh ones for who needs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import MongoClient

sys.path.insert(0, str(Path(__file__).parent))

from api_harness.api import Api
from api_harness.server import Server
from api_harness.servers import Document, Documents, Servers
from state_tracking_api.embedded import Mongod


@pytest.fixture(scope="session")
def mongo(mongod: Mongod) -> Iterator[MongoClient[Document]]:
    """The tests' own connection to the database, past the API."""
    with MongoClient[Document](mongod.uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def own(mongod: Mongod, mongo: MongoClient[Document]) -> Iterator[Servers]:
    """Servers and databases that only this test uses."""
    with Servers(mongod.uri, mongo) as servers:
        yield servers


@pytest.fixture(scope="module")
def shared(mongod: Mongod, mongo: MongoClient[Document]) -> Iterator[Servers]:
    """Servers and databases that a module's tests share."""
    with Servers(mongod.uri, mongo) as servers:
        yield servers


@pytest.fixture(scope="module")
def database(shared: Servers) -> Documents:
    """The module's database, past the API."""
    return shared.database()


@pytest.fixture(scope="module")
def server_environment() -> dict[str, str]:
    """Settings of the module's server beyond the defaults; a module overrides this where it needs some."""
    return {}


@pytest.fixture(scope="module")
def server(shared: Servers, database: Documents, server_environment: dict[str, str]) -> Server:
    """The module's server on the module's database, its scheduler off."""
    return shared.start(database, **server_environment)


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[Api]:
    """A client of the module's server, with its key."""
    with Api(server.base_url, server.key) as client:
        yield client


@pytest.fixture(scope="module")
def anonymous(server: Server) -> Iterator[Api]:
    """A client of the module's server, without a key."""
    with Api(server.base_url, None) as client:
        yield client
