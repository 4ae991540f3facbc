"""tasks: their table of transitions, their times, and the session's current task."""

from __future__ import annotations

import pytest

from api_harness.api import Api, Json, expect, expect_error, moment, same_but, unique

STATUSES = ("pending", "in_progress", "completed", "failed", "blocked")
ALLOWED = {
    "pending": {"in_progress", "completed", "failed", "blocked"},
    "in_progress": {"completed", "failed", "blocked"},
    "blocked": {"pending", "in_progress", "completed", "failed", "blocked"},
    "completed": {"blocked"},
    "failed": {"blocked"},
}
ENDED = ("completed", "failed")
NOBODY = "a3bb189e-8bf9-4c4e-9b5d-1d1b3f1c7a10"


def path_of(task: Json) -> str:
    """The task's resource."""
    return f"/api/tasks/{task['task_id']}"


@pytest.mark.parametrize("after", STATUSES)
@pytest.mark.parametrize("before", STATUSES)
def test_a_task_changes_its_status_by_the_table(api: Api, before: str, after: str) -> None:
    task = api.task_in(api.session(), before)
    body = {"status": after} | ({"error_message": "broken"} if after == "failed" else {})
    answer = api.patch(path_of(task), json=body)
    if after not in ALLOWED[before]:
        expect_error(answer, 400)
        assert api.read_task(task) == task
        return
    changed = expect(answer, 200)
    assert changed["status"] == after
    assert api.read_task(task) == changed
    assert (changed["completed_at"] is not None) == (after in ENDED)
    if after in {"in_progress", *ENDED}:
        assert moment(changed["started_at"]) >= moment(task["created_at"])


def test_the_table_covers_every_pair() -> None:
    assert ALLOWED.keys() == set(STATUSES)


def test_a_task_that_ran_keeps_the_time_of_its_start(api: Api) -> None:
    task = api.task_in(api.session(), "in_progress")
    assert api.set_task(task, "completed")["started_at"] == task["started_at"]


def test_blocking_an_ended_task_clears_its_end(api: Api) -> None:
    for status in ENDED:
        task = api.task_in(api.session(), status)
        assert task["completed_at"]
        blocked = expect(api.patch(path_of(task), json={"status": "blocked", "metadata": {"by": "#7"}}), 200)
        assert (blocked["status"], blocked["completed_at"]) == ("blocked", None)
        assert blocked["metadata"] == {"by": "#7"}


def test_failing_needs_a_message_and_keeps_it(api: Api) -> None:
    task = api.task(api.session())
    for message in ({}, {"error_message": None}, {"error_message": ""}, {"error_message": 5}):
        answer = api.patch(path_of(task), json={"status": "failed"} | message)
        expect_error(answer, 400, fields=("error_message",))
    failed = expect(api.patch(path_of(task), json={"status": "failed", "error_message": "exit 1"}), 200)
    assert failed["error_message"] == "exit 1"


def test_metadata_of_a_task_is_merged_without_a_change_of_status(api: Api) -> None:
    task = api.task_in(api.session(), "in_progress", metadata={"a": 1, "b": {"c": 1, "d": 2}})
    body = {"metadata": {"a": None, "b": {"c": 3}, "e": "new"}}
    patched = expect(api.patch(path_of(task), json=body), 200)
    assert patched["metadata"] == {"b": {"c": 3, "d": 2}, "e": "new"}
    same_but(task, patched, "metadata", "updated_at")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"status": null}', b'{"metadata": null}'])
def test_an_empty_patch_is_refused(api: Api, content: bytes) -> None:
    task = api.task(api.session())
    headers = {"content-type": "application/json"}
    expect_error(api.patch(path_of(task), content=content, headers=headers), 400)
    assert api.read_task(task) == task


@pytest.mark.parametrize("field", ["task_id", "session_id", "project_id", "task_name", "started_at", "x"])
def test_a_patch_changes_nothing_but_status_message_and_metadata(api: Api, field: str) -> None:
    task = api.task(api.session())
    answer = api.patch(path_of(task), json={field: "x", "status": "in_progress"})
    expect_error(answer, 400, fields=(field,))
    assert api.read_task(task) == task


@pytest.mark.parametrize("status", ["unknown", "", 1, True, {"$ne": "pending"}, ["pending"]], ids=str)
def test_an_unknown_status_is_refused(api: Api, status: object) -> None:
    task = api.task(api.session())
    expect_error(api.patch(path_of(task), json={"status": status}), 400, fields=("status",))


def test_a_task_belongs_to_the_project_of_its_session(api: Api) -> None:
    session = api.session()
    body = {"session_id": session["session_id"], "project_id": unique("project"), "task_name": "t"}
    expect_error(api.post("/api/tasks", json=body), 400, fields=("project_id",))


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_an_ended_session_takes_no_new_task(api: Api, status: str) -> None:
    session = api.session_in(status)
    body = {"session_id": session["session_id"], "project_id": session["project_id"], "task_name": "t"}
    expect_error(api.post("/api/tasks", json=body), 400)
    assert api.tasks_of(session) == []


@pytest.mark.parametrize("status", ["paused", "stalled"])
def test_a_resting_session_takes_new_tasks(api: Api, status: str) -> None:
    assert api.task(api.session_in(status))["status"] == "pending"


@pytest.mark.parametrize("session_id", [NOBODY, "invalid-uuid", ""])
def test_a_task_of_an_unknown_or_malformed_session_is_refused(api: Api, session_id: str) -> None:
    body = {"session_id": session_id, "project_id": "p", "task_name": "t"}
    expect_error(api.post("/api/tasks", json=body), 400, fields=("session_id",))


@pytest.mark.parametrize("status", ["completed", "failed"])
@pytest.mark.parametrize("change", ["in_progress", "completed", "failed", "blocked"])
def test_the_tasks_of_an_ended_session_keep_their_status(api: Api, status: str, change: str) -> None:
    session = api.session()
    task = api.task(session)
    api.set_session(session, status)
    body = {"status": change} | ({"error_message": "broken"} if change == "failed" else {})
    expect_error(api.patch(path_of(task), json=body), 409)
    assert api.read_task(task) == task


def test_a_status_change_for_a_task_of_a_recovered_session_names_the_successor(api: Api) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress")
    api.set_session(session, "stalled")
    successor = expect(api.recover(session), 201)
    refusal = expect_error(api.patch(path_of(task), json={"status": "completed"}), 409)
    assert refusal["recovered_by"] == successor["session_id"]


@pytest.mark.parametrize("end", ["completed", "failed", "blocked"])
def test_the_session_names_its_task_in_progress_until_it_ends_or_is_blocked(api: Api, end: str) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress")
    assert api.read_session(session)["current_task_id"] == task["task_id"]
    api.set_task(task, end)
    assert api.read_session(session)["current_task_id"] is None


def test_the_end_of_another_task_leaves_the_current_one(api: Api) -> None:
    session = api.session()
    first, second = (api.task_in(session, "in_progress") for _ in range(2))
    assert api.read_session(session)["current_task_id"] == second["task_id"]
    api.set_task(first, "completed")
    assert api.read_session(session)["current_task_id"] == second["task_id"]
    api.task_in(session, "completed")
    assert api.read_session(session)["current_task_id"] == second["task_id"]


def test_deleting_the_current_task_clears_it(api: Api) -> None:
    session = api.session()
    task, other = api.task_in(session, "in_progress"), api.task(session)
    assert api.delete(path_of(other)).status_code == 204
    assert api.read_session(session)["current_task_id"] == task["task_id"]
    deleted = api.delete(path_of(task))
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert api.read_session(session)["current_task_id"] is None
    expect_error(api.get(path_of(task)), 404)
    expect_error(api.delete(path_of(task)), 404)


@pytest.mark.parametrize("task_id", [NOBODY, "invalid-uuid", "$ne"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_a_task_that_does_not_exist_is_not_found(api: Api, task_id: str, method: str) -> None:
    body = {"status": "in_progress"} if method == "PATCH" else None
    expect_error(api.request(method, f"/api/tasks/{task_id}", json=body), 404)
