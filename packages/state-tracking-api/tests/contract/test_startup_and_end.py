"""Starting without a database, several instances at once, changed settings, and SIGTERM."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from ports import free_port
from pymongo import MongoClient

from api_harness.api import Api, Json, expect, expect_error, unique
from api_harness.server import EXIT_SECONDS, Server, wait_until
from api_harness.servers import Document, Documents, Servers
from state_tracking_api.embedded import Mongod, find_mongod

COLLECTIONS = ("sessions", "tasks", "machines")
DAY = 24 * 60 * 60


def set_up(database: Documents) -> bool:
    """Whether every collection has a validator, and the sessions their TTL index."""
    options = {c["name"]: c.get("options", {}) for c in database.list_collections()}
    return all("validator" in options.get(name, {}) for name in COLLECTIONS) and bool(
        expiry(database, "sessions") and expiry(database, "tasks")
    )


def expiry(database: Documents, collection: str) -> list[int]:
    """The lifetimes in seconds of the collection's TTL indexes."""
    return [
        index["expireAfterSeconds"]
        for index in database[collection].list_indexes()
        if "expireAfterSeconds" in index
    ]


@pytest.mark.slow
def test_serve_starts_while_the_database_is_away_and_works_when_it_comes(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "MONGODB_URI": f"mongodb://127.0.0.1:{port}/?replicaSet=rs0&directConnection=true",
        "MONGODB_DATABASE": "later",
        "DB_TIMEOUT_MS": "2000",
    }
    body = {"project_id": "p", "machine_id": "m"}
    with Server.start(**environment) as server, Api(server.base_url, server.key) as api:
        assert expect(api.get("/health"), 200)["status"] == "ok"
        requests = [
            ("GET", "/api/sessions", None),
            ("POST", "/api/sessions", body),
            ("GET", "/api/sessions/health", None),
            ("GET", "/api/machines/m", None),
        ]
        for method, path, content in requests:
            expect_error(api.request(method, path, json=content), 503)
        detailed = expect(api.get("/health/detailed"), 503)
        assert detailed["status"] == "error"
        assert detailed["dependencies"]["database"]["status"] == "error"
        assert detailed["dependencies"]["database"]["connected"] is False
        expect_error(api.post("/api/sessions", json={}), 400, fields=("project_id", "machine_id"))
        expect_error(httpx.get(f"{server.base_url}/api/sessions", trust_env=False), 401)
        with Mongod.start(tmp_path / "db", port) as mongod, MongoClient[Document](mongod.uri) as mongo:
            wait_until(lambda: api.get("/api/sessions").status_code == 200, "the list is answered", 60)
            expect(api.post("/api/sessions", json=body), 201)
            wait_until(lambda: set_up(mongo["later"]), "collections and indexes are set up")


@pytest.mark.slow
def test_connections_opened_while_the_database_was_starting_are_not_kept(tmp_path: Path) -> None:
    # With directConnection the driver uses a member in whatever state, and keeps what it was on connecting.
    with Mongod.start(tmp_path / "db") as mongod:
        direct = f"{mongod.uri}&directConnection=true"
        environment = {"MONGODB_URI": direct, "SCHEDULER": "off", "DB_TIMEOUT_MS": "2000"}
        with (
            MongoClient[Document](direct) as mongo,
            Server.start(**environment) as server,
            Api(server.base_url, server.key) as api,
            ThreadPoolExecutor(20) as pool,
        ):

            def create(_: int) -> httpx.Response:
                return api.post("/api/sessions", json={"project_id": "p", "machine_id": unique("m")})

            expect(create(0), 201)
            mongo.admin.command("replSetStepDown", 60, secondaryCatchUpPeriodSecs=0, force=True)
            mongo.admin.command("replSetMaintenance", 1)
            refused = list(pool.map(create, range(20)))
            assert {answer.status_code for answer in refused} <= {503, 504}
            assert any("just starting" in answer.json().get("message", "") for answer in refused)
            mongo.admin.command("replSetMaintenance", 0)
            mongo.admin.command("replSetFreeze", 0)
            wait_until(lambda: mongo.admin.command("hello")["isWritablePrimary"], "there is a primary", 60)
            # So many refusals may have opened it.
            wait_until(lambda: create(0).status_code == 201, "the circuit is closed", 60)
            statuses = [{answer.status_code for answer in pool.map(create, range(20))} for _ in range(3)]
            assert statuses[-1] == {201}, statuses


@pytest.mark.slow
def test_serve_without_a_database_ends_at_sigterm() -> None:
    with Server.start(MONGODB_URI=f"mongodb://127.0.0.1:{free_port()}/") as server:
        server.stop()


def test_a_flood_without_a_valid_key_never_gets_as_far_as_the_database() -> None:
    with Server.start(MONGODB_URI=f"mongodb://127.0.0.1:{free_port()}/", RATE_LIMIT_PER_MINUTE="5") as server:
        with Api(server.base_url, str(uuid4())) as stranger, ThreadPoolExecutor(8) as pool:
            refused = list(pool.map(lambda _: stranger.get("/api/sessions/health"), range(200)))
        for answer in refused:
            expect_error(answer, 401)
        with Api(server.base_url, server.key) as api:
            # Nothing was counted against those who have a key; theirs would get as far as the database.
            answer = api.get("/api/sessions/health")
            expect_error(answer, 503)
            assert answer.headers["X-RateLimit-Remaining"] == "4"


def test_several_instances_start_at_once_on_an_empty_database(own: Servers) -> None:
    database = own.database()
    environment = {"MONGODB_URI": own.uri, "MONGODB_DATABASE": database.name, "SCHEDULER": "on"}
    servers = [Server(**environment) for _ in range(4)]
    try:
        for server in servers:
            server.wait_until_healthy()
            with Api(server.base_url, server.key) as api:
                api.session()
        wait_until(lambda: set_up(database), "collections and indexes are set up")
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            server.kill()
    assert database.sessions.count_documents({}) == 4
    assert not [line for server in servers for line in server.lines if line["level"].lower() == "error"]


def test_collections_are_set_up_before_the_first_write(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        place = {"project_id": unique("project"), "machine_id": unique("machine")}
        api.session(**place)
        expect_error(api.post("/api/sessions", json=place), 409)
    assert set_up(database)


def test_a_changed_retention_changes_the_ttl_indexes(own: Servers) -> None:
    database = own.database()
    for days in (30, 7, 90):
        server = own.start(database, RETENTION_DAYS=str(days))
        expected = [days * DAY]
        wait_until(
            lambda expected=expected: expiry(database, "sessions") == expected == expiry(database, "tasks"),
            f"documents expire after {days} days",
        )
        server.stop()


def test_an_index_or_validator_that_was_lost_comes_back_at_the_next_start(own: Servers) -> None:
    database = own.database()
    first = own.start(database)
    with Api(first.base_url, first.key) as api:
        api.session()
    before = {name: sorted(database[name].index_information()) for name in COLLECTIONS}
    first.stop()
    for name in COLLECTIONS:
        database[name].drop_indexes()
        database.command("collMod", name, validator={})
    own.start(database)
    wait_until(
        lambda: {name: sorted(database[name].index_information()) for name in COLLECTIONS} == before,
        "the indexes are back",
    )
    wait_until(lambda: set_up(database), "the validators are back")


def test_data_of_before_is_served_after_a_restart(own: Servers) -> None:
    database = own.database()
    first = own.start(database)
    with Api(first.base_url, first.key) as api:
        session = api.session(metadata={"$a": {"b.c": 1}})
        task = api.task_in(session, "in_progress")
    first.stop()
    second = own.start(database)
    with Api(second.base_url, second.key) as api:
        assert api.read_session(session)["metadata"] == {"$a": {"b.c": 1}}
        assert api.read_task(task) == task


@contextmanager
def held(mongo: MongoClient[Document], database: Documents, session: Json) -> Generator[None]:
    """Until the block is left, another transaction holds the session's document: writes to it wait."""
    with mongo.start_session() as client, client.start_transaction():
        query = {"session_id": session["session_id"]}
        database.sessions.update_one(query, {"$set": {"metadata": {"held": True}}}, session=client)
        yield
        client.abort_transaction()


def wait_for_write(mongo: MongoClient[Document], database: Documents) -> None:
    """Return when a write to the sessions is under way in the database."""
    running = {"command.findAndModify": "sessions", "command.$db": database.name}
    wait_until(
        lambda: list(mongo.admin.aggregate([{"$currentOp": {}}, {"$match": running}])),
        "the heartbeat has reached the database",
    )


def test_sigterm_lets_a_request_in_flight_finish(own: Servers, mongo: MongoClient[Document]) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api, ThreadPoolExecutor() as pool:
        session = api.session()
        with held(mongo, database, session):
            beat = pool.submit(api.act, session, "heartbeat")
            wait_for_write(mongo, database)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not server.accepts(), "the server takes no more connections")
        assert expect(beat.result(20), 200)["session_id"] == session["session_id"]
    server.assert_clean_exit()


@pytest.mark.slow
def test_sigterm_does_not_wait_for_a_request_that_hangs(own: Servers, mongo: MongoClient[Document]) -> None:
    database = own.database()
    server = own.start(database, DB_TIMEOUT_MS="40000", REQUEST_TIMEOUT_MS="40000")
    with Api(server.base_url, server.key) as api, ThreadPoolExecutor() as pool:
        session = api.session()
        with held(mongo, database, session):
            beat = pool.submit(api.act, session, "heartbeat")
            wait_for_write(mongo, database)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(EXIT_SECONDS) == 0
        expect_error(beat.result(20), 503, says="shutting down")


def test_sigterm_does_not_wait_for_idle_connections(own: Servers) -> None:
    server = own.start(SCHEDULER="on")
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
        server.stop()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_start_is_a_clean_end(own: Servers, signal_number: int) -> None:
    server = own.start()
    server.process.send_signal(signal_number)
    server.assert_clean_exit()


def test_data_that_breaks_a_unique_index_is_told_and_nothing_is_written(own: Servers) -> None:
    database = own.database()
    first = own.start(database)
    with Api(first.base_url, first.key) as api:
        session = api.session()
    database["sessions"].drop_index("session_id_1")
    twin = {**(database["sessions"].find_one() or {})}
    del twin["_id"]
    database["sessions"].drop_index("one_active_session")
    database["sessions"].insert_one(twin)
    second = own.start(database)
    with Api(second.base_url, second.key) as api:
        refused = expect_error(api.get(f"/api/sessions/{session['session_id']}"), 503)
        assert "cannot be set up" in refused["message"]
        assert api.get("/health").status_code == 200
    second.line_where(lambda line: line["message"] == "Database cannot be set up", "the log says it, too")


def test_an_index_may_take_longer_to_build_than_a_query_may(
    own: Servers, mongo: MongoClient[Document]
) -> None:
    database = own.database()
    slow = {"failCommands": ["createIndexes"], "namespace": f"{database.name}.sessions"}
    slow |= {"blockConnection": True, "blockTimeMS": 1500}
    mongo.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=slow)
    try:
        server = own.start(database, DB_TIMEOUT_MS="1000")
        server.line_where(lambda line: line["message"] == "Database is set up", "it is set up")
    finally:
        mongo.admin.command("configureFailPoint", "failCommand", mode="off")
    assert not [line for line in server.lines if line["message"] == "Database is not set up yet"]


def test_a_wrong_password_is_told_in_the_log_and_is_503(own: Servers) -> None:
    uri = own.uri.replace("mongodb://", "mongodb://nobody:wrong-secret@")
    server = own.start(MONGODB_URI=uri)
    with Api(server.base_url, server.key) as api:
        told = server.line_where(
            lambda line: line["message"] == "Database cannot be set up", "why it cannot be set up"
        )
        assert told["context"]["reason"] == "Authentication failed."
        refused = expect_error(api.get("/api/sessions"), 503)
        assert "Authentication failed" not in str(refused)
    assert "wrong-secret" not in str(server.lines)


def test_a_server_without_a_replica_set_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("--dbpath", tmp_path, "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket")
    standalone = subprocess.Popen(
        [find_mongod(), *arguments, "--wiredTigerCacheSizeGB", "0.25"], stdout=subprocess.DEVNULL
    )
    try:
        with (
            MongoClient[Document]("127.0.0.1", port, serverSelectionTimeoutMS=60_000) as client,
            Server.start(MONGODB_URI=f"mongodb://127.0.0.1:{port}") as server,
            Api(server.base_url, server.key) as api,
        ):
            client.admin.command("ping")
            wait_until(
                lambda: any("replica set" in str(line) for line in server.lines),
                "the log says what is missing",
            )
            body = {"project_id": "p", "machine_id": "m"}
            expect_error(api.post("/api/sessions", json=body), 503, says="cannot be set up")
            assert "claude-projects" not in client.list_database_names()
    finally:
        standalone.kill()
        standalone.wait()


def test_the_primary_is_read_and_written_whatever_the_uri_prefers(own: Servers) -> None:
    server = own.start(MONGODB_URI=f"{own.uri}&readPreference=secondaryPreferred")
    with Api(server.base_url, server.key) as api:
        session = api.session()
        assert api.read_session(session) == session
