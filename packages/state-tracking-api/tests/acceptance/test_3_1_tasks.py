"""PRD 3.1: tasks and their progress."""

from __future__ import annotations

import pytest

from api_harness.api import Api, expect, expect_error, is_uuid4, moment, unique


@pytest.mark.prd("3.1.a")
def test_3_1_a_a_new_task_is_pending(api: Api) -> None:
    session = api.session()
    body = {"session_id": session["session_id"], "project_id": session["project_id"], "task_name": "Write"}
    task = expect(api.post("/api/tasks", json=body), 201)
    assert is_uuid4(task["task_id"])
    assert task["status"] == "pending"


@pytest.mark.prd("3.1.b")
def test_3_1_b_a_task_of_no_session_is_refused(api: Api) -> None:
    body = {"session_id": "invalid-uuid", "project_id": unique("project"), "task_name": "Write"}
    expect_error(api.post("/api/tasks", json=body), 400, fields=("session_id",))


@pytest.mark.prd("3.1.c")
def test_3_1_c_a_task_in_progress_has_started(api: Api) -> None:
    task = api.task(api.session())
    api.set_task(task, "in_progress")
    assert moment(api.read_task(task)["started_at"]) >= moment(task["created_at"])


@pytest.mark.prd("3.1.d")
def test_3_1_d_a_completed_task_has_its_time(api: Api) -> None:
    task = api.task_in(api.session(), "in_progress")
    api.set_task(task, "completed")
    read = api.read_task(task)
    assert moment(read["completed_at"]) >= moment(read["started_at"])


@pytest.mark.prd("3.1.e")
def test_3_1_e_the_session_names_the_task_in_progress(api: Api) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress")
    assert api.read_session(session)["current_task_id"] == task["task_id"]


@pytest.mark.prd("3.1.f")
def test_3_1_f_the_list_is_filtered_by_session(api: Api) -> None:
    one, other = api.session(), api.session()
    expected = [api.task(one)["task_id"] for _ in range(2)]
    api.task(other)
    found = expect(api.get("/api/tasks", params={"session_id": one["session_id"]}), 200)["tasks"]
    assert sorted(task["task_id"] for task in found) == sorted(expected)


@pytest.mark.prd("3.1.g")
def test_3_1_g_a_task_cannot_fail_without_an_error_message(api: Api) -> None:
    task = api.task_in(api.session(), "in_progress")
    answer = api.patch(f"/api/tasks/{task['task_id']}", json={"status": "failed"})
    expect_error(answer, 400, fields=("error_message",))
    assert api.read_task(task)["status"] == "in_progress"
