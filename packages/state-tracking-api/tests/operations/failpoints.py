"""Faults inside the real database: mongod's own failpoints, limited to one test's database.

https://github.com/mongodb/mongo/wiki/The-%22failCommand%22-Fail-Point
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from pymongo import MongoClient

from api_harness.servers import Document, Documents


@contextmanager
def failpoint(mongo: MongoClient[Document], name: str, **data: object) -> Generator[None]:
    """Switch a failpoint on while the block runs."""
    mongo.admin.command("configureFailPoint", name, mode="alwaysOn", data=data)
    try:
        yield
    finally:
        mongo.admin.command("configureFailPoint", name, mode="off")


@contextmanager
def failing(
    mongo: MongoClient[Document], database: Documents, collection: str, *commands: str, **how: object
) -> Generator[None]:
    """Let commands on one collection fail while the block runs; `how` is errorCode, closeConnection."""
    namespace = f"{database.name}.{collection}"
    with failpoint(mongo, "failCommand", failCommands=list(commands), namespace=namespace, **how):
        yield


def running(mongo: MongoClient[Document], database: Documents, command: str) -> list[Document]:
    """The operations of one command that the database is busy with for a test's own database."""
    mine = {f"command.{command}": {"$exists": True}, "command.$db": database.name}
    return list(mongo.admin.aggregate([{"$currentOp": {}}, {"$match": mine}]))


def end(mongo: MongoClient[Document], operations: list[Document]) -> None:
    """End operations that a failpoint holds up; it cannot be switched off before they are over."""
    for operation in operations:
        mongo.admin.command("killOp", op=operation["opid"])
