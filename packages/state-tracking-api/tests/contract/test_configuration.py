"""What `serve` takes from the environment, and what it says when that is wrong."""

from __future__ import annotations

import json

import httpx
import pytest
from pymongo import MongoClient

from api_harness.api import Api, ago, expect
from api_harness.server import NO_TLS, Server, run, wait_until
from api_harness.servers import Document, Servers

KEY = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
VALID = {"MONGODB_URI": "mongodb://127.0.0.1:1/", "API_KEYS": KEY}
NUMBERS = (
    "PORT",
    "STALL_THRESHOLD_MS",
    "STALL_SCAN_INTERVAL_SECONDS",
    "RETENTION_DAYS",
    "RATE_LIMIT_PER_MINUTE",
    "REQUEST_TIMEOUT_MS",
    "DB_TIMEOUT_MS",
)


def refusal(**environment: str | None) -> str:
    """The one line with which `serve` refuses to start on that environment."""
    ended = run("serve", environment=VALID | environment)
    assert ended.returncode == 1, ended
    assert "Traceback" not in ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith("ConfigurationError:")
    return line


@pytest.mark.parametrize("missing", [("MONGODB_URI",), ("API_KEYS",), ("MONGODB_URI", "API_KEYS")], ids=str)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_variable_is_named(missing: tuple[str, ...], value: str | None) -> None:
    line = refusal(**dict.fromkeys(missing, value))
    assert {name for name in VALID if name in line} == set(missing)


@pytest.mark.parametrize("value", ["0", "-5", "many", "1.5", "1e3", "nan", " "])
def test_every_number_that_is_wrong_is_named_at_once(value: str) -> None:
    line = refusal(**dict.fromkeys(NUMBERS, value))
    assert [name for name in NUMBERS if name not in line] == []
    assert not any(name in line for name in VALID)


def test_numbers_that_cannot_be_reckoned_with_are_named_at_once() -> None:
    line = refusal(**dict.fromkeys(NUMBERS, "9" * 20))
    assert [name for name in NUMBERS if name not in line] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"PORT": "65536", "LOG_LEVEL": "loud", "SCHEDULER": "maybe"},
        {"MONGODB_URI": "http://127.0.0.1/", "RATE_LIMIT_STORAGE_URI": "nonsense://x"},
        {"MONGODB_URI": "mongodb://", "MONGODB_DATABASE": "a/b"},
        {"MONGODB_DATABASE": "x" * 64},
        {"API_KEYS": "not-a-uuid"},
        {"API_KEYS": f"laptop={KEY},desktop="},
        {"API_KEYS": f"={KEY}"},
        {"API_KEYS": "00000000-0000-0000-0000-000000000000"},
        {"API_KEYS": KEY.replace("-", "")},
        {"API_KEYS": "9b2f0f0e-7c0a-11ee-b962-0242ac120002"},
        {"API_KEYS": ","},
        {"MONGODB_URI": "mongodb+srv://cluster.example.com:27017/"},
        {"MONGODB_URI": "mongodb://127.0.0.1/?tls=true&tlsCAFile=/no/such/file"},
        {"RATE_LIMIT_STORAGE_URI": "redis://user:hunter2@host:port"},
    ],
    ids=str,
)
def test_a_malformed_variable_is_named(wrong: dict[str, str]) -> None:
    line = refusal(**wrong)
    assert {name for name in (*VALID, *NUMBERS, *wrong) if name in line} == set(wrong)
    assert "hunter2" not in line


def test_no_secret_stands_in_the_refusal() -> None:
    line = refusal(
        API_KEYS=f"laptop={KEY},5ecret-key-of-mine", MONGODB_URI="mongodb://admin:hunter2@", PORT="0"
    )
    for secret in (KEY, "5ecret", "hunter2"):
        assert secret not in line


def test_the_log_level_leaves_out_what_is_below_it(own: Servers) -> None:
    server = own.start(LOG_LEVEL="warning", STALL_THRESHOLD_MS="1", RETENTION_DAYS="1")
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
    server.stop()
    assert "INFO" not in {line["level"].upper() for line in server.lines}


def test_the_server_listens_on_the_host_that_it_is_given(own: Servers) -> None:
    server = Server(MONGODB_URI=own.uri, MONGODB_DATABASE=own.database().name, HOST="127.0.0.2")
    try:
        there = f"http://127.0.0.2:{server.port}/health"
        wait_until(lambda: answers(there), "/health answers at 127.0.0.2")
        assert not answers(f"{server.base_url}/health")
        server.stop()
    finally:
        server.kill()


def answers(url: str) -> bool:
    """Whether somebody answers 200 there."""
    try:
        return httpx.get(url, timeout=5, verify=NO_TLS, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_job_runs_once_and_prints_its_result_as_json(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = api.session()
        database.sessions.update_one({}, {"$set": {"last_heartbeat": ago(minutes=9)}})
        environment = {"MONGODB_URI": own.uri, "MONGODB_DATABASE": database.name, "API_KEYS": KEY}
        ended = run("job", "detect-failures", environment=environment)
        assert ended.returncode == 0, ended.stderr
        result = json.loads(ended.stdout.splitlines()[-1])
        assert (result["marked_stalled"], result["session_ids"]) == (1, [session["session_id"]])
        assert api.read_session(session)["status"] == "stalled"


def test_an_unknown_job_and_a_missing_database_are_each_one_clear_refusal() -> None:
    unknown = run("job", "tidy-up", environment=VALID)
    assert unknown.returncode != 0
    assert "tidy-up" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    unconfigured = run("job", "cleanup")
    assert unconfigured.returncode == 1
    assert unconfigured.stderr.startswith("ConfigurationError:")
    assert "MONGODB_URI" in unconfigured.stderr


def test_the_name_of_the_database_wins_over_the_path_in_the_uri(
    own: Servers, mongo: MongoClient[Document]
) -> None:
    chosen, in_path = own.database(), own.database()
    uri = own.uri.replace("/?", f"/{in_path.name}?")
    server = own.start(chosen, MONGODB_URI=uri)
    with Api(server.base_url, server.key) as api:
        session = api.session()
    assert chosen.sessions.count_documents({"session_id": session["session_id"]}) == 1
    assert in_path.name not in mongo.list_database_names()


def test_a_database_that_is_not_named_is_claude_projects(own: Servers, mongo: MongoClient[Document]) -> None:
    assert "claude-projects" not in mongo.list_database_names()
    try:
        server = own.start(MONGODB_DATABASE=None)
        with Api(server.base_url, server.key) as api:
            session = api.session()
        sessions = mongo["claude-projects"].sessions
        assert sessions.count_documents({"session_id": session["session_id"]}) == 1
        server.stop()
    finally:
        mongo.drop_database("claude-projects")


def test_the_environment_is_logged_at_start_and_no_secret_is(own: Servers) -> None:
    server = own.start(ENVIRONMENT="production")
    server.line_where(lambda line: "production" in str(line), "the environment")
    assert server.key not in str(server.lines)


def test_the_log_is_json_lines_with_time_and_level(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        expect(api.get("/api/sessions"), 200)
    server.stop()
    assert server.lines
    assert server.other_output == []
    assert all({"timestamp", "level"} <= line.keys() for line in server.lines)
