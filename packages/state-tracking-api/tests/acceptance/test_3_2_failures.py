"""PRD 3.2: sessions that fail or fall silent are marked."""

from __future__ import annotations

import time

import pytest

from api_harness.api import Api, ago, expect, moment
from api_harness.server import wait_until
from api_harness.servers import Servers


@pytest.mark.prd("3.2.a")
def test_3_2_a_a_session_is_marked_failed(api: Api) -> None:
    session = api.session()
    expect(api.act(session, "mark-failed", {"error_message": "out of memory"}), 200)
    failed = api.read_session(session)
    assert failed["status"] == "failed"
    assert moment(failed["completed_at"]) >= moment(session["created_at"])


@pytest.mark.prd("3.2.b")
def test_3_2_b_the_tasks_in_progress_fail_with_their_session(api: Api) -> None:
    session = api.session()
    tasks = [api.task_in(session, "in_progress") for _ in range(2)]
    expect(api.act(session, "mark-failed", {"error_message": "out of memory"}), 200)
    assert [api.read_task(task)["status"] for task in tasks] == ["failed", "failed"]


@pytest.mark.prd("3.2.c")
def test_3_2_c_the_background_job_marks_a_session_silent_for_5_minutes(own: Servers) -> None:
    database = own.database()
    server = own.start(database, SCHEDULER="on", STALL_SCAN_INTERVAL_SECONDS="1")
    with Api(server.base_url, server.key) as api:
        silent, living = api.session(), api.session()
        database.sessions.update_one(
            {"session_id": silent["session_id"]}, {"$set": {"last_heartbeat": ago(minutes=5)}}
        )
        marked = wait_until(
            lambda: next((s for s in [api.read_session(silent)] if s["status"] == "stalled"), None),
            "the background job marks the session",
        )
        assert marked["completed_at"] is None
        assert api.read_session(living)["status"] == "active"


@pytest.mark.prd("3.2.d")
def test_3_2_d_a_session_marked_stalled_has_not_ended(api: Api) -> None:
    session = api.session()
    expect(api.act(session, "mark-stalled"), 200)
    stalled = api.read_session(session)
    assert (stalled["status"], stalled["completed_at"]) == ("stalled", None)


@pytest.mark.prd("3.2.e")
def test_3_2_e_a_scan_over_100_silent_sessions_takes_less_than_30_seconds(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        ids = {api.session()["session_id"] for _ in range(100)}
        database.sessions.update_many({}, {"$set": {"last_heartbeat": ago(minutes=10)}})
        begin = time.perf_counter()
        result = expect(api.post("/api/sessions/detect-failures"), 200)
        assert time.perf_counter() - begin < 30
    assert result["marked_stalled"] == 100
    assert set(result["session_ids"]) == ids
    assert database.sessions.count_documents({"status": "stalled"}) == 100


@pytest.mark.prd("3.2.f")
def test_3_2_f_a_failed_session_is_taken_off_its_machine(api: Api) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    assert api.read_machine(machine)["active_sessions"] == [session["session_id"]]
    expect(api.act(session, "mark-failed", {"error_message": "out of memory"}), 200)
    assert api.read_machine(machine)["active_sessions"] == []
