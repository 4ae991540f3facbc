"""PRD 2.1: sessions are created, read, listed, changed and deleted."""

from __future__ import annotations

import pytest

from api_harness.api import Api, expect, expect_error, is_uuid4, moment, unique


@pytest.mark.prd("2.1.a")
def test_2_1_a_a_session_is_created_with_an_id_of_its_own(api: Api) -> None:
    body = {"project_id": unique("project"), "machine_id": unique("machine")}
    session = expect(api.post("/api/sessions", json=body), 201)
    assert is_uuid4(session["session_id"])


@pytest.mark.prd("2.1.b")
def test_2_1_b_without_project_id_the_answer_is_a_validation_error(api: Api) -> None:
    answer = api.post("/api/sessions", json={"machine_id": unique("machine")})
    expect_error(answer, 400, fields=("project_id",))


@pytest.mark.prd("2.1.c")
def test_2_1_c_a_created_session_is_read_as_it_was_answered(api: Api) -> None:
    session = api.session(metadata={"vscode": "1.99"})
    assert expect(api.get(f"/api/sessions/{session['session_id']}"), 200) == session


@pytest.mark.prd("2.1.d")
def test_2_1_d_an_id_that_is_no_uuid_is_not_found(api: Api) -> None:
    expect_error(api.get("/api/sessions/invalid-uuid-123"), 404)


@pytest.mark.prd("2.1.e")
def test_2_1_e_the_list_is_filtered_by_status(api: Api) -> None:
    project = unique("project")
    active = [api.session(project_id=project)["session_id"] for _ in range(2)]
    api.session_in("completed", project_id=project)
    answer = api.get("/api/sessions", params={"status": "active", "project_id": project})
    found = expect(answer, 200)["sessions"]
    assert sorted(session["session_id"] for session in found) == sorted(active)
    everywhere = expect(api.get("/api/sessions", params={"status": "active", "limit": 100}), 200)["sessions"]
    assert {session["status"] for session in everywhere} == {"active"}


@pytest.mark.prd("2.1.f")
def test_2_1_f_completing_a_session_is_stored_and_refreshes_updated_at(api: Api) -> None:
    session = api.session()
    expect(api.patch(f"/api/sessions/{session['session_id']}", json={"status": "completed"}), 200)
    completed = api.read_session(session)
    assert completed["status"] == "completed"
    assert moment(completed["updated_at"]) > moment(session["updated_at"])


@pytest.mark.prd("2.1.g")
def test_2_1_g_a_deleted_session_is_not_found(api: Api) -> None:
    path = f"/api/sessions/{api.session()['session_id']}"
    deleted = api.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    expect_error(api.get(path), 404)
