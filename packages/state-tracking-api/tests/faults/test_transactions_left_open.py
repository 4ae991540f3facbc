"""A transaction whose end does not reach the database must not go on holding what it has written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime

import pymongo
import pytest
import pytest_asyncio
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from api_harness.api import uuid4
from api_harness.server import wait_until
from api_harness.servers import Document, Documents, Servers
from operations.failpoints import failpoint
from state_tracking_api import settings
from state_tracking_api.storage import Storage, Transaction

MACHINE = "machine-1"
APPLICATION = f"left-open-{uuid4()}"


@pytest.fixture
def documents(own: Servers) -> Documents:
    """This test's database, past the storage."""
    return own.database()


@pytest_asyncio.fixture
async def storage(own: Servers, documents: Documents) -> AsyncGenerator[Storage]:
    """A storage whose commands can be told from those of everybody else."""
    uri = f"{own.uri}&appName={APPLICATION}"
    opened = Storage(
        settings.load(mongodb_uri=uri, mongodb_database=documents.name, api_keys=uuid4(), db_timeout_ms=1000)
    )
    await opened.prepare()
    documents.machine_locks.insert_one({"_id": MACHINE, "touched_at": datetime.now(UTC)})
    yield opened
    await opened.close()


@pytest.fixture
def lasting(mongo: MongoClient[Document]) -> Iterator[None]:
    """The database does not end a transaction by itself for longer than any test takes."""
    name = "transactionLifetimeLimitSeconds"
    before = mongo.admin.command({"getParameter": 1, name: 1})[name]
    mongo.admin.command({"setParameter": 1, name: 3600})
    yield
    mongo.admin.command({"setParameter": 1, name: before})


def open_transactions(mongo: MongoClient[Document]) -> list[Document]:
    """What is still open in this run's database."""
    return list(
        mongo.admin.aggregate(
            [{"$currentOp": {"idleSessions": True}}, {"$match": {"transaction": {"$exists": True}}}]
        )
    )


def can_be_written(documents: Documents) -> bool:
    """Whether somebody else may write what the transaction has written."""
    try:
        with pymongo.timeout(1):
            documents.machine_locks.update_one({"_id": MACHINE}, {"$set": {"touched": 1}})
    except PyMongoError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize("cancelled", [False, True], ids=["the commit fails", "the request is cancelled"])
async def test_what_it_has_written_is_free_again_at_once(
    storage: Storage, documents: Documents, mongo: MongoClient[Document], cancelled: bool
) -> None:
    """Left alone the driver tries to commit for two minutes, so that a request always has its deadline."""
    written = asyncio.Event()

    async def work(txn: Transaction) -> None:
        await storage.machine_locks.update_one({"_id": MACHINE}, {"$inc": {"touched": 1}}, session=txn)
        assert not await asyncio.to_thread(can_be_written, documents)
        written.set()
        if cancelled:
            await asyncio.Event().wait()

    ends = {"failCommands": ["commitTransaction", "abortTransaction"], "closeConnection": True}
    with failpoint(mongo, "failCommand", appName=APPLICATION, **ends):
        with pymongo.timeout(5):
            request = asyncio.create_task(storage.transaction(work))
        await written.wait()
        if cancelled:
            request.cancel()
        with pytest.raises((PyMongoError, asyncio.CancelledError)):
            await request
        await asyncio.to_thread(wait_until, lambda: can_be_written(documents), "it is free", 60)
    await asyncio.to_thread(wait_until, lambda: not open_transactions(mongo), "none is left", 60)
