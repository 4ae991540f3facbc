"""The circuit breaker of the database (PRD 5.2): with a clock in hand, and against a real mongod."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from dns import asyncresolver
from pymongo.errors import (
    AutoReconnect,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteError,
)

from api_harness.api import Api, expect, expect_error, unique, uuid4
from operations.reading import metric
from state_tracking_api import settings
from state_tracking_api.app import create_app
from state_tracking_api.breaker import CircuitBreaker, Pass
from state_tracking_api.embedded import Mongod
from state_tracking_api.storage import Storage, Transaction, is_away, translated


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock)


def admitted(breaker: CircuitBreaker) -> Pass:
    """A pass, which there must be."""
    granted = breaker.admits()
    assert granted is not None
    return granted


def fail(breaker: CircuitBreaker) -> bool:
    """A call that is let through and does not reach the database; whether it opened the circuit."""
    return breaker.failed(admitted(breaker))


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    """The breaker after five failures at once."""
    assert [fail(breaker) for _ in range(5)] == [False, False, False, False, True]
    return breaker


def test_five_failures_within_60_seconds_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(4):
        assert not fail(breaker)
        clock.advance(15)
    assert breaker.state == "closed"
    assert fail(breaker)
    assert breaker.state == "open"
    assert not breaker.admits()


def test_five_failures_in_more_than_60_seconds_do_not_open_it(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(20):
        assert not fail(breaker)
        clock.advance(15.1)
    assert breaker.state == "closed"


def test_a_success_in_between_forgets_the_failures(breaker: CircuitBreaker) -> None:
    for _ in range(4):
        fail(breaker)
    breaker.succeeded()
    assert [fail(breaker) for _ in range(4)] == [False] * 4
    assert breaker.admits()


def test_an_open_one_says_when_to_come_back_and_admits_nobody_before(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    assert breaker.retry_after() == 30
    clock.advance(29.9)
    assert breaker.retry_after() == pytest.approx(0.1)
    assert not breaker.admits()


def test_after_30_seconds_one_trial_is_admitted(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.advance(30)
    assert breaker.state == "half_open"
    assert [breaker.admits() is not None for _ in range(10)] == [True] + [False] * 9


def test_a_trial_that_succeeds_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.advance(30)
    assert breaker.admits()
    assert breaker.succeeded()
    assert breaker.state == "closed"
    assert all(breaker.admits() for _ in range(10))


def test_a_trial_that_fails_opens_it_for_another_30_seconds(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.advance(30)
    fail(breaker)
    assert breaker.retry_after() == 30
    clock.advance(30)
    assert breaker.admits()


def test_a_trial_that_never_came_to_the_database_leaves_the_next_one_its_turn(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    clock.advance(30)
    breaker.inconclusive(admitted(breaker))
    assert breaker.admits()


def test_calls_from_before_the_circuit_opened_say_nothing_about_the_trial(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    under_way = admitted(breaker)
    opened(breaker)
    clock.advance(10)
    breaker.failed(under_way)
    assert breaker.retry_after() == 20, "it does not put the trial off"
    clock.advance(20)
    trial = admitted(breaker)
    breaker.inconclusive(under_way)
    assert breaker.admits() is None, "the trial is still under way, and there is one only"
    breaker.failed(under_way)
    assert breaker.admits() is None
    breaker.failed(trial)
    assert breaker.retry_after() == 30


def test_a_trial_that_never_reports_back_is_replaced_after_another_30_seconds(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    opened(breaker)
    clock.advance(30)
    assert breaker.admits()
    clock.advance(29)
    assert not breaker.admits()
    clock.advance(1)
    assert breaker.admits()


@pytest.mark.parametrize("error", [AutoReconnect(""), ServerSelectionTimeoutError("")])
def test_not_reaching_the_database_is_a_failure(error: Exception) -> None:
    assert is_away(error)


def test_a_transaction_that_gave_up_says_why() -> None:
    def given_up(cause: PyMongoError) -> PyMongoError:
        error = ExecutionTimeout("", 50)
        error.__cause__ = cause
        return error

    assert is_away(given_up(AutoReconnect("")))
    assert not is_away(given_up(NetworkTimeout("")))
    assert not is_away(given_up(WriteError("WriteConflict", 112)))


@pytest.mark.parametrize(
    "error",
    [
        DuplicateKeyError(""),
        WriteError("Document failed validation", 121),
        ExecutionTimeout(""),
        NetworkTimeout(""),
        WaitQueueTimeoutError(""),
    ],
)
def test_an_answer_that_is_a_refusal_or_late_is_none(error: Exception) -> None:
    assert not is_away(error)


@pytest.mark.parametrize("code", [6, 7, 43, 89, 134, 262, 9001])
def test_the_rest_of_an_answer_that_its_member_cannot_give_is_503(code: int) -> None:
    error = translated(OperationFailure("getMore", code))
    assert error is not None
    assert (error.status, error.headers) == (503, {"Retry-After": "1"})


async def test_duplicate_keys_and_refused_documents_do_not_open_it(mongod: Mongod) -> None:
    configured = settings.load(mongodb_uri=mongod.uri, mongodb_database=f"test-{uuid4()}", api_keys=uuid4())
    storage = Storage(configured)
    lock = {"_id": "machine", "touched_at": datetime.now(UTC)}

    async def duplicate() -> None:
        await storage.machine_locks.insert_one(dict(lock))

    async def invalid() -> None:
        await storage.sessions.insert_one({"status": "none of them"})

    async def refused(work: Callable[[], Awaitable[None]], error: type[Exception]) -> None:
        with pytest.raises(error):
            await storage.through(work)

    try:
        await storage.through(duplicate)
        for _ in range(10):
            await refused(duplicate, DuplicateKeyError)
            await refused(invalid, WriteError)
        assert storage.breaker.state == "closed"
    finally:
        await storage.client.drop_database(storage.database.name)
        await storage.close()


async def test_an_attempt_that_many_share_fails_once() -> None:
    nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100"
    storage = Storage(settings.load(mongodb_uri=nowhere, api_keys=uuid4()))

    async def work() -> None:
        """Never come to: the setup fails."""

    states: list[str] = []
    for _ in range(5):
        crowd = await asyncio.gather(*(storage.through(work) for _ in range(10)), return_exceptions=True)
        assert {type(error) for error in crowd} == {ServerSelectionTimeoutError}
        states.append(storage.breaker.state)
    await storage.close()
    assert states == ["closed"] * 4 + ["open"]


def test_conflicts_over_http_do_not_open_it(api: Api) -> None:
    place = {"project_id": unique("p"), "machine_id": unique("m")}
    api.session(**place)
    for _ in range(10):
        expect_error(api.post("/api/sessions", json=place), 409)
    assert metric(api, "database_circuit_state") == 0


class Away:
    """The application in this process, with its breaker's clock in hand, on a mongod that comes and goes."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self.clock = clock
        self.mongod = Mongod.start(directory)
        self._port = self.mongod.port
        key = uuid4()
        configured = settings.load(
            mongodb_uri=self.mongod.uri,
            mongodb_database="away",
            api_keys=key,
            rate_limit_per_minute=10_000,
            db_timeout_ms=2000,
        )
        self._app = create_app(configured, serverSelectionTimeoutMS=300)
        self.storage: Storage = self._app.state.resources.storage
        self.storage.breaker._monotonic = clock
        transport = httpx.ASGITransport(self._app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", headers={"X-API-Key": key})

    async def return_(self) -> None:
        """The database is back, and the driver has found it; the breaker knows nothing of it yet."""
        self.mongod = await asyncio.to_thread(Mongod.start, self._directory, self._port)
        await self.found()

    async def found(self) -> None:
        """The driver has found the database, for which a single attempt may be too short."""
        async with asyncio.timeout(60):
            while not self.storage.client.topology_description.has_writable_server():
                with contextlib.suppress(PyMongoError):
                    await self.storage.client.admin.command("ping")

    async def circuit(self) -> float:
        """The state as the metrics show it."""
        text = (await self.http.get("/metrics")).text
        [line] = [line for line in text.splitlines() if line.startswith("database_circuit_state ")]
        return float(line.split()[1])

    async def crowd(self) -> Counter[str]:
        """What ten requests at once are told."""
        answers = await asyncio.gather(*(self.http.get("/api/sessions") for _ in range(10)))
        return Counter(answer.json().get("message", "found") for answer in answers)

    async def close(self) -> None:
        await self.http.aclose()
        await self.storage.close()
        self.mongod.stop()


@pytest_asyncio.fixture
async def away(tmp_path: Path, clock: Clock) -> AsyncGenerator[Away]:
    made = Away(tmp_path / "db", clock)
    try:
        await made.found()
        yield made
    finally:
        await made.close()


OPEN = "The database is away (circuit open); try again later"
UNREACHED = "The database is away; try again later"


async def test_a_database_whose_name_cannot_be_looked_up_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_there = asyncresolver.Resolver(configure=False)
    nobody_there.nameservers, nobody_there.port = ["127.0.0.1"], 1
    monkeypatch.setattr(asyncresolver, "default_resolver", nobody_there)
    key = uuid4()
    app = create_app(
        settings.load(mongodb_uri="mongodb+srv://db.example.invalid/", mongodb_database="away", api_keys=key),
        connectTimeoutMS=100,
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for says in (*[UNREACHED] * 5, OPEN):
            answer = await http.get("/api/sessions", headers={"X-API-Key": key})
            expect_error(answer, 503, says=says)
    await app.state.resources.storage.close()


@pytest.mark.slow
async def test_a_database_that_dies_during_a_transaction_is_away(away: Away) -> None:
    await away.storage.prepare()

    async def work(txn: Transaction) -> None:
        await away.storage.jobs.insert_one({"_id": "first"}, session=txn)
        os.kill(away.mongod.pid, signal.SIGKILL)
        await asyncio.to_thread(away.mongod.stop)
        await away.storage.jobs.insert_one({"_id": "second"}, session=txn)

    async with asyncio.timeout(30):  # of the two minutes for which the driver would try
        with pytest.raises(PyMongoError) as raised:
            await away.storage.through(lambda: away.storage.transaction(work))
    error = translated(raised.value)
    assert error is not None
    assert (error.status, error.message) == (503, UNREACHED)
    assert len(away.storage.breaker._failures) == 1


@pytest.mark.slow
async def test_the_whole_round_over_http_with_a_database_that_is_killed(away: Away) -> None:
    expect(await away.http.get("/api/sessions"), 200)
    assert await away.circuit() == 0
    away.mongod.stop()
    # Transactions, too, whose driver goes about it in its own way.
    body = {"project_id": "p", "machine_id": "m"}
    for _ in range(2):
        expect_error(await away.http.post("/api/sessions", json=body), 503, says=UNREACHED)
        expect_error(await away.http.get("/api/sessions"), 503, says=UNREACHED)
    expect_error(await away.http.post("/api/sessions", json=body), 503, says=UNREACHED)
    refused = await away.http.get("/api/sessions")
    expect_error(refused, 503, says=OPEN)
    assert refused.headers["retry-after"] == "30"
    assert await away.crowd() == {OPEN: 10}
    assert await away.circuit() == 2

    away.clock.advance(30)
    assert await away.circuit() == 1
    assert await away.crowd() == {UNREACHED: 1, OPEN: 9}, "one trial, and it fails"
    assert await away.circuit() == 2

    await away.return_()
    expect_error(await away.http.get("/api/sessions"), 503, says=OPEN)
    away.clock.advance(30)
    expect(await away.http.get("/api/sessions"), 200)
    assert await away.circuit() == 0
    assert await away.crowd() == {"found": 10}
