"""Heartbeats, marks, detection and the health of sessions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, moment, same_but, unique
from api_harness.servers import Documents, Servers

ENDED = ("completed", "failed")


def path_of(session: Json) -> str:
    """The session's resource."""
    return f"/api/sessions/{session['session_id']}"


def silence(database: Documents, session: Json, **since: float) -> None:
    """Set the session's last heartbeat back by `timedelta(**since)`."""
    query = {"session_id": session["session_id"]}
    assert database.sessions.update_one(query, {"$set": {"last_heartbeat": ago(**since)}}).modified_count == 1


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"metadata": null}'])
def test_the_body_of_a_heartbeat_is_optional(api: Api, content: bytes | None) -> None:
    session = api.session()
    headers = {"content-type": "application/json"} if content else {}
    beaten = expect(api.post(f"{path_of(session)}/heartbeat", content=content, headers=headers), 200)
    same_but(session, beaten, "last_heartbeat", "updated_at")
    assert moment(beaten["last_heartbeat"]) >= moment(session["last_heartbeat"])
    assert api.read_session(session) == beaten


@pytest.mark.parametrize(
    "body", [{"x": 1}, {"status": "active"}, {"current_task_id": 1}, {"metadata": []}], ids=str
)
def test_a_wrong_field_in_a_heartbeat_is_named(api: Api, body: Json) -> None:
    session = api.session()
    expect_error(api.act(session, "heartbeat", body), 400, fields=tuple(body))
    assert api.read_session(session) == session


@pytest.mark.parametrize(("before", "after"), [("active", "active"), ("stalled", "active"), ("paused",) * 2])
def test_a_heartbeat_revives_a_stalled_session_and_leaves_a_paused_one(
    api: Api, before: str, after: str
) -> None:
    session = api.session_in(before)
    assert expect(api.act(session, "heartbeat"), 200)["status"] == after


@pytest.mark.parametrize("status", ENDED)
def test_a_heartbeat_of_an_ended_session_is_refused_and_changes_nothing(api: Api, status: str) -> None:
    session = api.session_in(status)
    refusal = expect_error(api.act(session, "heartbeat", {"metadata": {"a": 1}}), 409)
    assert refusal.get("recovered_by") is None
    assert api.read_session(session) == session


def test_a_heartbeat_of_a_session_that_was_taken_over_names_its_successor(api: Api) -> None:
    session = api.session_in("stalled")
    successor = expect(api.recover(session), 201)
    refusal = expect_error(api.act(session, "heartbeat"), 409)
    assert refusal["recovered_by"] == successor["session_id"]
    refusal = expect_error(api.patch(path_of(session), json={"status": "active"}), 409)
    assert refusal["recovered_by"] == successor["session_id"]


def test_mark_failed_keeps_message_and_metadata_and_names_it_in_the_tasks(api: Api) -> None:
    session = api.session(metadata={"a": 1, "b": {"c": 1}})
    running, pending = api.task_in(session, "in_progress"), api.task(session)
    body = {"error_message": "host lost power", "metadata": {"b": {"d": 2}, "a": None}}
    failed = expect(api.act(session, "mark-failed", body), 200)
    assert failed["status"] == "failed"
    assert failed["metadata"] == {"b": {"c": 1, "d": 2}, "error_message": "host lost power"}
    assert failed["completed_at"] == failed["updated_at"]
    assert failed["current_task_id"] is None
    assert api.read_session(session) == failed
    task = api.read_task(running)
    assert task["status"] == "failed"
    assert task["completed_at"] == failed["completed_at"]
    assert "host lost power" in task["error_message"]
    assert api.read_task(pending) == pending


def test_mark_failed_again_changes_nothing(api: Api) -> None:
    session = api.session()
    failed = expect(api.act(session, "mark-failed", {"error_message": "first"}), 200)
    again = expect(api.act(session, "mark-failed", {"error_message": "second", "metadata": {"a": 1}}), 200)
    assert again == failed == api.read_session(session)


def test_a_completed_session_cannot_be_marked_failed(api: Api) -> None:
    session = api.session_in("completed")
    expect_error(api.act(session, "mark-failed", {"error_message": "late"}), 409)
    assert api.read_session(session) == session


@pytest.mark.parametrize("status", ["paused", "stalled"])
def test_a_resting_session_can_be_marked_failed(api: Api, status: str) -> None:
    session = api.session_in(status)
    assert expect(api.act(session, "mark-failed", {"error_message": "x"}), 200)["status"] == "failed"


@pytest.mark.parametrize(
    "body", [None, {}, {"error_message": ""}, {"error_message": None}, {"error_message": 1}], ids=str
)
def test_mark_failed_needs_a_message(api: Api, body: Json | None) -> None:
    session = api.session()
    expect_error(api.act(session, "mark-failed", body), 400)
    assert api.read_session(session) == session


@pytest.mark.parametrize("status", ["active", "paused", "stalled"])
def test_mark_stalled_ends_nothing(api: Api, status: str) -> None:
    session = api.session_in(status)
    stalled = expect(api.act(session, "mark-stalled"), 200)
    assert (stalled["status"], stalled["completed_at"]) == ("stalled", None)
    same_but(session, stalled, "status", "updated_at")


@pytest.mark.parametrize("status", ENDED)
def test_an_ended_session_cannot_be_marked_stalled(api: Api, status: str) -> None:
    session = api.session_in(status)
    expect_error(api.act(session, "mark-stalled"), 409)
    assert api.read_session(session) == session


def test_detection_marks_silent_active_sessions_and_no_others(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        silent, living = api.session(), api.session()
        others = [api.session_in(status) for status in ("paused", "stalled", "completed", "failed")]
        for session in (silent, *others):
            silence(database, session, minutes=4)
        result = expect(api.post("/api/sessions/detect-failures"), 200)
        assert result.keys() == {"marked_stalled", "session_ids", "duration_ms"}
        assert (result["marked_stalled"], result["session_ids"]) == (1, [silent["session_id"]])
        assert result["duration_ms"] >= 0
        assert api.read_session(silent)["status"] == "stalled"
        assert api.read_session(living)["status"] == "active"
        for session in others:
            assert api.read_session(session)["status"] == session["status"]
        again = expect(api.post("/api/sessions/detect-failures"), 200)
        assert (again["marked_stalled"], again["session_ids"]) == (0, [])
        line = server.line_where(
            lambda line: silent["session_id"] in str(line) and "stalled" in str(line).lower(), "the mark"
        )
        assert silent["project_id"] in str(line)
        assert silent["machine_id"] in str(line)


def test_the_summary_counts_a_silent_active_session_as_stalled_before_any_scan(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        assert all(
            value == 0
            for name, value in expect(api.get("/api/sessions/health"), 200).items()
            if name.endswith("_sessions")
        )
        silent = api.session()
        for status in ("active", "paused", "stalled", "completed", "failed"):
            api.session_in(status)
        silence(database, silent, minutes=4)
        summary = expect(api.get("/api/sessions/health"), 200)
        assert abs(moment(summary.pop("last_updated")) - datetime.now(UTC)) < timedelta(seconds=10)
        assert summary == {
            "total_sessions": 6,
            "active_sessions": 1,
            "paused_sessions": 1,
            "stalled_sessions": 2,
            "failed_sessions": 1,
            "completed_sessions": 1,
            "suspected_outage": False,
        }


def test_stalled_sessions_are_listed_longest_silent_first(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        empty = expect(api.get("/api/sessions/stalled"), 200)
        assert empty == {"stalled_sessions": [], "stall_threshold_ms": 180000}
        marked, silent, oldest = api.session_in("stalled"), api.session(), api.session_in("stalled")
        api.session()
        paused = api.session_in("paused")
        for session, minutes in ((marked, 5), (silent, 7), (oldest, 9), (paused, 60)):
            silence(database, session, minutes=minutes)
        found = expect(api.get("/api/sessions/stalled"), 200)["stalled_sessions"]
        assert [session["session_id"] for session in found] == [
            session["session_id"] for session in (oldest, silent, marked)
        ]
        first = found[0]
        assert first.keys() == {
            "session_id",
            "project_id",
            "machine_id",
            "last_heartbeat",
            "time_since_heartbeat_ms",
        }
        since = (datetime.now(UTC) - moment(first["last_heartbeat"])) / timedelta(milliseconds=1)
        assert since - 10_000 < first["time_since_heartbeat_ms"] <= since
        assert (first["project_id"], first["machine_id"]) == (oldest["project_id"], oldest["machine_id"])


@pytest.mark.parametrize(
    ("status", "minutes", "verdict"),
    [
        ("active", 0, {"is_healthy": True, "is_stalled": False}),
        ("active", 4, {"is_healthy": False, "is_stalled": True}),
        ("paused", 0, {"is_healthy": False, "is_stalled": False}),
        ("paused", 4, {"is_healthy": False, "is_stalled": False}),
        ("stalled", 0, {"is_healthy": False, "is_stalled": True}),
        ("stalled", 4, {"is_healthy": False, "is_stalled": True}),
        ("completed", 0, {"is_healthy": False, "is_stalled": False}),
        ("failed", 4, {"is_healthy": False, "is_stalled": False}),
    ],
)
def test_the_health_of_a_session(
    api: Api, database: Documents, status: str, minutes: int, verdict: dict[str, bool]
) -> None:
    session = api.session_in(status)
    if minutes:
        silence(database, session, minutes=minutes)
    health = expect(api.get(f"{path_of(session)}/health"), 200)
    since = health.pop("time_since_heartbeat_ms")
    assert minutes * 60_000 <= since < minutes * 60_000 + 60_000
    assert (
        health
        == {
            "session_id": session["session_id"],
            "status": status,
            "last_heartbeat": api.read_session(session)["last_heartbeat"],
            "stall_threshold_ms": 180000,
        }
        | verdict
    )


def test_a_session_whose_assignment_was_cleared_is_fenced_off(api: Api) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"], docker_slot=1)
    api.set_session(session, "stalled")
    expect(api.act(session, "prepare-recovery", {"clear_machine_assignment": True}), 200)
    fenced = api.read_session(session)
    expect_error(api.act(session, "heartbeat"), 409)
    assert api.read_session(session) == fenced
    assert fenced["machine_id"] == machine["machine_id"], "it stays as history"
    assert api.read_machine(machine)["active_sessions"] == []
    api.session(machine_id=machine["machine_id"], docker_slot=1)


def test_a_fenced_session_takes_no_current_task_but_late_evidence(api: Api) -> None:
    session = api.session_in("stalled")
    expect(api.act(session, "prepare-recovery", {"clear_machine_assignment": True}), 200)
    path = f"/api/sessions/{session['session_id']}"
    for body in ({"current_task_id": "t"}, {"current_task_id": "t", "status": "stalled"}):
        expect_error(api.patch(path, json=body), 409, says="being recovered")
    assert expect(api.patch(path, json={"metadata": {"late": 1}}), 200)["metadata"]["late"] == 1
    assert api.read_session(session)["current_task_id"] is None


def test_a_session_that_was_prepared_without_clearing_is_not_fenced_off(api: Api) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"], docker_slot=1)
    api.set_session(session, "stalled")
    for body in (None, {}, {"clear_machine_assignment": False}):
        expect(api.act(session, "prepare-recovery", body), 200)
    assert api.read_machine(machine)["active_sessions"] == [session["session_id"]]
    taken = {"project_id": unique("project"), "machine_id": machine["machine_id"], "docker_slot": 1}
    expect_error(api.post("/api/sessions", json=taken), 409)
    assert expect(api.act(session, "heartbeat"), 200)["status"] == "active"


def test_a_fenced_session_does_not_come_back_to_its_machine_by_the_machines_heartbeat(api: Api) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    api.set_session(session, "stalled")
    expect(api.act(session, "prepare-recovery", {"clear_machine_assignment": True}), 200)
    beaten = expect(api.post(f"/api/machines/{machine['machine_id']}/heartbeat"), 200)
    assert beaten["active_sessions"] == []
    body = {name: machine[name] for name in ("machine_id", "hostname", "docker_slots")}
    assert expect(api.post("/api/machines", json=body), 200)["active_sessions"] == []
