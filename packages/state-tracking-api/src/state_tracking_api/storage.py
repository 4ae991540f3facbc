"""The database: client, collections, transactions, and what its failures mean to a caller."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit
from weakref import WeakSet, WeakValueDictionary

import pymongo
from pymongo import DESCENDING, AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.read_concern import ReadConcern

from state_tracking_api import clock, log, schema
from state_tracking_api.background import Shared
from state_tracking_api.breaker import CircuitBreaker, Pass
from state_tracking_api.errors import ApiError, GatewayTimeout, ServiceUnavailable
from state_tracking_api.group_commit import GroupCommit
from state_tracking_api.lifecycle import Document
from state_tracking_api.metadata import Json
from state_tracking_api.settings import Settings

Transaction = AsyncClientSession
Result = TypeVar("Result")

SERVER_SELECTION_TIMEOUT_MS = 5_000
SETUP_RETRY_SECONDS = 1.0
CLOSE_TIMEOUT_SECONDS = 1.0
# What MongoDB does by itself to a transaction that goes on for this long (transactionLifetimeLimitSeconds).
LEFT_OPEN_SECONDS = 60.0
ABORT_TIMEOUT_SECONDS = 1.0
FENCE_TIMEOUT_SECONDS = 2.0
FENCE_RETRY_SECONDS = 0.5
# With these labels the driver or the database says that it may go well another time.
_RETRYABLE = ("TransientTransactionError", "RetryableWriteError", "RetryableError", "SystemOverloadedError")
# What the reading of a long answer meets where its member goes away: its rest, unlike its beginning, is not
# asked for again by the driver, and a refusal of it carries no label.
_CHANGING_OVER = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        43,  # CursorNotFound: the rest of an answer is asked for, and its member has been started anew
        89,  # NetworkTimeout, between the database's members
        134,  # ReadConcernMajorityNotAvailableYet
        262,  # ExceededTimeLimit
        9001,  # SocketException
    }
)


class Storage:
    """One client and the collections that live behind it. Make one per process, close it at the end."""

    def __init__(self, settings: Settings, **client_options: Any) -> None:
        uri = settings.mongodb_uri.get_secret_value()
        options: dict[str, Any] = {
            "appname": "state-tracking-api",
            "connectTimeoutMS": 2_000,
            "serverSelectionTimeoutMS": SERVER_SELECTION_TIMEOUT_MS,
            # The deadline of every operation; the driver passes it on, so that the database cancels, too.
            "timeoutMS": settings.db_timeout_ms,
            **client_options,
        }
        said_in_uri = {name.lower() for name in parse_qs(urlsplit(uri).query)}
        options = {name: value for name, value in options.items() if name.lower() not in said_in_uri}
        self.client: AsyncMongoClient[Document] = AsyncMongoClient(uri, tz_aware=True, **options)
        # Whatever the URI says: a secondary may be behind, and transactions are for the primary only.
        self.database = self.client.get_database(
            settings.mongodb_database,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority"),
        )
        self.sessions = self.database["sessions"]
        self._patience = min(settings.db_timeout_ms, settings.request_timeout_ms) / 1000
        self.session_beats = GroupCommit(self.sessions, "session_id", schema.WITHOUT_EVENTS, self._patience)
        self.tasks = self.database["tasks"]
        self.machines = self.database["machines"]
        self.jobs = self.database["jobs"]
        self.heartbeat_counts = self.database["heartbeat_counts"]
        self.machine_locks = self.database["machine_locks"]
        self.health_summaries: Shared[Json] = Shared()
        self._totals: defaultdict[str, Shared[int]] = defaultdict(Shared)
        self.breaker = CircuitBreaker()
        # Failures of which the circuit breaker knows: those who share an attempt share its failure, one.
        self._counted: WeakSet[PyMongoError] = WeakSet()
        self._retention_days = settings.retention_days
        self._lanes: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._prepared = False
        self._preparation: asyncio.Task[None] | None = None
        self._left_open: deque[tuple[float, AsyncClientSession]] = deque()
        self._fencing: asyncio.Task[None] | None = None

    def _pass_or_refuse(self) -> Pass:
        admitted = self.breaker.admits()
        if admitted is None:
            seconds = self.breaker.retry_after()
            raise ServiceUnavailable(
                "The database is away (circuit open); try again later",
                headers={"Retry-After": str(math.ceil(seconds))},
            )
        return admitted

    async def through(self, work: Callable[[], Awaitable[Result]], *, prepared: bool = True) -> Result:
        """Do work that needs the database, and let the circuit breaker know whether it could be reached.

        The first caller sets collections and indexes up; nobody writes before the unique indexes are there.
        Not so with `prepared=False`, for what must run on data that is too broken for them.

        Raises ServiceUnavailable while the circuit is open.
        """
        admitted = self._pass_or_refuse()
        try:
            if not prepared:
                await self._at_once_where_away(self._greet)
            elif not self._prepared:
                await self.prepare()
            result = await self._at_once_where_away(work)
        except PyMongoError as error:
            if not is_away(error):
                self._reached()
            elif error in self._counted:
                self.breaker.inconclusive(admitted)
            else:
                self._counted.add(error)
                if self.breaker.failed(admitted):
                    log.get().error("Circuit of the database opened", error=type(error).__name__)
            raise
        except BaseException:
            self.breaker.inconclusive(admitted)
            raise
        self._reached()
        return result

    async def _at_once_where_away(self, work: Callable[[], Awaitable[Result]]) -> Result:
        try:
            with self._deadline_where_away():
                return await work()
        except ConfigurationError as error:
            if _is_connected_too_early(error):
                await self._connect_anew()
            raise

    def _deadline_where_away(self) -> AbstractContextManager[None]:
        # With a deadline for operations the driver looks for a server until that deadline. While none is
        # known, nobody shall wait for longer than it takes to find one.
        if self.client.topology_description.has_writable_server():
            return contextlib.nullcontext()
        return pymongo.timeout(self.client.options.server_selection_timeout)

    async def _connect_anew(self) -> None:
        # Connections keep what the server was when they were opened. The driver has no public way to let
        # go of them; this one closes each when whoever uses it gives it back.
        topology = await self.client._get_topology()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for server in list(topology._servers.values()):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            await server.pool.reset_without_pause()

    def _reached(self) -> None:
        if self.breaker.succeeded():
            log.get().info("Circuit of the database closed")

    async def prepare(self) -> None:
        """Bring collections and indexes up to date; callers at the same time share one attempt."""
        if self._preparation is None or self._preparation.done():
            # In a context of its own: the deadline of whoever comes first is not that of the setup.
            self._preparation = asyncio.create_task(self._prepare(), context=contextvars.Context())
        await asyncio.shield(self._preparation)

    async def _prepare(self) -> None:
        if not self._prepared:
            try:
                hello = await self._at_once_where_away(self._greet)
                if "setName" not in hello and hello.get("msg") != "isdbgrid":
                    raise _cannot_be_set_up("it is a standalone server; transactions need a replica set")
                await self._at_once_where_away(lambda: schema.apply(self.database, self._retention_days))
            except OperationFailure as error:
                # A wrong password, missing rights, or data that breaks a unique index: nobody may write
                # until somebody has mended it.
                said = (error.details or {}).get("errmsg", str(error))
                raise _cannot_be_set_up(said[:500]) from error
            self._prepared = True
            log.get().info("Database is set up", database=self.database.name)

    async def _greet(self) -> Document:
        return await self.client.admin.command("hello")

    async def keep_preparing(self) -> None:
        """Try until the database has come and is set up."""
        while not self._prepared:
            try:
                await self.prepare()
            except (PyMongoError, ApiError) as error:
                log.get().warning(
                    "Database is not set up yet", error=type(error).__name__, detail=str(error)[:500]
                )
                await asyncio.sleep(SETUP_RETRY_SECONDS)

    async def transaction(self, work: Callable[[Transaction], Awaitable[Result]], *contended: str) -> Result:
        """Run `work` in one transaction: all of its writes happen, or none does.

        `work` is run again where another writer was in the way, so it must have no effect but its writes.
        `contended` names what many may want to write at once, machines or sessions: within this process
        they then queue for it, where running again and again would let some of them starve.
        """

        async def attempt(session: Transaction) -> Result:
            try:
                with self._deadline_where_away():
                    return await work(session)
            except ServerSelectionTimeoutError as error:
                # Without the label for which the driver would run all of it again, to wait in vain again.
                raise ServerSelectionTimeoutError(str(error)) from error
            except ConnectionFailure:
                if session.in_transaction:
                    # Or the driver's own attempt at it would wait for as long as a query may take.
                    with pymongo.timeout(ABORT_TIMEOUT_SECONDS):
                        await session.abort_transaction()
                raise

        async with contextlib.AsyncExitStack() as lanes:
            for name in sorted({*contended}):  # in one order, so that no two wait for each other
                await lanes.enter_async_context(self._lanes.setdefault(name, asyncio.Lock()))
            session = self.client.start_session()
            try:
                result = await session.with_transaction(
                    attempt,
                    read_concern=ReadConcern("snapshot"),
                    write_concern=WriteConcern("majority"),
                    read_preference=ReadPreference.PRIMARY,
                )
            except BaseException as error:
                if _may_be_left_open(error):
                    self._leave_open(session)
                else:
                    await session.end_session()
                raise
            await session.end_session()
            return result

    def _leave_open(self, session: AsyncClientSession) -> None:
        """See to it that a transaction whose end did not reach the database ends there.

        Until it does, it holds what it has written: heartbeats of that session would wait in vain for up to
        a minute, and a session that lives would be taken for silent.
        """
        self._left_open.append((time.monotonic(), session))
        if self._fencing is None or self._fencing.done():
            # In a context of its own: the deadline of the request that has just failed is over.
            self._fencing = asyncio.create_task(self._fence_left_open(), context=contextvars.Context())

    async def _fence_left_open(self) -> None:
        while self._left_open:
            begun, session = self._left_open[0]
            if time.monotonic() - begun < LEFT_OPEN_SECONDS and not await self._fence(session):
                await asyncio.sleep(FENCE_RETRY_SECONDS)
                continue
            self._left_open.popleft()
            await session.end_session()

    async def _fence(self, session: AsyncClientSession) -> bool:
        # The next transaction of a driver session ends the one before, and what still comes of that one,
        # out of the buffers of a database that was frozen, is refused for its lower number.
        try:
            with pymongo.timeout(FENCE_TIMEOUT_SECONDS):
                async with await session.start_transaction():
                    await self.jobs.find_one({"_id": "presence"}, {"_id": 1}, session=session)
        except PyMongoError:
            return False
        return True

    async def page(
        self,
        collection: AsyncCollection[Document],
        condition: Mapping[str, Any],
        id_field: str,
        limit: int,
        offset: int,
    ) -> tuple[list[Document], int]:
        """Documents newest first with the id as tie-breaker, events left out, and how many match in all."""
        found = collection.find(condition, schema.WITHOUT_EVENTS)
        ordered = found.sort([("created_at", DESCENDING), (id_field, DESCENDING)]).skip(offset).limit(limit)
        count = collection.count_documents(condition) if condition else self._count_all(collection)
        documents, total = await asyncio.gather(ordered.to_list(), count)
        return documents, total

    async def _count_all(self, collection: AsyncCollection[Document]) -> int:
        """How many documents there are; it grows with them, so all who ask at once share one count.

        Exact, which the number that the database keeps by itself is not after a crash of it. Whoever asks
        while one is under way waits for its end, and then for their own.
        """

        async def count(_asked_at: datetime) -> int:
            with pymongo.timeout(self._patience):
                return await collection.count_documents({}, hint="_id_")

        return await self._totals[collection.name].get(clock.now(), count)

    def has_left_open(self, since: float) -> bool:
        """Whether a transaction was left open since then (`time.monotonic`) and is not ended yet."""
        return any(begun >= since for begun, _ in self._left_open)

    async def end_left_open(self, seconds: float) -> None:
        """Wait so long for the end of what is left open; where that is too little, it goes on afterwards."""
        if self._fencing is not None:
            await asyncio.wait({self._fencing}, timeout=seconds)

    async def close(self) -> None:
        """Close every connection; a database that does not answer is not waited for."""
        await self.end_left_open(CLOSE_TIMEOUT_SECONDS)
        for task in (self._preparation, self._fencing):
            if task is not None:
                task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                await self.client.close()


def _cannot_be_set_up(reason: str) -> ServiceUnavailable:
    log.get().error("Database cannot be set up", reason=reason)
    return ServiceUnavailable(
        "The database cannot be set up; the server's log says why", headers={"Retry-After": "30"}
    )


def _may_be_left_open(error: BaseException) -> bool:
    """Whether a transaction that failed like this may go on in the database: its end may not have arrived."""
    if isinstance(error, PyMongoError):
        return error.timeout or isinstance(error, ConnectionFailure)
    return isinstance(error, asyncio.CancelledError)


def is_away(error: BaseException) -> bool:
    """Whether the failure means that the database could not be reached, rather than that it said no.

    One that was slow to answer, or whose every connection is in use, is there. At its deadline a transaction
    is a timeout to the driver, whatever has kept it from going on; that is told as its cause. And the driver
    calls it a matter of configuration if the name of a `mongodb+srv` address cannot be looked up.
    """
    if isinstance(error, ConfigurationError):
        return not _is_connected_too_early(error)
    slow = NetworkTimeout, WaitQueueTimeoutError
    if isinstance(error, (ExecutionTimeout, NetworkTimeout)) and isinstance(error.__cause__, PyMongoError):
        return is_away(error.__cause__)
    return isinstance(error, ConnectionFailure) and not isinstance(error, slow)


def _is_connected_too_early(error: PyMongoError) -> bool:
    """Whether a connection was opened to a member that could not be read then, as just after its start.

    Only with `directConnection=true` in the URI: the driver then uses a server whatever its state is, and
    takes it for one without driver sessions for as long as the connection lasts.
    """
    return isinstance(error, ConfigurationError) and str(error).startswith("Sessions are not supported")


def translated(error: PyMongoError) -> ApiError | None:
    """What a failure of the database is to the caller; None where it is a defect of ours."""
    if is_away(error):
        return ServiceUnavailable("The database is away; try again later", headers={"Retry-After": "5"})
    if error.timeout:
        return GatewayTimeout("The database took too long; the query was cancelled")
    if _is_connected_too_early(error):
        return ServiceUnavailable("The database is just starting; try again", headers={"Retry-After": "1"})
    by_code = isinstance(error, OperationFailure) and error.code in _CHANGING_OVER
    if by_code or any(error.has_error_label(label) for label in _RETRYABLE):
        return ServiceUnavailable("The database is changing over; try again", headers={"Retry-After": "1"})
    return None
