"""Keys, and what comes before what when several things are wrong."""

from __future__ import annotations

import uuid

import pytest

from api_harness.api import Api, expect, expect_error, unique, uuid4
from api_harness.server import Server

UPPER_KEY = "9C5A7B7E-3D5F-4E6A-8B1C-2F3D4E5F6A7B"
PLAIN_KEY = "1f0e9d8c-7b6a-4594-8372-615049382716"


@pytest.fixture(scope="module")
def server_environment() -> dict[str, str]:
    """Two keys: one named and in capitals, one without a name."""
    return {"API_KEYS": f"laptop={UPPER_KEY},{PLAIN_KEY}"}


@pytest.fixture(scope="module")
def api(anonymous: Api) -> Api:
    """Nobody's client; each test sends the key that it is about."""
    return anonymous


@pytest.mark.parametrize("key", [UPPER_KEY, UPPER_KEY.lower(), PLAIN_KEY, PLAIN_KEY.upper()])
def test_the_letter_case_of_a_key_does_not_matter(api: Api, key: str) -> None:
    expect(api.get("/api/sessions", headers={"X-API-Key": key}), 200)


@pytest.mark.parametrize("name", ["x-api-key", "X-API-KEY", "X-Api-Key"])
def test_the_letter_case_of_the_header_does_not_matter(api: Api, name: str) -> None:
    expect(api.get("/api/sessions", headers={name: PLAIN_KEY}), 200)


@pytest.mark.parametrize(
    "key",
    [
        "invalid-key-123",
        "x",
        f"laptop={UPPER_KEY}",
        f"{PLAIN_KEY},{UPPER_KEY}",
        PLAIN_KEY[:-1],
        f"{PLAIN_KEY}0",
        PLAIN_KEY.replace("-", ""),
        f"{{{PLAIN_KEY}}}",
        f"urn:uuid:{PLAIN_KEY}",
        str(uuid.uuid5(uuid.NAMESPACE_DNS, "x")),
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_a_key_that_is_no_uuid_v4_is_malformed(api: Api, key: str) -> None:
    expect_error(api.get("/api/sessions", headers={"X-API-Key": key}), 401, says="Malformed API key")


def test_a_key_of_bytes_beyond_ascii_is_malformed(api: Api) -> None:
    answer = api.get("/api/sessions", headers=[(b"X-API-Key", "schlüssel\U0001f511".encode())])
    expect_error(answer, 401, says="Malformed API key")


def test_a_well_formed_unknown_key_is_invalid(api: Api) -> None:
    expect_error(api.get("/api/sessions", headers={"X-API-Key": uuid4()}), 401, says="Invalid API key")


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"Authorization": PLAIN_KEY}], ids=str)
def test_no_key_is_required_but_missing(api: Api, headers: dict[str, str]) -> None:
    expect_error(api.get("/api/sessions", headers=headers), 401, says="API key required")


def test_a_key_in_the_query_is_no_key(api: Api) -> None:
    expect_error(api.get("/api/sessions", params={"X-API-Key": PLAIN_KEY}), 401, says="API key required")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/no-such-route"),
        ("GET", "/api/"),
        ("GET", f"/api/sessions/{PLAIN_KEY}"),
        ("GET", "/api/sessions?limit=x"),
        ("PUT", "/api/sessions"),
        ("POST", "/api/sessions"),
        ("POST", "/api/sessions/"),
        ("POST", "/api/sessions/cleanup"),
        ("POST", "/api/sessions/detect-failures"),
        ("GET", "/api/sessions/health"),
        ("DELETE", "/api/docs/x"),
        ("GET", "/api/%2e%2e/x"),
        ("GET", "/health/detailed"),
        ("GET", "/metrics"),
    ],
)
def test_a_missing_key_comes_before_anything_else(api: Api, method: str, path: str) -> None:
    answer = api.request(method, path, content=b"{" if method == "POST" else None)
    expect_error(answer, 401, says="API key required")
    answer = api.request(method, path, headers={"X-API-Key": uuid4()})
    expect_error(answer, 401, says="Invalid API key")


def test_a_missing_key_comes_before_a_body_that_is_too_large(api: Api) -> None:
    expect_error(api.post("/api/sessions", content=b"x" * (2 * 2**20)), 401)


@pytest.mark.parametrize("path", ["/health", "/api/docs", "/api/openapi.json"])
def test_what_is_public_asks_for_no_key(api: Api, path: str) -> None:
    assert api.get(path, headers={"Accept": "text/html,*/*"}).status_code == 200
    assert api.get(path, headers={"X-API-Key": "wrong"}).status_code == 200


def test_an_attempt_is_logged_with_the_keys_name_or_its_masked_form(api: Api, server: Server) -> None:
    def logged(key: str) -> str:
        answer = api.get("/api/sessions", headers={"X-API-Key": key})
        request_id = answer.headers["x-request-id"]
        line = server.line_where(
            lambda line: request_id in str(line) and "auth" in str(line).lower(), f"attempt {request_id}"
        )
        return str(line)

    assert "laptop" in logged(UPPER_KEY)
    assert "127.0.0.1" in logged(PLAIN_KEY)
    stranger = uuid4()
    assert "127.0.0.1" in logged(stranger)
    everything = str(server.lines).lower()
    for key in (UPPER_KEY, PLAIN_KEY, stranger):
        assert key.lower() not in everything


def test_an_attempt_is_logged_once(api: Api, server: Server) -> None:
    request_id = api.get("/api/sessions", headers={"X-API-Key": uuid4()}).headers["x-request-id"]
    sentinel = unique("sentinel")
    later = api.get("/api/sessions", headers={"X-API-Key": uuid4(), "User-Agent": sentinel})
    later_id = later.headers["x-request-id"]
    server.line_where(lambda line: later_id in str(line), "the request after it")
    attempts = [line for line in server.lines if request_id in str(line) and "invalid" in str(line).lower()]
    assert len(attempts) == 1, attempts
