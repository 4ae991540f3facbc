"""PRD 1.2: start-up, configuration, the types of the code, and the API's description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from api_harness.api import Api, expect
from api_harness.server import run
from api_harness.servers import Servers

PROJECT = Path(__file__).parents[4]


@pytest.mark.prd("1.2.c")
def test_1_2_c_with_a_valid_uri_the_health_check_confirms_the_database_connection(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        database = expect(api.get("/health/detailed"), 200)["dependencies"]["database"]
    assert database["status"] == "ok"
    assert database["connected"] is True


@pytest.mark.prd("1.2.d")
def test_1_2_d_without_mongodb_uri_the_start_fails_with_a_configuration_error() -> None:
    ended = run("serve", environment={"API_KEYS": "0b5a3a4e-52cd-4c62-9f3e-1f1c7bd7e4d2"})
    assert ended.returncode == 1
    assert ended.stderr.startswith("ConfigurationError:")
    assert "MONGODB_URI" in ended.stderr


# How long it takes to read all of the code is the machine's business.
@pytest.mark.prd("1.2.e")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_1_2_e_the_strict_type_check_finds_no_error() -> None:
    checker = Path(sys.executable).with_name("basedpyright")
    checked = subprocess.run(
        [checker, "packages/state-tracking-api/src"],
        check=False,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.prd("1.2.f")
def test_1_2_f_the_documentation_is_served_as_an_openapi_document(anonymous: Api) -> None:
    document = expect(anonymous.get("/api/docs"), 200)
    assert document["openapi"].startswith("3.1")
    assert "/api/sessions" in document["paths"]
