"""sessions: creation, the table of transitions, what else a PATCH may do, and deletion."""

from __future__ import annotations

import pytest

from api_harness.api import Api, Json, expect, expect_error, moment, same_but, unique

STATUSES = ("active", "paused", "stalled", "completed", "failed")
ENDED = ("completed", "failed")
LIVE = ("active", "paused", "stalled")
NOBODY = "a3bb189e-8bf9-4c4e-9b5d-1d1b3f1c7a10"


def path_of(session: Json) -> str:
    """The session's resource."""
    return f"/api/sessions/{session['session_id']}"


@pytest.mark.parametrize("after", STATUSES)
@pytest.mark.parametrize("before", STATUSES)
def test_a_session_changes_its_status_by_the_table(api: Api, before: str, after: str) -> None:
    session = api.session_in(before)
    answer = api.patch(path_of(session), json={"status": after})
    if before == after:
        assert expect(answer, 200) == session, "nothing changes"
    elif before in ENDED:
        expect_error(answer, 409)
        assert api.read_session(session) == session
    else:
        changed = expect(answer, 200)
        assert changed["status"] == after
        same_but(session, changed, "status", "updated_at", "completed_at", "last_heartbeat")
        assert (changed["completed_at"] is not None) == (after in ENDED)
        assert moment(changed["updated_at"]) >= moment(session["updated_at"])
        assert api.read_session(session) == changed


@pytest.mark.parametrize("status", ENDED)
def test_a_session_that_ends_is_taken_off_its_machine(api: Api, status: str) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"], docker_slot=1)
    other = api.session(machine_id=machine["machine_id"], docker_slot=2)
    api.set_session(session, status)
    assert api.read_machine(machine)["active_sessions"] == [other["session_id"]]
    api.session(machine_id=machine["machine_id"], docker_slot=1)


@pytest.mark.parametrize("status", ["paused", "stalled"])
def test_a_session_that_rests_stays_on_its_machine_and_keeps_its_slot(api: Api, status: str) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"], docker_slot=1)
    api.set_session(session, status)
    assert api.read_machine(machine)["active_sessions"] == [session["session_id"]]
    body = {"project_id": unique("project"), "machine_id": machine["machine_id"], "docker_slot": 1}
    expect_error(api.post("/api/sessions", json=body), 409)


def test_a_session_that_fails_fails_its_tasks_in_progress_only(api: Api) -> None:
    session = api.session()
    tasks = {
        status: api.task_in(session, status) for status in ("pending", "in_progress", "completed", "blocked")
    }
    api.set_session(session, "failed")
    running = api.read_task(tasks.pop("in_progress"))
    assert running["status"] == "failed"
    assert running["completed_at"]
    assert running["error_message"]
    assert {status: api.read_task(task)["status"] for status, task in tasks.items()} == {
        status: status for status in tasks
    }


def test_a_session_that_completes_leaves_its_tasks_alone(api: Api) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress")
    api.set_session(session, "completed")
    assert api.read_task(task) == task


def test_stalled_to_active_counts_as_a_heartbeat(api: Api) -> None:
    session = api.session_in("stalled")
    active = api.set_session(session, "active")
    assert moment(active["last_heartbeat"]) > moment(session["last_heartbeat"])
    assert active["last_heartbeat"] == active["updated_at"]


@pytest.mark.parametrize("status", ["paused", "completed", "failed"])
def test_other_transitions_are_no_heartbeat(api: Api, status: str) -> None:
    session = api.session()
    assert api.set_session(session, status)["last_heartbeat"] == session["last_heartbeat"]


@pytest.mark.parametrize("status", ["paused", "stalled"])
def test_active_is_refused_while_another_active_session_has_the_place(api: Api, status: str) -> None:
    resting = api.session_in(status)
    place = {name: resting[name] for name in ("project_id", "machine_id")}
    other = api.session(**place)
    refusal = expect_error(api.patch(path_of(resting), json={"status": "active"}), 409)
    assert refusal["existing_session_id"] == other["session_id"]
    assert api.read_session(resting) == resting
    api.set_session(other, "completed")
    assert api.set_session(resting, "active")["status"] == "active"


def test_a_heartbeat_does_not_revive_a_stalled_session_whose_place_is_taken(api: Api) -> None:
    stalled = api.session_in("stalled")
    other = api.session(**{name: stalled[name] for name in ("project_id", "machine_id")})
    refusal = expect_error(api.act(stalled, "heartbeat"), 409)
    assert refusal["existing_session_id"] == other["session_id"]
    assert api.read_session(stalled)["status"] == "stalled"


@pytest.mark.parametrize("status", ENDED)
def test_metadata_alone_may_be_added_to_an_ended_session(api: Api, status: str) -> None:
    session = api.session_in(status, metadata={"a": 1})
    patched = expect(api.patch(path_of(session), json={"metadata": {"evidence": "late"}}), 200)
    assert patched["metadata"] == {"a": 1, "evidence": "late"}
    same_but(session, patched, "metadata", "updated_at")


@pytest.mark.parametrize("status", ENDED)
@pytest.mark.parametrize("current_task_id", ["task-1", None])
def test_the_current_task_of_an_ended_session_is_not_changed(
    api: Api, status: str, current_task_id: str | None
) -> None:
    session = api.session_in(status)
    body = {"current_task_id": current_task_id, "metadata": {"evidence": "late"}}
    expect_error(api.patch(path_of(session), json=body), 409)
    assert api.read_session(session) == session


def test_the_current_task_is_set_kept_and_cleared(api: Api) -> None:
    session = api.session()
    path = path_of(session)
    assert expect(api.patch(path, json={"current_task_id": "task-1"}), 200)["current_task_id"] == "task-1"
    kept = expect(api.patch(path, json={"metadata": {"a": 1}}), 200)
    assert kept["current_task_id"] == "task-1"
    assert expect(api.post(f"{path}/heartbeat"), 200)["current_task_id"] == "task-1"
    assert expect(api.patch(path, json={"current_task_id": None}), 200)["current_task_id"] is None
    expect(api.act(session, "heartbeat", {"current_task_id": "task-2"}), 200)
    assert expect(api.act(session, "heartbeat", {"current_task_id": None}), 200)["current_task_id"] is None


def test_null_for_status_or_metadata_in_a_patch_means_absent(api: Api) -> None:
    session = api.session(metadata={"a": 1})
    body = {"status": None, "metadata": None, "current_task_id": "task-1"}
    patched = expect(api.patch(path_of(session), json=body), 200)
    assert (patched["status"], patched["metadata"], patched["current_task_id"]) == (
        "active",
        {"a": 1},
        "task-1",
    )


@pytest.mark.parametrize("content", [b"", b"{}", b'{"status": null}', b'{"metadata": null, "status": null}'])
def test_an_empty_patch_is_refused(api: Api, content: bytes) -> None:
    session = api.session()
    headers = {"content-type": "application/json"}
    expect_error(api.patch(path_of(session), content=content, headers=headers), 400)
    assert api.read_session(session) == session


@pytest.mark.parametrize(
    "field", ["session_id", "project_id", "machine_id", "docker_slot", "completed_at", "recovered_by", "x"]
)
def test_a_patch_changes_nothing_but_status_task_and_metadata(api: Api, field: str) -> None:
    session = api.session()
    answer = api.patch(path_of(session), json={field: "x", "status": "paused"})
    expect_error(answer, 400, fields=(field,))
    assert api.read_session(session) == session


@pytest.mark.parametrize(
    "body",
    [
        {"status": "unknown"},
        {"status": 1},
        {"status": {"$ne": "x"}},
        {"current_task_id": 5},
        {"current_task_id": ["x"]},
        {"current_task_id": {"$unset": 1}},
        {"metadata": "x"},
    ],
    ids=str,
)
def test_a_wrong_value_in_a_patch_is_named(api: Api, body: Json) -> None:
    session = api.session()
    expect_error(api.patch(path_of(session), json=body), 400, fields=tuple(body))
    assert api.read_session(session) == session


def test_a_second_active_session_of_a_project_on_a_machine_is_refused(api: Api) -> None:
    session = api.session()
    place = {name: session[name] for name in ("project_id", "machine_id")}
    refusal = expect_error(api.post("/api/sessions", json=place), 409)
    assert refusal["existing_session_id"] == session["session_id"]
    api.session(project_id=session["project_id"])
    api.session(machine_id=session["machine_id"])
    api.set_session(session, "completed")
    api.session(**place)


@pytest.mark.parametrize("status", ["paused", "stalled", "completed", "failed"])
def test_only_an_active_session_holds_the_place(api: Api, status: str) -> None:
    session = api.session_in(status)
    api.session(**{name: session[name] for name in ("project_id", "machine_id")})


def test_a_docker_slot_is_held_whether_or_not_the_machine_is_registered(api: Api) -> None:
    machine_id = unique("machine")
    holder = api.session(machine_id=machine_id, docker_slot=0)
    body = {"project_id": unique("project"), "machine_id": machine_id, "docker_slot": 0}
    expect_error(api.post("/api/sessions", json=body), 409)
    api.session(machine_id=machine_id, docker_slot=1)
    api.session(docker_slot=0)
    expect(api.delete(path_of(holder)), 204)
    api.session(machine_id=machine_id, docker_slot=0)


def test_the_slot_must_be_one_of_a_registered_machine(api: Api) -> None:
    machine = api.machine(docker_slots=[1, 2])
    body = {"project_id": unique("project"), "machine_id": machine["machine_id"], "docker_slot": 3}
    expect_error(api.post("/api/sessions", json=body), 400, fields=("docker_slot",))
    assert api.read_machine(machine)["active_sessions"] == []
    assert api.session(machine_id=machine["machine_id"])["docker_slot"] is None


def test_a_machine_in_maintenance_takes_no_session_an_offline_one_does(api: Api) -> None:
    machine = api.machine()
    path = f"/api/machines/{machine['machine_id']}"
    body = {"project_id": unique("project"), "machine_id": machine["machine_id"]}
    expect(api.patch(path, json={"status": "maintenance"}), 200)
    expect_error(api.post("/api/sessions", json=body), 409)
    assert api.read_machine(machine)["active_sessions"] == []
    expect(api.patch(path, json={"status": "offline"}), 200)
    session = api.session(**body)
    assert api.read_machine(machine)["active_sessions"] == [session["session_id"]]


def test_a_machine_registered_later_shows_the_sessions_that_it_already_has(api: Api) -> None:
    machine_id = unique("machine")
    live = [api.session_in(status, machine_id=machine_id)["session_id"] for status in LIVE]
    api.session_in("completed", machine_id=machine_id)
    machine = api.machine(machine_id=machine_id)
    assert sorted(machine["active_sessions"]) == sorted(live)


@pytest.mark.parametrize("status", STATUSES)
def test_a_deleted_session_takes_its_tasks_and_its_place_with_it(api: Api, status: str) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    tasks = [api.task_in(session, state) for state in ("pending", "in_progress", "completed")]
    if status != "active":
        api.set_session(session, status)
    deleted = api.delete(path_of(session))
    assert (deleted.status_code, deleted.content) == (204, b"")
    for task in tasks:
        expect_error(api.get(f"/api/tasks/{task['task_id']}"), 404)
    assert api.read_machine(machine)["active_sessions"] == []
    expect_error(api.delete(path_of(session)), 404)


ACTIONS = [
    ("GET", "", None),
    ("PATCH", "", {"status": "paused"}),
    ("DELETE", "", None),
    ("GET", "/health", None),
    ("GET", "/recovery-state", None),
    ("POST", "/heartbeat", None),
    ("POST", "/mark-failed", {"error_message": "x"}),
    ("POST", "/mark-stalled", None),
    ("POST", "/prepare-recovery", None),
    ("POST", "/recover", {"new_machine_id": "m"}),
    ("POST", "/archive", None),
]


@pytest.mark.parametrize(
    "session_id",
    [NOBODY, "invalid-uuid-123", "x", "%00", "$ne", "a" * 300, NOBODY[:-1], NOBODY.replace("-", "")],
)
@pytest.mark.parametrize(("method", "action", "body"), ACTIONS, ids=str)
def test_a_session_that_does_not_exist_is_not_found(
    api: Api, session_id: str, method: str, action: str, body: Json | None
) -> None:
    answer = api.request(method, f"/api/sessions/{session_id}{action}", json=body)
    expect_error(answer, 404)
