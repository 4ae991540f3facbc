"""objects: which fields an answer has, and in which form."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from api_harness.api import Api, Json, expect, expect_error, is_uuid4, moment, unique

SESSION_FIELDS = {
    "session_id",
    "project_id",
    "machine_id",
    "docker_slot",
    "status",
    "last_heartbeat",
    "current_task_id",
    "started_at",
    "completed_at",
    "metadata",
    "created_at",
    "updated_at",
    "recovered_from",
    "recovered_by",
    "stall_threshold_ms",
}
TASK_FIELDS = {
    "task_id",
    "session_id",
    "project_id",
    "github_issue_id",
    "task_name",
    "status",
    "started_at",
    "completed_at",
    "error_message",
    "metadata",
    "created_at",
    "updated_at",
}
MACHINE_FIELDS = {
    "machine_id",
    "hostname",
    "docker_slots",
    "active_sessions",
    "status",
    "last_heartbeat",
    "metadata",
    "created_at",
    "updated_at",
}


def test_a_new_session_has_every_field_and_null_where_unset(api: Api) -> None:
    project, machine = unique("project"), unique("machine")
    session = api.session(project_id=project, machine_id=machine)
    assert session.keys() == SESSION_FIELDS
    assert is_uuid4(session["session_id"])
    assert (session["project_id"], session["machine_id"], session["status"]) == (project, machine, "active")
    unset = (
        "docker_slot",
        "current_task_id",
        "completed_at",
        "recovered_from",
        "recovered_by",
        "stall_threshold_ms",
    )
    assert [session[name] for name in unset] == [None] * len(unset)
    assert session["metadata"] == {}
    times = {moment(session[name]) for name in ("last_heartbeat", "started_at", "created_at", "updated_at")}
    assert len(times) == 1, "a request has one time"


def test_a_new_task_has_every_field_and_null_where_unset(api: Api) -> None:
    session = api.session()
    task = api.task(session)
    assert task.keys() == TASK_FIELDS
    assert is_uuid4(task["task_id"])
    assert (task["session_id"], task["project_id"]) == (session["session_id"], session["project_id"])
    assert (task["task_name"], task["status"], task["metadata"]) == ("Write it", "pending", {})
    unset = ("github_issue_id", "started_at", "completed_at", "error_message")
    assert [task[name] for name in unset] == [None] * len(unset)
    assert moment(task["created_at"]) == moment(task["updated_at"])


def test_a_new_machine_has_every_field(api: Api) -> None:
    hostname = unique("host")
    machine = api.machine(hostname=hostname, docker_slots=[5, 1])
    assert machine.keys() == MACHINE_FIELDS
    assert (machine["hostname"], machine["docker_slots"]) == (hostname, [5, 1])
    assert (machine["active_sessions"], machine["status"], machine["metadata"]) == ([], "online", {})
    assert moment(machine["last_heartbeat"]) == moment(machine["created_at"]) == moment(machine["updated_at"])


def test_every_field_that_was_given_is_kept(api: Api) -> None:
    session = api.session(docker_slot=2, metadata={"a": 1})
    assert (session["docker_slot"], session["metadata"]) == (2, {"a": 1})
    task = api.task(session, github_issue_id="owner/repo#12", metadata={"b": [1]})
    assert (task["github_issue_id"], task["metadata"]) == ("owner/repo#12", {"b": [1]})
    machine = api.machine(machine_id=unique("machine"), metadata={"c": 4.5, "d": {}})
    assert machine["metadata"] == {"c": 4.5, "d": {}}


NOBODY = "a3bb189e-8bf9-4c4e-9b5d-1d1b3f1c7a10"
NEW = {
    "/api/sessions": {"project_id": "p", "machine_id": "m"},
    "/api/tasks": {"session_id": NOBODY, "project_id": "p", "task_name": "t"},
    "/api/machines": {"hostname": "h", "docker_slots": []},
}


@pytest.mark.parametrize("path", NEW)
def test_all_missing_fields_are_named_at_once(api: Api, path: str) -> None:
    expect_error(api.post(path, json={}), 400, fields=tuple(NEW[path]))


@pytest.mark.parametrize("path", NEW)
def test_an_unknown_field_is_refused_by_name(api: Api, path: str) -> None:
    expect_error(api.post(path, json=NEW[path] | {"colour": "red"}), 400, fields=("colour",))


@pytest.mark.parametrize("path", NEW)
def test_an_empty_body_is_refused_where_a_field_is_required(api: Api, path: str) -> None:
    expect_error(api.post(path), 400)
    expect_error(api.post(path, content=b"", headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("path", NEW)
@pytest.mark.parametrize("body", ["null", "[]", '"text"', "1", "{", '{"a" 1}', "\x00", "{}{}", "'"])
def test_a_body_that_is_no_json_object_is_refused(api: Api, path: str, body: str) -> None:
    expect_error(api.post(path, content=body, headers={"content-type": "application/json"}), 400)


def test_a_body_that_is_no_utf8_is_refused(api: Api) -> None:
    latin = '{"project_id": "caf\xe9", "machine_id": "m"}'.encode("latin-1")
    expect_error(api.post("/api/sessions", content=latin, headers={"content-type": "application/json"}), 400)


OPERATOR = {"$ne": ""}
WRONG: dict[str, dict[str, list[object]]] = {
    "/api/sessions": {
        "project_id": [None, "", 1, True, 1.5, [], {}, ["p"], OPERATOR],
        "machine_id": [None, "", 1, OPERATOR],
        "docker_slot": [-1, True, False, "1", 1.0, 1.5, [], {"$gt": 0}, 2**63, 10**30, "x"],
        "metadata": [[], "text", 1, True],
    },
    "/api/tasks": {
        "session_id": [None, "", 1, "invalid-uuid", OPERATOR, NOBODY],
        "task_name": [None, "", 1, ["t"]],
        "github_issue_id": [12, True, {}, []],
        "metadata": [[], "text", 0],
    },
    "/api/machines": {
        "hostname": [None, "", 1, [], {"$regex": ".*"}],
        "docker_slots": [None, 1, "1,2", {}, [-1], ["1"], [1.0], [True], [None], [[1]], [2**63]],
        "machine_id": ["", 1, [], OPERATOR],
        "metadata": [[], "text"],
    },
}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (path, {name: value})
        for path, fields in WRONG.items()
        for name, values in fields.items()
        for value in values
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused_and_named(api: Api, path: str, field: Json) -> None:
    session = api.session() if path == "/api/tasks" else None
    body: dict[str, Any] = dict(NEW[path])
    if session:
        body |= {"session_id": session["session_id"], "project_id": session["project_id"]}
    expect_error(api.post(path, json=body | field), 400, fields=tuple(field))


def test_all_wrong_fields_are_named_at_once(api: Api) -> None:
    body = {"project_id": "", "machine_id": 5, "docker_slot": "1", "metadata": [], "colour": "red"}
    expect_error(api.post("/api/sessions", json=body), 400, fields=tuple(body))


def test_null_for_an_optional_field_means_absent(api: Api) -> None:
    session = api.session(docker_slot=None, metadata=None)
    assert (session["docker_slot"], session["metadata"]) == (None, {})
    task = api.task(session, github_issue_id=None, metadata=None)
    assert (task["github_issue_id"], task["metadata"]) == (None, {})
    machine = api.machine(machine_id=None, metadata=None)
    assert is_uuid4(machine["machine_id"])
    assert machine["metadata"] == {}


def test_a_body_without_content_type_is_taken_as_json(api: Api) -> None:
    content = f'{{"project_id": "{unique("p")}", "machine_id": "m"}}'
    request = api.http.build_request("POST", "/api/sessions", content=content)
    request.headers.pop("content-type", None)
    expect(api.http.send(request), 201)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "application/JSON", "application/json;charset=UTF-8"]
)
def test_the_json_content_type_may_carry_parameters(api: Api, content_type: str) -> None:
    content = f'{{"project_id": "{unique("p")}", "machine_id": "m"}}'
    expect(api.post("/api/sessions", content=content, headers={"content-type": content_type}), 201)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml"],
)
def test_another_content_type_is_415(api: Api, content_type: str) -> None:
    content = f'{{"project_id": "{unique("p")}", "machine_id": "m"}}'
    expect_error(api.post("/api/sessions", content=content, headers={"content-type": content_type}), 415)


def test_a_compressed_body_is_415(api: Api) -> None:
    body = gzip.compress(b'{"project_id": "p", "machine_id": "m"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    expect_error(api.post("/api/sessions", content=body, headers=headers), 415, says="compressed")


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        ("/api/sessions", {"project_id": " ", "machine_id": "m"}, "project_id", "must not be blank"),
        (
            "/api/tasks",
            {"session_id": "x", "project_id": "p", "task_name": "t"},
            "session_id",
            "must be a UUID v4",
        ),
        (
            "/api/machines",
            {"hostname": "h", "docker_slots": [*range(1025)]},
            "docker_slots",
            "must have at most 1024 items, not 1025",
        ),
    ],
)
def test_a_refusal_speaks_of_the_value_and_not_of_how_it_is_checked(
    api: Api, path: str, body: Json, field: str, message: str
) -> None:
    error = expect_error(api.post(path, json=body), 400)
    assert error["errors"] == [{"field": field, "message": message}]


def test_text_of_every_script_survives(api: Api) -> None:
    name = "Größe 漢字 🚀 \u202e \\ \" ' \t\n $x .y"
    session = api.session(metadata={"text": name})
    assert session["metadata"] == {"text": name}
    assert api.read_task(api.task(session, task_name=name))["task_name"] == name
