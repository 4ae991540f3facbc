"""One error format for everything that can go wrong, and the headers of every answer."""

from __future__ import annotations

import http.client
import json
import socket
import time

import pytest
from pymongo import MongoClient

from api_harness.api import Api, expect, expect_error, is_uuid4, unique, uuid4
from api_harness.server import Server
from api_harness.servers import Document, Documents, Servers
from operations.log_lines import written

# The same in every process that collects the tests.
NOBODY = "00000000-0000-4000-8000-000000000000"
RATE_LIMIT_HEADERS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/sessions"),
        ("DELETE", "/api/sessions"),
        ("POST", f"/api/sessions/{uuid4()}"),
        ("GET", f"/api/sessions/{uuid4()}/heartbeat"),
        ("GET", f"/api/sessions/{uuid4()}/recover"),
        ("PATCH", "/api/tasks"),
        ("PUT", f"/api/machines/{uuid4()}"),
        ("POST", "/health"),
        ("POST", "/metrics"),
        ("DELETE", "/api/openapi.json"),
        ("TRACE", "/api/sessions"),
    ],
    ids=["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
)
def test_a_wrong_method_is_405_and_says_which_are_right(api: Api, method: str, path: str) -> None:
    answer = api.request(method, path)
    expect_error(answer, 405)
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/",
        "/api/no-such-route",
        "/api/sessions/",
        "/api/tasks/x/y",
        "/nothing",
        "/health/",
        "/favicon",
        "/api/sessions/%2e%2e/tasks",
        "/api//sessions",
        "/openapi.json",
        "/docs",
        "/redoc",
        f"/api/sessions/{NOBODY}/heartbeat%0A",
    ],
)
def test_an_unknown_route_is_404(api: Api, path: str) -> None:
    expect_error(api.get(path), 404)


ANSWERS = [
    ("GET", "/api/sessions", None, 200),
    ("GET", "/api/sessions/health", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/health/detailed", None, 200),
    ("GET", "/api/sessions/unknown", None, 404),
    ("GET", "/api/no-such-route", None, 404),
    ("GET", "/api/sessions?limit=x", None, 400),
    ("POST", "/api/sessions", b"{", 400),
    ("POST", "/api/sessions", b"x" * (2**20 + 1), 413),
    ("PUT", "/api/sessions", None, 405),
]


@pytest.mark.parametrize(("method", "path", "content", "status"), ANSWERS, ids=lambda value: str(value)[:40])
def test_every_authenticated_answer_carries_its_request_id_and_the_rate_limit(
    api: Api, method: str, path: str, content: bytes | None, status: int
) -> None:
    before = int(time.time())
    answer = api.request(method, path, content=content)
    assert answer.status_code == status
    assert is_uuid4(answer.headers["x-request-id"]) or answer.headers["x-request-id"]
    limit, remaining, reset = (int(answer.headers[name]) for name in RATE_LIMIT_HEADERS)
    assert limit == 1_000_000
    assert 0 <= remaining < limit
    assert before <= reset <= time.time() + 61


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/api/docs"),
        ("GET", "/api/sessions"),
        ("GET", "/nothing"),
        ("PUT", "/api/x"),
    ],
)
def test_every_other_answer_carries_its_request_id_too(anonymous: Api, method: str, path: str) -> None:
    first, second = (anonymous.request(method, path).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_a_cors_preflight_needs_no_key_and_carries_its_request_id(anonymous: Api) -> None:
    answer = anonymous.request(
        "OPTIONS",
        "/api/sessions",
        headers={
            "Origin": "vscode-webview://abc",
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "x-api-key,content-type",
        },
    )
    assert answer.status_code in {200, 204}
    assert answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-origin"] in {"*", "vscode-webview://abc"}
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert "x-api-key" in allowed
    assert "content-type" in allowed


@pytest.mark.parametrize(("path", "status"), [("/api/sessions", 200), ("/api/sessions/unknown", 404)])
def test_a_browser_may_read_answers_and_errors_and_their_headers(api: Api, path: str, status: int) -> None:
    answer = api.get(path, headers={"Origin": "https://example.org"})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] in {"*", "https://example.org"}
    exposed = answer.headers["access-control-expose-headers"].lower()
    for name in ("x-request-id", *RATE_LIMIT_HEADERS, "retry-after"):
        assert name in exposed


def test_a_browser_may_read_a_401(anonymous: Api) -> None:
    answer = anonymous.get("/api/sessions", headers={"Origin": "https://example.org"})
    expect_error(answer, 401)
    assert answer.headers["access-control-allow-origin"] in {"*", "https://example.org"}


def test_only_the_configured_origins_are_allowed(own: Servers) -> None:
    server = own.start(CORS_ORIGINS="https://one.example,https://two.example")
    with Api(server.base_url, server.key) as api:
        for origin in ("https://one.example", "https://two.example"):
            answer = api.get("/api/sessions", headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
        stranger = api.get("/api/sessions", headers={"Origin": "https://three.example"})
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize(
    "path",
    ["/api/sessions?status[$ne]=x", "/api/sessions?status%5B%24ne%5D=x", "/api/tasks?session_id[$gt]="],
)
def test_operators_in_the_query_are_refused(api: Api, path: str) -> None:
    expect_error(api.get(path), 400)


@pytest.mark.parametrize(
    "query",
    [
        "?%ff=1",
        "?status=%ff",
        "?limit=%00",
        "?&&&",
        "?=",
        "?status=active&status=failed",
        "?" + "a=1&" * 2000,
        "?" + "&".join(f"{number}" for number in range(9000)) + "&1",
    ],
)
def test_no_query_string_is_an_unforeseen_error(api: Api, query: str) -> None:
    answer = api.get(f"/api/sessions{query}")
    assert answer.status_code in {200, 400, 414, 431}, answer.text


NO_HTTP = {
    "bytes": b"\x00\x01\x02\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "method": b"FOO /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "path beyond ASCII": "GET /api/sessions/\u00e9 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "two lengths": b"POST /api/tasks HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "header": b"GET /health HTTP/1.1\r\nX-A: a\x00b\r\n\r\n",
    "endless head": b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 200_000,
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP.keys())
def test_what_is_no_http_is_refused_in_the_error_format_too(server: Server, sent: bytes) -> None:
    answer = exchange(server, sent)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.read())
    assert (error["statusCode"], error["error"]) == (400, "Bad Request")
    assert is_uuid4(error["request_id"])
    assert error["request_id"] == answer.headers["x-request-id"]
    server.line_where(lambda line: error["request_id"] in str(line), "the refusal")
    assert exchange(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status == 200


def exchange(server: Server, sent: bytes) -> http.client.HTTPResponse:
    """Send these bytes and nothing else; the answer to them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer


def test_an_offer_to_speak_another_protocol_is_not_taken_up(server: Server) -> None:
    upgrade = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert exchange(server, upgrade).status == 200


@pytest.mark.parametrize("path", ["/health", "/api/sessions", f"/api/sessions/{NOBODY}", "/api/docs"])
def test_head_answers_as_get_does_without_the_body(api: Api, path: str) -> None:
    head, get = api.request("HEAD", path), api.get(path)
    assert head.content == b""
    assert head.status_code == get.status_code
    for name in ("content-type", "x-content-type-options"):
        assert head.headers[name] == get.headers[name]
    assert is_uuid4(head.headers["x-request-id"])


def spoken(server: Server, request: bytes, until: bytes) -> bytes:
    """What comes back for raw bytes, up to and with `until`."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while until not in answer:
            more = connection.recv(65536)
            assert more, answer
            answer += more
        return answer


def test_head_and_body_of_an_answer_come_in_one_piece(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for _ in range(3):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"}")


def test_requests_in_one_piece_are_answered_one_after_the_other(server: Server) -> None:
    head = b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n"
    get = b"GET /nothing-here HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = spoken(server, head + head + get, b"/nothing-here")
    assert answers.count(b"HTTP/1.1 200") == 2
    assert answers.index(b"HTTP/1.1 404") > answers.rindex(b"HTTP/1.1 200")


def test_whoever_waits_for_100_continue_is_told_to(server: Server) -> None:
    body = b'{"project_id": ""}'
    head = b"POST /api/sessions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nX-API-Key: %s\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head % (server.key.encode(), len(body)))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"project_id" in answer


def test_head_is_refused_where_get_is(api: Api) -> None:
    answer = api.request("HEAD", "/api/sessions/cleanup")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, POST"


def test_429_says_when_to_come_back(own: Servers) -> None:
    server = own.start(
        RATE_LIMIT_PER_MINUTE="5",
        API_KEYS="11111111-1111-4111-8111-111111111111,22222222-2222-4222-8222-222222222222",
    )
    with Api(server.base_url, "11111111-1111-4111-8111-111111111111") as api:
        remaining = [int(api.get("/api/sessions").headers["x-ratelimit-remaining"]) for _ in range(5)]
        assert remaining == [4, 3, 2, 1, 0]
        answer = api.get("/api/sessions")
        expect_error(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["x-ratelimit-limit"] == "5"
        assert answer.headers["x-ratelimit-remaining"] == "0"
        assert answer.headers["x-request-id"]
    with Api(server.base_url, "22222222-2222-4222-8222-222222222222") as other:
        expect(other.get("/api/sessions"), 200)


def test_health_is_never_limited(own: Servers) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE="1")
    with Api(server.base_url, server.key) as api:
        assert {api.get("/health").status_code for _ in range(20)} == {200}


@pytest.fixture(scope="module")
def impatient(shared: Servers, database: Documents) -> Server:
    """A server that waits 2 s for the database, which it has set up."""
    server = shared.start(database, DB_TIMEOUT_MS="2000")
    written(server, "Database is set up")
    return server


def test_a_query_past_its_timeout_is_504(
    impatient: Server, database: Documents, mongo: MongoClient[Document]
) -> None:
    with Api(impatient.base_url, impatient.key) as api:
        session = api.session()
        with mongo.start_session() as client, client.start_transaction():
            query = {"session_id": session["session_id"]}
            database.sessions.update_one(query, {"$set": {"metadata": {"held": True}}}, session=client)
            expect_error(api.act(session, "heartbeat"), 504)
            client.abort_transaction()
        expect(api.act(session, "heartbeat"), 200)


def test_a_request_past_its_timeout_is_504(
    own: Servers, database: Documents, mongo: MongoClient[Document]
) -> None:
    hasty = own.start(database, REQUEST_TIMEOUT_MS="2000", DB_TIMEOUT_MS="20000")
    written(hasty, "Database is set up")
    with Api(hasty.base_url, hasty.key) as api:
        session = api.session()
        with mongo.start_session() as client, client.start_transaction():
            query = {"session_id": session["session_id"]}
            database.sessions.update_one(query, {"$set": {"metadata": {"held": True}}}, session=client)
            expect_error(api.act(session, "heartbeat"), 504)
            client.abort_transaction()
        beaten = expect(api.act(session, "heartbeat"), 200)
        assert beaten["metadata"] == {}


def test_what_nobody_foresaw_is_500_and_says_nothing_about_the_inside(
    server: Server, api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    session = api.session()
    fault = {"failCommands": ["find", "findAndModify", "update", "aggregate"], "errorCode": 8}
    fault |= {"namespace": f"{database.name}.sessions"}
    mongo.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fault)
    try:
        answer = api.get(f"/api/sessions/{session['session_id']}")
    finally:
        mongo.admin.command("configureFailPoint", "failCommand", mode="off")
    error = expect_error(answer, 500)
    for inside in ("failpoint", "Traceback", "pymongo", "UnknownError", database.name):
        assert inside.lower() not in str(error).lower()
    line = server.line_where(
        lambda line: error["request_id"] in str(line) and "traceback" in str(line).lower(),
        "the error's stack",
    )
    assert line["level"].lower() == "error"
    expect(api.get(f"/api/sessions/{session['session_id']}"), 200)


def test_the_request_id_of_the_answer_stands_in_the_log(api: Api, server: Server) -> None:
    answer = api.get("/api/sessions", params={"project_id": unique("project")})
    request_id = answer.headers["x-request-id"]
    server.line_where(lambda line: request_id in str(line) and "/api/sessions" in str(line), "the request")
