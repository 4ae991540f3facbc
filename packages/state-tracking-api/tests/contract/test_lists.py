"""lists: their shape, order, bounds and filters."""

from __future__ import annotations

from typing import Any

import pytest

from api_harness.api import Api, expect, expect_error, unique
from api_harness.servers import Documents

LISTS = {
    "/api/sessions": ("sessions", "session_id", 100),
    "/api/tasks": ("tasks", "task_id", 200),
    "/api/machines": ("machines", "machine_id", 100),
    "/api/sessions/archived": ("sessions", "session_id", 100),
}


@pytest.fixture(scope="module")
def populated(api: Api) -> None:
    """Five of everything, archived sessions included."""
    for _ in range(5):
        session = api.session_in("completed")
        expect(api.act(session, "archive"), 200)
        api.task(api.session())
        api.machine()


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("path", LISTS)
def test_a_list_says_how_many_there_are_and_which_part_it_is(api: Api, path: str) -> None:
    name, _, _ = LISTS[path]
    answer = expect(api.get(path), 200)
    assert answer.keys() == {name, "total", "limit", "offset"}
    assert (answer["limit"], answer["offset"]) == (50, 0)
    assert answer["total"] == len(answer[name]) >= 5


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("path", LISTS)
def test_pages_follow_each_other_without_gap_or_overlap(api: Api, path: str) -> None:
    name, key, _ = LISTS[path]
    everything = expect(api.get(path), 200)
    pages = [
        expect(api.get(path, params={"limit": 2, "offset": offset}), 200)
        for offset in range(0, everything["total"], 2)
    ]
    assert [item[key] for page in pages for item in page[name]] == [item[key] for item in everything[name]]
    assert {page["total"] for page in pages} == {everything["total"]}
    beyond = expect(api.get(path, params={"offset": 10_000}), 200)
    assert (beyond[name], beyond["total"], beyond["offset"]) == ([], everything["total"], 10_000)


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize("path", LISTS)
def test_a_list_is_newest_first_with_the_id_as_tie_breaker(api: Api, database: Documents, path: str) -> None:
    name, key, _ = LISTS[path]
    newest = expect(api.get(path, params={"limit": 4}), 200)[name]
    same_time = database[name].find_one({key: newest[-1][key]})
    assert same_time
    database[name].update_many(
        {key: {"$in": [item[key] for item in newest]}}, {"$set": {"created_at": same_time["created_at"]}}
    )
    orders = [[item[key] for item in expect(api.get(path, params={"limit": 4}), 200)[name]] for _ in range(2)]
    assert orders[0] in (sorted(orders[0]), sorted(orders[0], reverse=True))
    assert orders[0] == orders[1]
    everything = [item["created_at"] for item in expect(api.get(path), 200)[name]]
    assert everything == sorted(everything, reverse=True)


@pytest.mark.parametrize("path", LISTS)
def test_the_bounds_of_limit_and_offset_are_accepted(api: Api, path: str) -> None:
    _, _, most = LISTS[path]
    for limit, offset in ((1, 0), (most, 0), (most, 10**6)):
        answer = expect(api.get(path, params={"limit": limit, "offset": offset}), 200)
        assert (answer["limit"], answer["offset"]) == (limit, offset)


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "value", ["0", "-1", "TOO_MANY", "ten", "", "1.5", "1e1", "0x10", "99999999999999999999"]
)
def test_a_limit_out_of_range_or_no_number_is_refused(api: Api, path: str, value: str) -> None:
    _, _, most = LISTS[path]
    limit = str(most + 1) if value == "TOO_MANY" else value
    expect_error(api.get(path, params={"limit": limit}), 400, fields=("limit",))


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("value", ["-1", "ten", "1.5", "99999999999999999999"])
def test_an_offset_out_of_range_or_no_number_is_refused(api: Api, path: str, value: str) -> None:
    expect_error(api.get(path, params={"offset": value}), 400, fields=("offset",))


@pytest.mark.parametrize("path", LISTS)
def test_all_wrong_query_parameters_are_named_at_once(api: Api, path: str) -> None:
    answer = api.get(path, params={"limit": "x", "offset": "-1", "colour": "red"})
    expect_error(answer, 400, fields=("limit", "offset", "colour"))


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/sessions", "stauts=active"),
        ("/api/sessions", "Status=active"),
        ("/api/sessions", "status[$ne]=x"),
        ("/api/sessions", "status%5B%24ne%5D=x"),
        ("/api/sessions", "project_id[$gt]="),
        ("/api/sessions", "session_id=x"),
        ("/api/tasks", "machine_id=x"),
        ("/api/tasks", "status[$ne]=x"),
        ("/api/machines", "hostname=x"),
        ("/api/machines", "$where=1"),
        ("/api/sessions/archived", "status=completed"),
        ("/api/sessions/health", "verbose=1"),
        ("/api/sessions/stalled", "limit=1"),
    ],
)
def test_an_unknown_query_parameter_is_refused(api: Api, path: str, query: str) -> None:
    errors = expect_error(api.get(f"{path}?{query}"), 400)["errors"]
    assert len(errors) == 1


def test_an_unknown_query_parameter_is_refused_on_every_kind_of_request(api: Api) -> None:
    session = api.session()
    path = f"/api/sessions/{session['session_id']}"
    expect_error(api.get(path, params={"x": "1"}), 400, fields=("x",))
    expect_error(api.patch(path, params={"x": "1"}, json={"status": "paused"}), 400, fields=("x",))
    expect_error(api.post(f"{path}/heartbeat", params={"x": "1"}), 400, fields=("x",))
    expect_error(api.delete(path, params={"x": "1"}), 400, fields=("x",))
    assert api.read_session(session) == session


@pytest.mark.parametrize("path", ["/api/sessions", "/api/tasks", "/api/machines"])
@pytest.mark.parametrize("status", ["unknown", "ACTIVE", "", "$ne", "active,paused"])
def test_an_unknown_status_is_refused(api: Api, path: str, status: str) -> None:
    expect_error(api.get(path, params={"status": status}), 400, fields=("status",))


def test_a_malformed_session_id_in_the_query_is_refused(api: Api) -> None:
    expect_error(api.get("/api/tasks", params={"session_id": "invalid-uuid"}), 400, fields=("session_id",))


@pytest.mark.parametrize("status", ["active", "paused", "stalled", "completed", "failed"])
def test_sessions_are_filtered_by_project_machine_and_status(api: Api, status: str) -> None:
    project, machine = unique("project"), unique("machine")
    api.session_in("failed" if status != "failed" else "completed", project_id=project, machine_id=machine)
    wanted = api.session_in(status, project_id=project, machine_id=machine)
    api.session_in(status, project_id=project)
    api.session_in(status, machine_id=machine)

    def ids(**query: Any) -> set[str]:
        found = expect(api.get("/api/sessions", params=query), 200)
        assert found["total"] == len(found["sessions"])
        return {session["session_id"] for session in found["sessions"]}

    assert len(ids(project_id=project)) == 3
    assert len(ids(machine_id=machine)) == 3
    assert len(ids(project_id=project, machine_id=machine)) == 2
    assert ids(project_id=project, machine_id=machine, status=status) == {wanted["session_id"]}
    assert ids(project_id=unique("project")) == set()


@pytest.mark.parametrize("status", ["pending", "in_progress", "completed", "failed", "blocked"])
def test_tasks_are_filtered_by_session_project_and_status(api: Api, status: str) -> None:
    session = api.session()
    neighbour = api.session(project_id=session["project_id"])
    wanted = api.task_in(session, status)
    api.task_in(session, "pending" if status != "pending" else "blocked")
    api.task_in(neighbour, status)

    def ids(**query: Any) -> set[str]:
        found = expect(api.get("/api/tasks", params=query), 200)
        assert found["total"] == len(found["tasks"])
        return {task["task_id"] for task in found["tasks"]}

    assert len(ids(project_id=session["project_id"])) == 3
    assert len(ids(session_id=session["session_id"])) == 2
    assert len(ids(project_id=session["project_id"], status=status)) == 2
    assert ids(session_id=session["session_id"], status=status) == {wanted["task_id"]}


def test_the_archive_lists_archived_sessions_only(api: Api) -> None:
    archived, ended = api.session_in("completed"), api.session_in("failed")
    expect(api.act(archived, "archive"), 200)
    found = expect(api.get("/api/sessions/archived", params={"limit": 100}), 200)["sessions"]
    ids = {session["session_id"] for session in found}
    assert archived["session_id"] in ids
    assert ended["session_id"] not in ids
    assert all(session["metadata"]["archived"] is True for session in found)
