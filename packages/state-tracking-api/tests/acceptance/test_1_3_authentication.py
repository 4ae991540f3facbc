"""PRD 1.3: who may call."""

from __future__ import annotations

import re

import pytest

from api_harness.api import Api, expect, expect_error, unique, uuid4
from api_harness.server import Server, run

NEW_SESSION = {"project_id": "project", "machine_id": "machine"}


@pytest.mark.prd("1.3.a")
def test_1_3_a_a_session_is_created_with_a_valid_key(api: Api) -> None:
    body = {"project_id": unique("project"), "machine_id": unique("machine")}
    expect(api.post("/api/sessions", json=body), 201)


@pytest.mark.prd("1.3.b")
def test_1_3_b_without_a_key_the_answer_is_401(anonymous: Api) -> None:
    expect_error(anonymous.post("/api/sessions", json=NEW_SESSION), 401, says="API key required")


@pytest.mark.prd("1.3.c")
def test_1_3_c_with_an_invalid_key_the_answer_is_401(anonymous: Api) -> None:
    answer = anonymous.post("/api/sessions", json=NEW_SESSION, headers={"X-API-Key": "invalid-key-123"})
    expect_error(answer, 401, says="Malformed API key")
    answer = anonymous.post("/api/sessions", json=NEW_SESSION, headers={"X-API-Key": uuid4()})
    expect_error(answer, 401, says="Invalid API key")


@pytest.mark.prd("1.3.d")
def test_1_3_d_health_needs_no_key(anonymous: Api) -> None:
    assert expect(anonymous.get("/health"), 200)["status"] == "ok"


@pytest.mark.prd("1.3.e")
def test_1_3_e_a_failed_attempt_is_logged_with_time_address_and_masked_key(
    anonymous: Api, server: Server
) -> None:
    key = uuid4()
    answer = anonymous.get("/api/sessions", headers={"X-API-Key": key})
    request_id = expect_error(answer, 401)["request_id"]
    line = server.line_where(
        lambda line: request_id in str(line) and "auth" in str(line).lower() and "127.0.0.1" in str(line),
        "the failed attempt",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", line["timestamp"])
    assert key[:4] in str(line) or key[-4:] in str(line), "the masked key lets it be recognised"
    assert all(key not in str(other) for other in server.lines)


@pytest.mark.prd("1.3.f")
def test_1_3_f_with_empty_api_keys_the_start_fails_with_a_configuration_error() -> None:
    ended = run("serve", environment={"API_KEYS": "", "MONGODB_URI": "mongodb://127.0.0.1:1"})
    assert ended.returncode == 1
    assert ended.stderr.startswith("ConfigurationError:")
    assert "API_KEYS" in ended.stderr
