"""PRD 3.3: another session takes the work over."""

from __future__ import annotations

import pytest

from api_harness.api import Api, Json, expect, expect_error, moment, unique


def failed_session(api: Api, *task_statuses: str) -> tuple[Json, list[Json]]:
    """A failed session with a task in each of the statuses."""
    session = api.session()
    tasks = [api.task_in(session, status) for status in task_statuses]
    expect(api.act(session, "mark-failed", {"error_message": "power cut"}), 200)
    return session, tasks


@pytest.mark.prd("3.3.a")
def test_3_3_a_the_recovery_state_sorts_the_tasks_by_what_became_of_them(api: Api) -> None:
    session = api.session()
    first, last, failed, pending = (
        api.task_in(session, status) for status in ("completed", "completed", "failed", "pending")
    )
    state = expect(api.get(f"/api/sessions/{session['session_id']}/recovery-state"), 200)
    assert state["last_successful_task"]["task_id"] == last["task_id"] != first["task_id"]
    assert [task["task_id"] for task in state["failed_tasks"]] == [failed["task_id"]]
    assert [task["task_id"] for task in state["pending_tasks"]] == [pending["task_id"]]


@pytest.mark.prd("3.3.b")
def test_3_3_b_preparing_leaves_its_time_in_the_metadata(api: Api) -> None:
    session, _ = failed_session(api)
    expect(api.act(session, "prepare-recovery"), 200)
    prepared = api.read_session(session)["metadata"]["recovery_prepared_at"]
    assert moment(prepared) >= moment(session["created_at"])


@pytest.mark.prd("3.3.c")
def test_3_3_c_recovering_makes_a_new_active_session(api: Api) -> None:
    session, _ = failed_session(api)
    answer = api.act(session, "recover", {"new_machine_id": unique("machine")})
    successor = expect(answer, 201)
    assert successor["session_id"] != session["session_id"]
    assert successor["status"] == "active"


@pytest.mark.prd("3.3.d")
def test_3_3_d_the_recovered_session_is_completed_and_says_by_whom(api: Api) -> None:
    session, _ = failed_session(api)
    successor = expect(api.recover(session), 201)
    original = api.read_session(session)
    assert original["status"] == "completed"
    assert original["recovered_by"] == successor["session_id"]
    assert moment(original["metadata"]["recovered_at"]) >= moment(session["created_at"])


@pytest.mark.prd("3.3.e")
def test_3_3_e_failed_tasks_are_pending_again_in_the_new_session(api: Api) -> None:
    session, _ = failed_session(api, "failed", "failed")
    successor = expect(api.recover(session, reset_failed_tasks=True), 201)
    assert [task["status"] for task in api.tasks_of(successor)] == ["pending", "pending"]


@pytest.mark.prd("3.3.f")
def test_3_3_f_an_active_session_cannot_be_prepared(api: Api) -> None:
    session = api.session()
    expect_error(api.act(session, "prepare-recovery"), 400)
    assert "recovery_prepared_at" not in api.read_session(session)["metadata"]
