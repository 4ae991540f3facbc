"""The OpenAPI document is valid, whole and true."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from api_harness.api import Api, Json, expect
from api_harness.fuzzing import EXAMPLES, without_end
from api_harness.server import Server, run

KEYED_ERRORS = {"401", "429", "500"}
"""What can come from any route that asks for a key."""

STORED_ERRORS = {"503", "504"}
"""What can come from any route that asks the database."""

ROUTES: dict[tuple[str, str], set[str]] = {
    ("post", "/api/sessions"): {"201", "400", "409", "413", "415"},
    ("get", "/api/sessions"): {"200", "400"},
    ("get", "/api/sessions/health"): {"200"},
    ("get", "/api/sessions/stalled"): {"200"},
    ("get", "/api/sessions/archived"): {"200", "400"},
    ("post", "/api/sessions/detect-failures"): {"200"},
    ("post", "/api/sessions/cleanup"): {"200", "400"},
    ("delete", "/api/sessions/cleanup"): {"200", "400"},
    ("get", "/api/sessions/{session_id}"): {"200", "404"},
    ("patch", "/api/sessions/{session_id}"): {"200", "400", "404", "409", "413", "415"},
    ("delete", "/api/sessions/{session_id}"): {"204", "404"},
    ("get", "/api/sessions/{session_id}/health"): {"200", "404"},
    ("get", "/api/sessions/{session_id}/recovery-state"): {"200", "404"},
    ("post", "/api/sessions/{session_id}/heartbeat"): {"200", "400", "404", "409", "413", "415"},
    ("post", "/api/sessions/{session_id}/mark-failed"): {"200", "400", "404", "409", "413", "415"},
    ("post", "/api/sessions/{session_id}/mark-stalled"): {"200", "404", "409"},
    ("post", "/api/sessions/{session_id}/prepare-recovery"): {"200", "400", "404", "413", "415"},
    ("post", "/api/sessions/{session_id}/recover"): {"200", "201", "400", "404", "409", "413", "415"},
    ("post", "/api/sessions/{session_id}/archive"): {"200", "400", "404"},
    ("post", "/api/tasks"): {"201", "400", "413", "415"},
    ("get", "/api/tasks"): {"200", "400"},
    ("get", "/api/tasks/{task_id}"): {"200", "404"},
    ("patch", "/api/tasks/{task_id}"): {"200", "400", "404", "409", "413", "415"},
    ("delete", "/api/tasks/{task_id}"): {"204", "404"},
    ("post", "/api/machines"): {"200", "201", "400", "409", "413", "415"},
    ("get", "/api/machines"): {"200", "400"},
    ("get", "/api/machines/{machine_id}"): {"200", "404"},
    ("patch", "/api/machines/{machine_id}"): {"200", "400", "404", "409", "413", "415"},
    ("delete", "/api/machines/{machine_id}"): {"204", "404", "409"},
    ("post", "/api/machines/{machine_id}/heartbeat"): {"200", "404"},
    ("get", "/health/detailed"): {"200", "503"},
    ("get", "/metrics"): {"200"},
}
PUBLIC = {("get", "/health"), ("get", "/api/docs"), ("get", "/api/openapi.json")}
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document(api: Api) -> Json:
    """The document as the server gives it."""
    return expect(api.get("/api/openapi.json"), 200)


def operations(document: Json) -> Iterator[tuple[tuple[str, str], Json]]:
    """Every operation with its method and path."""
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield (method, path), item[method]


def resolve(document: Json, node: Json) -> Json:
    """The node, or what its `$ref` points to."""
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def test_the_command_prints_the_document_that_the_server_gives(document: Json) -> None:
    printed = run("openapi")
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == document


def test_the_document_is_openapi_3_1(document: Json) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    OPENAPI_31_VALIDATOR.validate(document)
    assert document["info"]["title"]
    assert document["info"]["version"]
    for (method, path), operation in operations(document):
        named = set(re.findall(r"{(\w+)}", path))
        parameters = [resolve(document, parameter) for parameter in operation.get("parameters", [])]
        declared = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert declared == named, (method, path)
        assert operation["responses"], (method, path)
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_every_schema_is_a_valid_json_schema(document: Json) -> None:
    schemas = document["components"]["schemas"]
    assert {"Session", "Task", "Machine", "ErrorBody"} <= schemas.keys()
    for schema in schemas.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)


def test_every_route_of_the_contract_is_there(document: Json) -> None:
    there = {key for key, _ in operations(document)}
    assert set(ROUTES) - there == set()


def test_every_status_that_can_come_is_declared(document: Json) -> None:
    missing = {}
    for key, operation in operations(document):
        if key in ROUTES:
            expected = ROUTES[key] | KEYED_ERRORS
            if key[1].startswith("/api/"):
                expected |= STORED_ERRORS
            undeclared = expected - operation["responses"].keys()
            if undeclared:
                missing[key] = undeclared
    assert missing == {}


def test_422_is_nowhere(document: Json) -> None:
    assert not [key for key, operation in operations(document) if "422" in operation["responses"]]
    assert "HTTPValidationError" not in str(document)


def test_every_operation_but_the_public_ones_asks_for_the_key(document: Json) -> None:
    schemes = document["components"]["securitySchemes"]
    [(name, scheme)] = schemes.items()
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-API-Key")
    default = document.get("security", [])
    for key, operation in operations(document):
        security = operation.get("security", default)
        if key in PUBLIC:
            assert not security, key
        elif key in ROUTES:
            assert security == [{name: []}], key


def test_every_error_is_declared_in_the_error_format(document: Json) -> None:
    required = {"statusCode", "error", "message", "timestamp", "path", "request_id"}
    for key, operation in operations(document):
        for status, declared in operation["responses"].items():
            if int(status) >= 400 and key != ("get", "/health/detailed"):
                content = resolve(document, declared)["content"]["application/json"]
                schema = resolve(document, content["schema"])
                assert required <= set(schema["required"]), (key, status)


def test_every_json_body_and_answer_has_an_example_that_its_schema_allows(document: Json) -> None:
    without: list[object] = []
    for key, operation in operations(document):
        bodies: list[tuple[str, Json]] = []
        if "requestBody" in operation:
            bodies.append(("request", resolve(document, operation["requestBody"])))
        bodies += [(status, resolve(document, answer)) for status, answer in operation["responses"].items()]
        for where, body in bodies:
            media = body.get("content", {}).get("application/json")
            if media is None or key in PUBLIC - {("get", "/health")}:
                continue
            examples = [example["value"] for example in media.get("examples", {}).values()]
            examples += [media["example"]] if "example" in media else []
            schema = resolve(document, media["schema"])
            examples += schema.get("examples", [])
            if not examples:
                without.append((key, where))
            root = {"components": document["components"]} | media["schema"]
            for example in examples:
                jsonschema_rs.validate(root, example)
    assert without == []


SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


# Its work is bounded by the number of examples; how long that takes is the machine's business.
@pytest.mark.slow
@without_end
def test_schemathesis_finds_nothing(server: Server, api: Api, tmp_path: Path) -> None:
    more = ["--max-examples", str(EXAMPLES), "--seed", str(secrets.randbits(32))] if EXAMPLES else []
    session = api.session()
    api.task(session)
    api.machine()
    found = subprocess.run(
        [
            SCHEMATHESIS,
            "--config-file",
            Path(__file__).with_name("schemathesis.toml"),
            "run",
            f"{server.base_url}/api/openapi.json",
            "--header",
            f"X-API-Key: {server.key}",
            "--no-color",
            *more,
        ],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=None if EXAMPLES else 560,
    )
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2_000:]
    assert not [line for line in server.lines if line["level"].lower() == "error"]
