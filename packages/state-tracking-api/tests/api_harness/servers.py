"""The servers and databases of one test or module, gone when it is over."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from typing import Any, Self

from pymongo import MongoClient
from pymongo.database import Database

from api_harness.server import Server

Document = dict[str, Any]
Documents = Database[Document]


class Servers:
    """Starts servers on one mongod, each on a database of its own unless told otherwise.

    Leaving the context stops every server (asserting that each ends cleanly) and drops every database.
    """

    def __init__(self, uri: str, mongo: MongoClient[Document]) -> None:
        self.uri = uri
        self._mongo = mongo
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._exit.close()

    def database(self) -> Documents:
        """A new, empty database under a name of its own."""
        name = f"test-{uuid.uuid4()}"
        self._exit.callback(self._mongo.drop_database, name)
        return self._mongo[name]

    def start(self, database: Documents | None = None, **environment: str | None) -> Server:
        """Start a server on `database`, or on a new one, and return when it is healthy."""
        chosen = self.database() if database is None else database
        server = Server.start(**{"MONGODB_URI": self.uri, "MONGODB_DATABASE": chosen.name} | environment)
        self._exit.callback(server.stop)
        return server
