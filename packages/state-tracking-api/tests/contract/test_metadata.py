"""metadata: data and never operators, merged by RFC 7396, within limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, unique, uuid4
from api_harness.servers import Documents
from state_tracking_api import sessions, settings
from state_tracking_api.embedded import Mongod
from state_tracking_api.lifecycle import Stamp
from state_tracking_api.storage import Storage

OPERATORS_AND_DOTS: list[Json] = [
    {"a": "$session_id", "$where": "1", "x.y": {"$gt": ""}},
    {"$set": {"status": "failed"}, "$unset": {"project_id": 1}},
    {"": {"": ""}, ".": 1, "..": {"a.b.c": []}, "a.": 1, ".a": 2, "$": 3, "$$ROOT": 4},
    {"expr": {"$expr": {"$eq": ["$a", "$b"]}}, "list": [{"$literal": 1}, {"$ref": "x", "$id": 1}]},
    {"text": "$$NOW", "path": "$metadata.text", "func": "function() { return 1 }"},
    {"_id": 1, "__proto__": {"a": 1}, "constructor": "x", "status": "completed", "session_id": "other"},
    {"$oid": "5f0000000000000000000000", "$date": "2026-01-01", "$numberLong": "1"},
    {"big": 2**63 - 1, "small": -(2**63), "float": 1.5, "tiny": 1e-300, "zero": 0, "yes": True, "no": False},
    {"unicode": "Größe 漢字 🚀 \u202e", "schlüssel": 1, "escapes": '" \\ / \b \f \n \r \t', "🚀.$": "x"},
    {"empty": {}, "list": [], "nested": [[[]], {"a": [{}]}], "spaces": "  "},
    {"$ref": "x", "$id": 1, "$db": "y", "get": 2, "nested": {"$ref": "x", "$id": {"$ref": "y", "$id": 2}}},
]


@pytest.mark.parametrize("metadata", OPERATORS_AND_DOTS, ids=",".join)
def test_metadata_comes_back_exactly_as_it_went_in(api: Api, metadata: Json) -> None:
    session = api.session(metadata=metadata)
    assert session["metadata"] == metadata
    assert api.read_session(session)["metadata"] == metadata
    task = api.task(session, metadata=metadata)
    assert api.read_task(task)["metadata"] == metadata
    machine = api.machine(metadata=metadata)
    assert api.read_machine(machine)["metadata"] == metadata


@pytest.mark.parametrize("metadata", OPERATORS_AND_DOTS, ids=",".join)
def test_metadata_is_merged_exactly_as_it_went_in(api: Api, metadata: Json) -> None:
    session = api.session(metadata={"kept": {"$x": 1}})
    path = f"/api/sessions/{session['session_id']}"
    merged = {"kept": {"$x": 1}} | metadata
    assert expect(api.patch(path, json={"metadata": metadata}), 200)["metadata"] == merged
    assert expect(api.post(f"{path}/heartbeat", json={"metadata": metadata}), 200)["metadata"] == merged
    assert api.read_session(session)["metadata"] == merged
    assert api.read_session(session)["status"] == "active"
    task = api.task(session, metadata={"kept": {"$x": 1}})
    expect(api.patch(f"/api/tasks/{task['task_id']}", json={"metadata": metadata}), 200)
    assert api.read_task(task)["metadata"] == merged
    machine = api.machine(metadata={"kept": {"$x": 1}})
    expect(api.patch(f"/api/machines/{machine['machine_id']}", json={"metadata": metadata}), 200)
    assert api.read_machine(machine)["metadata"] == merged
    failed = expect(api.act(session, "mark-failed", {"error_message": "x", "metadata": metadata}), 200)
    assert failed["metadata"] == merged | {"error_message": "x"}
    successor = expect(api.recover(session), 201)
    assert successor["metadata"] == merged


async def test_what_looks_like_a_reference_is_metadata_wherever_it_is_read(
    api: Api, mongod: Mongod, database: Documents
) -> None:
    metadata: Json = {"$ref": "x", "$id": 1}
    session = api.session(metadata=metadata)
    path = f"/api/sessions/{session['session_id']}"
    storage = Storage(settings.load(mongodb_uri=mongod.uri, mongodb_database=database.name, api_keys=uuid4()))
    try:
        await sessions.fail_if(storage, session["session_id"], {}, Stamp(ago(), "job:test"), "abandoned")
    finally:
        await storage.close()
    failed = metadata | {"error_message": "abandoned"}
    assert api.read_session(session)["metadata"] == failed
    state = expect(api.post(f"{path}/prepare-recovery", json={}), 200)
    assert state["metadata"] == failed | {"recovery_prepared_at": state["metadata"]["recovery_prepared_at"]}
    shown = expect(api.get("/api/dashboard/overview", params={"project_id": session["project_id"]}), 200)
    assert [row["error_message"] for row in shown["sessions"]] == ["abandoned"]
    for _ in range(2):
        archived = expect(api.post(f"{path}/archive"), 200)
        assert archived["metadata"].items() >= (failed | {"archived": True}).items()


RFC_7396: list[tuple[Json, Json, Json]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"a": "foo"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ({"a": 1}, {"b": [None, {"c": None}]}, {"a": 1, "b": [None, {"c": None}]}),
    ({"a": {"b": {"c": 1}}}, {"a": {}}, {"a": {"b": {"c": 1}}}),
    ({"a": {"b": 1}}, {"a": None, "a.b": 2}, {"a.b": 2}),
    ({"x.y": {"z": 1}, "x": {"y": 2}}, {"x.y": {"z": None, "w": 3}}, {"x.y": {"w": 3}, "x": {"y": 2}}),
    ({"$a": {"$b": 1, "$c": 2}}, {"$a": {"$b": None}}, {"$a": {"$c": 2}}),
    ({"0": "zero", "list": [1, 2]}, {"list": {"0": "x"}}, {"0": "zero", "list": {"0": "x"}}),
]


@pytest.mark.parametrize(("before", "patch", "after"), RFC_7396, ids=str)
@pytest.mark.parametrize("way", ["patch", "heartbeat", "task", "machine"])
def test_metadata_is_merged_by_rfc_7396(api: Api, way: str, before: Json, patch: Json, after: Json) -> None:
    ways: dict[str, Callable[[], httpx.Response]] = {
        "patch": lambda: api.patch(
            f"/api/sessions/{api.session(metadata=before)['session_id']}", json={"metadata": patch}
        ),
        "heartbeat": lambda: api.act(api.session(metadata=before), "heartbeat", {"metadata": patch}),
        "task": lambda: api.patch(
            f"/api/tasks/{api.task(api.session(), metadata=before)['task_id']}", json={"metadata": patch}
        ),
        "machine": lambda: api.patch(
            f"/api/machines/{api.machine(metadata=before)['machine_id']}", json={"metadata": patch}
        ),
    }
    assert expect(ways[way](), 200)["metadata"] == after


def nested(levels: int) -> Json:
    """An object of that many levels."""
    found: Json = {}
    for _ in range(levels - 1):
        found = {"a": found}
    return found


def of_size(size: int, key: str = "a") -> Json:
    """An object whose compact JSON has exactly that many bytes."""
    return {key: "x" * (size - len(json.dumps({key: ""}, separators=(",", ":"))))}


LIMIT = 64 * 1024


@pytest.mark.parametrize(
    "metadata", [of_size(LIMIT + 1), of_size(LIMIT * 4), {"é" * LIMIT: 1}, nested(21), {"a": [[nested(19)]]}]
)
def test_metadata_beyond_its_limits_is_refused(api: Api, metadata: Json) -> None:
    place = {"project_id": unique("project"), "machine_id": unique("machine")}
    expect_error(api.post("/api/sessions", json=place | {"metadata": metadata}), 400, fields=("metadata",))
    session = api.session(**place)
    patched = api.patch(f"/api/sessions/{session['session_id']}", json={"metadata": metadata})
    expect_error(patched, 400, fields=("metadata",))
    expect_error(api.act(session, "heartbeat", {"metadata": metadata}), 400, fields=("metadata",))
    body = {"hostname": unique("host"), "docker_slots": [], "metadata": metadata}
    expect_error(api.post("/api/machines", json=body), 400, fields=("metadata",))
    assert api.read_session(session) == session


@pytest.mark.parametrize(
    "metadata",
    [of_size(LIMIT), nested(20), {"a": [nested(18)]}],
    ids=["size", "depth", "lists"],
)
def test_metadata_at_its_limits_is_accepted(api: Api, metadata: Json) -> None:
    assert api.read_session(api.session(metadata=metadata))["metadata"] == metadata


def test_the_size_limit_holds_after_merging_too(api: Api) -> None:
    half = of_size(LIMIT // 2)
    session = api.session(metadata=half)
    path = f"/api/sessions/{session['session_id']}"
    other_half = of_size(LIMIT // 2 + 10, "b")
    for answer in (
        api.patch(path, json={"metadata": other_half}),
        api.act(session, "heartbeat", {"metadata": other_half}),
        api.act(session, "mark-failed", {"error_message": "x", "metadata": other_half}),
    ):
        expect_error(answer, 400, fields=("metadata",))
    assert api.read_session(session) == session
    task = api.task(session, metadata=half)
    answer = api.patch(f"/api/tasks/{task['task_id']}", json={"metadata": other_half})
    expect_error(answer, 400, fields=("metadata",))
    assert api.read_task(task) == task
    machine = api.machine(metadata=half)
    answer = api.patch(f"/api/machines/{machine['machine_id']}", json={"metadata": other_half})
    expect_error(answer, 400, fields=("metadata",))
    replaced = expect(api.patch(path, json={"metadata": other_half | {"a": None}}), 200)
    assert replaced["metadata"] == other_half


def test_the_same_metadata_again_and_again_never_reaches_the_limit(api: Api) -> None:
    session = api.session()
    kilobyte = of_size(1024)
    for _ in range(130):
        assert expect(api.act(session, "heartbeat", {"metadata": kilobyte}), 200)["metadata"] == kilobyte
    removed = expect(api.act(session, "heartbeat", {"metadata": {"a": None}}), 200)
    assert removed["metadata"] == {}
    full = of_size(LIMIT)
    assert expect(api.act(session, "heartbeat", {"metadata": full}), 200)["metadata"] == full
    assert expect(api.act(session, "heartbeat", {"metadata": full}), 200)["metadata"] == full
    expect_error(api.act(session, "heartbeat", {"metadata": {"b": 1}}), 400, fields=("metadata",))


NOT_STORABLE = {
    "NUL in a key": r'{"a\u0000b": 1}',
    "NUL in a nested key": r'{"a": [{"\u0000": 1}]}',
    "a lone surrogate": r'{"a": "\ud800"}',
    "a lone low surrogate": r'{"a": "x\udc00y"}',
    "a lone surrogate in a key": r'{"\udfff": 1}',
    "2**63": '{"a": 9223372036854775808}',
    "-2**63-1": '{"a": -9223372036854775809}',
    "a googol": '{"a": 1' + "0" * 100 + "}",
    "5000 digits": '{"a": ' + "9" * 5000 + "}",
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": [Infinity]}',
    "-Infinity": '{"a": -Infinity}',
    "1e400": '{"a": 1e400}',
}


@pytest.mark.parametrize("text", NOT_STORABLE.values(), ids=NOT_STORABLE)
def test_what_the_database_cannot_store_is_refused_by_name(api: Api, text: str) -> None:
    session = api.session()
    headers = {"content-type": "application/json"}
    place = f'"project_id": "{unique("p")}", "machine_id": "m"'
    requests = [
        ("POST", "/api/sessions", f'{{{place}, "metadata": {text}}}'),
        ("PATCH", f"/api/sessions/{session['session_id']}", f'{{"metadata": {text}}}'),
        ("POST", f"/api/sessions/{session['session_id']}/heartbeat", f'{{"metadata": {text}}}'),
        (
            "POST",
            f"/api/sessions/{session['session_id']}/mark-failed",
            f'{{"error_message": "x", "metadata": {text}}}',
        ),
        ("POST", "/api/machines", f'{{"hostname": "h", "docker_slots": [], "metadata": {text}}}'),
    ]
    for method, path, content in requests:
        error = expect_error(api.request(method, path, content=content, headers=headers), 400)
        if "Inf" not in text and "NaN" not in text:  # these are no JSON, so that no field has them
            assert error["errors"], error
            assert all(entry["field"].startswith("metadata") for entry in error["errors"])
    assert api.read_session(session) == session


STRINGS = ["\ud800", "a\udfffb"]


@pytest.mark.parametrize("field", ["project_id", "machine_id"])
@pytest.mark.parametrize("value", STRINGS, ids=ascii)
def test_a_lone_surrogate_in_a_field_is_refused_by_name(api: Api, field: str, value: str) -> None:
    body: dict[str, Any] = {"project_id": "p", "machine_id": "m"} | {field: value}
    answer = api.post("/api/sessions", content=json.dumps(body), headers={"content-type": "application/json"})
    expect_error(answer, 400, fields=(field,))


@pytest.mark.parametrize(
    "content",
    [
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        "[" * 10_000 + "]" * 10_000,
        '{"metadata":{"a":' + '{"a":' * 10_000 + "1" + "}" * 10_002,
        '{"metadata":{"a":' + "[" * 10_000 + "]" * 10_000 + "}}",
        '{"metadata":' + '{"a":[' * 10_000,
    ],
    ids=["objects", "lists", "objects in metadata", "lists in metadata", "never closed"],
)
def test_10_000_levels_are_refused(api: Api, content: str) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/api/sessions", f"/api/sessions/{api.session()['session_id']}/heartbeat"):
        expect_error(api.post(path, content=content, headers=headers), 400)


@pytest.mark.parametrize("size", [2**20 + 1, 2 * 2**20])
def test_a_body_over_1_mib_is_413(api: Api, size: int) -> None:
    session = api.session()
    headers = {"content-type": "application/json"}
    content = json.dumps({"metadata": of_size(size)})
    path = f"/api/sessions/{session['session_id']}"
    expect_error(api.patch(path, content=content, headers=headers), 413)
    in_pieces = (content[i : i + 65536].encode() for i in range(0, len(content), 65536))
    expect_error(api.patch(path, content=in_pieces, headers=headers), 413)
    assert api.read_session(session) == session


def test_a_body_of_1_mib_is_not_413(api: Api) -> None:
    session = api.session()
    content = json.dumps({"metadata": {"a": 1}}).ljust(2**20)
    headers = {"content-type": "application/json"}
    patched = api.patch(f"/api/sessions/{session['session_id']}", content=content, headers=headers)
    assert expect(patched, 200)["metadata"] == {"a": 1}


RESERVED_IN_SESSIONS = (
    "archived",
    "archived_at",
    "error_message",
    "recovery_prepared_at",
    "recovered_at",
    "recovered_by",
    "recovered_from",
)
RESERVED_IN_TASKS = ("recovered_from_task", "carried_to")


@pytest.mark.parametrize("key", RESERVED_IN_SESSIONS)
@pytest.mark.parametrize("value", [True, None, {"a": 1}], ids=str)
def test_the_servers_own_keys_are_refused_in_a_sessions_metadata(api: Api, key: str, value: object) -> None:
    session = api.session(metadata={"nested": {key: "x"}})
    assert session["metadata"] == {"nested": {key: "x"}}, "below the top level they are the client's"
    body = {"metadata": {key: value, "other": 1}}
    place = {"project_id": unique("project"), "machine_id": unique("machine")}
    for answer in (
        api.post("/api/sessions", json=place | body),
        api.patch(f"/api/sessions/{session['session_id']}", json=body),
        api.act(session, "heartbeat", body),
        api.act(session, "mark-failed", {"error_message": "x"} | body),
    ):
        expect_error(answer, 400, fields=("metadata",))
    assert api.read_session(session) == session
    assert api.task(session, metadata={key: "x"})["metadata"] == {key: "x"}


@pytest.mark.parametrize("key", RESERVED_IN_TASKS)
def test_the_servers_own_keys_are_refused_in_a_tasks_metadata(api: Api, key: str) -> None:
    session = api.session(metadata={key: "x"})
    task = api.task(session, metadata={"nested": {key: "x"}})
    body = {"session_id": session["session_id"], "project_id": session["project_id"], "task_name": "t"}
    expect_error(api.post("/api/tasks", json=body | {"metadata": {key: "x"}}), 400, fields=("metadata",))
    answer = api.patch(f"/api/tasks/{task['task_id']}", json={"metadata": {key: None}})
    expect_error(answer, 400, fields=("metadata",))
    assert api.read_task(task) == task
