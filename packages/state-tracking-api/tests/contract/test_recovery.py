"""Recovery state, preparation, recovery, archive and cleanup."""

from __future__ import annotations

import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, moment, same_but, unique, uuid4
from api_harness.servers import Documents, Servers

TASK_STATUSES = ("pending", "in_progress", "completed", "failed", "blocked")


def orchestration(api: Api, **fields: object) -> tuple[Json, dict[str, Json]]:
    """A stalled session with a task in every status, each with an issue and metadata; the tasks by status."""
    session = api.session(**fields)
    tasks = {
        status: api.task_in(
            session, status, task_name=f"Do {status}", github_issue_id=f"#{status}", metadata={"n": status}
        )
        for status in TASK_STATUSES
    }
    return api.set_session(session, "stalled"), tasks


def test_the_recovery_state_of_a_new_session_is_empty(api: Api) -> None:
    session = api.session(metadata={"a": 1})
    state = expect(api.get(f"/api/sessions/{session['session_id']}/recovery-state"), 200)
    assert state == {
        "session_id": session["session_id"],
        "project_id": session["project_id"],
        "last_successful_task": None,
        "failed_tasks": [],
        "pending_tasks": [],
        "in_progress_tasks": [],
        "blocked_tasks": [],
        "completed_tasks": [],
        "last_heartbeat": session["last_heartbeat"],
        "metadata": {"a": 1},
    }


def test_the_recovery_state_has_whole_tasks_by_status(api: Api) -> None:
    session, tasks = orchestration(api)
    state = expect(api.get(f"/api/sessions/{session['session_id']}/recovery-state"), 200)
    assert {status: state[f"{status}_tasks"] for status in TASK_STATUSES} == {
        status: [tasks[status]] for status in TASK_STATUSES
    }
    assert state["last_successful_task"] == tasks["completed"]


@pytest.mark.parametrize("status", ["stalled", "failed"])
def test_preparing_answers_with_the_recovery_state_and_leaves_its_time(api: Api, status: str) -> None:
    session = api.session_in(status)
    state = expect(api.act(session, "prepare-recovery"), 200)
    assert state == expect(api.get(f"/api/sessions/{session['session_id']}/recovery-state"), 200)
    prepared = api.read_session(session)
    assert moment(prepared["metadata"]["recovery_prepared_at"]) >= moment(session["updated_at"])
    same_but(session, prepared, "metadata", "updated_at")


@pytest.mark.parametrize("status", ["active", "paused", "completed"])
@pytest.mark.parametrize(
    ("action", "body"), [("prepare-recovery", None), ("recover", {"new_machine_id": "elsewhere"})]
)
def test_only_a_failed_or_stalled_session_is_prepared_or_recovered(
    api: Api, status: str, action: str, body: Json | None
) -> None:
    session = api.session_in(status)
    expect_error(api.act(session, action, body), 400)
    assert api.read_session(session) == session


@pytest.mark.parametrize(
    "body", [{"clear_machine_assignment": "yes"}, {"clear_machine_assignment": 1}, {"x": 1}]
)
def test_a_wrong_field_of_prepare_recovery_is_named(api: Api, body: Json) -> None:
    session = api.session_in("stalled")
    expect_error(api.act(session, "prepare-recovery", body), 400, fields=tuple(body))
    assert api.read_session(session) == session


@pytest.mark.parametrize(
    "body",
    [
        {"new_machine_id": None},
        {"new_machine_id": ""},
        {"new_machine_id": 1},
        {"docker_slot": "1"},
        {"docker_slot": True},
        {"docker_slot": 1.0},
        {"docker_slot": -1},
        {"reset_failed_tasks": "true"},
        {"reset_failed_tasks": 1},
        {"carry_open_tasks": 0},
        {"x": 1},
    ],
    ids=str,
)
def test_a_wrong_field_of_recover_is_named(api: Api, body: Json) -> None:
    session = api.session_in("stalled")
    answer = api.act(session, "recover", {"new_machine_id": "elsewhere"} | body)
    expect_error(answer, 400, fields=tuple(body))
    expect_error(api.act(session, "recover"), 400)
    expect_error(api.act(session, "recover", {}), 400, fields=("new_machine_id",))
    assert api.read_session(session) == session


def test_recovering_carries_the_work_that_was_not_done(api: Api) -> None:
    session, tasks = orchestration(api)
    successor = expect(api.recover(session, docker_slot=3), 201)
    carried = {task["metadata"]["recovered_from_task"]: task for task in api.tasks_of(successor)}
    expected = {status: tasks[status] for status in ("pending", "in_progress", "blocked", "failed")}
    assert carried.keys() == {task["task_id"] for task in expected.values()}
    for old in expected.values():
        new = carried[old["task_id"]]
        assert new["status"] == "pending"
        for name in ("task_name", "github_issue_id", "project_id"):
            assert new[name] == old[name]
        assert new["metadata"] == old["metadata"] | {"recovered_from_task": old["task_id"]}
        assert [new[name] for name in ("started_at", "completed_at", "error_message")] == [None] * 3
        assert api.read_task(old)["metadata"] == old["metadata"] | {"carried_to": new["task_id"]}


def test_the_carried_tasks_keep_the_order_of_their_creation(api: Api) -> None:
    session = api.session()
    names = [f"step {number}" for number in range(6)]
    for name in names:
        api.task(session, task_name=name)
    api.set_session(session, "stalled")
    successor = expect(api.recover(session), 201)
    assert [task["task_name"] for task in reversed(api.tasks_of(successor))] == names


def test_the_original_is_completed_and_its_running_tasks_say_where_they_continue(api: Api) -> None:
    session, tasks = orchestration(api)
    successor = expect(api.recover(session), 201)
    original = api.read_session(session)
    assert original["status"] == "completed"
    assert original["completed_at"] == successor["created_at"]
    assert original["recovered_by"] == successor["session_id"]
    assert moment(original["metadata"]["recovered_at"]) == moment(successor["created_at"])
    assert original["current_task_id"] is None
    interrupted = api.read_task(tasks["in_progress"])
    assert interrupted["status"] == "failed"
    assert interrupted["completed_at"] == original["completed_at"]
    assert successor["session_id"] in interrupted["error_message"]
    for status in ("pending", "blocked", "failed"):
        same_but(tasks[status], api.read_task(tasks[status]), "metadata", "updated_at")
    assert api.read_task(tasks["completed"]) == tasks["completed"]


def test_the_successor_is_an_active_session_of_the_same_project_elsewhere(api: Api) -> None:
    session = api.session_in("stalled", docker_slot=0, metadata={"branch": "main", "nested": {"a": [1]}})
    machine_id = unique("machine")
    successor = expect(api.recover(session, new_machine_id=machine_id, docker_slot=4), 201)
    assert successor.keys() == session.keys()
    assert (successor["status"], successor["project_id"]) == ("active", session["project_id"])
    assert (successor["machine_id"], successor["docker_slot"]) == (machine_id, 4)
    assert (successor["recovered_from"], successor["recovered_by"]) == (session["session_id"], None)
    assert successor["metadata"] == {"branch": "main", "nested": {"a": [1]}}
    assert successor["current_task_id"] is None
    assert successor["completed_at"] is None
    assert successor["started_at"] == successor["created_at"] == successor["last_heartbeat"]
    assert api.read_session(successor) == successor


def test_the_successor_has_none_of_the_servers_own_keys(api: Api) -> None:
    session = api.session(metadata={"kept": True})
    expect(api.act(session, "mark-failed", {"error_message": "x"}), 200)
    expect(api.act(session, "prepare-recovery"), 200)
    expect(api.act(session, "archive"), 200)
    assert expect(api.recover(session), 201)["metadata"] == {"kept": True}


def test_a_task_that_is_carried_twice_points_at_the_task_before(api: Api) -> None:
    first = api.session()
    task = api.task(first, metadata={"n": 1})
    api.set_session(first, "stalled")
    second = expect(api.recover(first), 201)
    [again] = api.tasks_of(second)
    api.set_session(second, "stalled")
    third = expect(api.recover(second), 201)
    [last] = api.tasks_of(third)
    assert last["metadata"] == {"n": 1, "recovered_from_task": again["task_id"]}
    assert again["metadata"] == {"n": 1, "recovered_from_task": task["task_id"]}


@pytest.mark.parametrize(
    ("reset_failed_tasks", "carry_open_tasks", "carried"),
    [
        (True, True, {"pending", "in_progress", "blocked", "failed"}),
        (False, True, {"pending", "in_progress", "blocked"}),
        (True, False, {"failed"}),
        (False, False, set[str]()),
        (None, None, {"pending", "in_progress", "blocked", "failed"}),
    ],
)
def test_the_caller_chooses_what_is_carried(
    api: Api, reset_failed_tasks: bool | None, carry_open_tasks: bool | None, carried: set[str]
) -> None:
    session, tasks = orchestration(api)
    choice = {"reset_failed_tasks": reset_failed_tasks, "carry_open_tasks": carry_open_tasks}
    successor = expect(api.recover(session, **choice), 201)
    assert {task["task_name"] for task in api.tasks_of(successor)} == {f"Do {status}" for status in carried}
    pointing = {status for status, task in tasks.items() if "carried_to" in api.read_task(task)["metadata"]}
    assert pointing == carried
    assert api.read_task(tasks["in_progress"])["status"] == "failed"


def test_a_task_that_failed_with_its_session_is_a_failed_one(api: Api) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress")
    expect(api.act(session, "mark-failed", {"error_message": "x"}), 200)
    successor = expect(api.recover(session, carry_open_tasks=False), 201)
    [again] = api.tasks_of(successor)
    assert again["metadata"]["recovered_from_task"] == task["task_id"]


def test_recovering_again_answers_with_the_same_successor(api: Api) -> None:
    session, _ = orchestration(api)
    successor = expect(api.recover(session), 201)
    tasks = api.tasks_of(successor)
    assert expect(api.recover(session), 200) == successor
    assert expect(api.recover(session, reset_failed_tasks=False, docker_slot=9), 200) == successor
    ended = api.set_session(successor, "completed")
    assert expect(api.recover(session), 200) == ended
    assert api.tasks_of(successor) == tasks


def test_a_deleted_successor_is_not_made_again(api: Api) -> None:
    session = api.session_in("stalled")
    successor = expect(api.recover(session), 201)
    expect(api.delete(f"/api/sessions/{successor['session_id']}"), 204)
    original = api.read_session(session)
    expect_error(api.recover(session), 409)
    assert api.read_session(session) == original


@pytest.mark.parametrize("state", ["offline", "maintenance"])
def test_a_machine_that_is_away_takes_no_successor(api: Api, state: str) -> None:
    machine = api.machine()
    expect(api.patch(f"/api/machines/{machine['machine_id']}", json={"status": state}), 200)
    session, tasks = orchestration(api)
    expect_error(api.recover(session, new_machine_id=machine["machine_id"]), 409)
    assert api.read_session(session) == session
    assert [api.read_task(task) for task in tasks.values()] == list(tasks.values())
    assert api.read_machine(machine)["active_sessions"] == []


def test_recovering_moves_the_session_from_machine_to_machine(api: Api) -> None:
    old, new = api.machine(), api.machine()
    session = api.session_in("stalled", machine_id=old["machine_id"], docker_slot=1)
    successor = expect(api.recover(session, new_machine_id=new["machine_id"], docker_slot=2), 201)
    assert api.read_machine(old)["active_sessions"] == []
    assert api.read_machine(new)["active_sessions"] == [successor["session_id"]]
    api.session(machine_id=old["machine_id"], docker_slot=1)


def test_a_session_is_recovered_in_its_own_place(api: Api) -> None:
    machine = api.machine()
    session = api.session_in("stalled", machine_id=machine["machine_id"], docker_slot=1)
    successor = expect(api.recover(session, new_machine_id=machine["machine_id"], docker_slot=1), 201)
    assert api.read_machine(machine)["active_sessions"] == [successor["session_id"]]


def test_the_successors_slot_must_be_free_and_one_of_the_machines(api: Api) -> None:
    machine = api.machine(docker_slots=[1])
    session, tasks = orchestration(api)
    where = {"new_machine_id": machine["machine_id"]}
    expect_error(api.recover(session, **where, docker_slot=5), 400, fields=("docker_slot",))
    holder = api.session(machine_id=machine["machine_id"], docker_slot=1)
    expect_error(api.recover(session, **where, docker_slot=1), 409)
    assert api.read_session(session) == session
    assert [api.read_task(task) for task in tasks.values()] == list(tasks.values())
    assert api.read_machine(machine)["active_sessions"] == [holder["session_id"]]


def test_the_successors_place_must_be_free(api: Api) -> None:
    session = api.session_in("stalled")
    holder = api.session(project_id=session["project_id"])
    refusal = expect_error(api.recover(session, new_machine_id=holder["machine_id"]), 409)
    assert refusal["existing_session_id"] == holder["session_id"]
    assert api.read_session(session) == session


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_archiving_marks_an_ended_session_once(api: Api, status: str) -> None:
    session = api.session_in(status)
    archived = expect(api.act(session, "archive"), 200)
    assert archived["metadata"]["archived"] is True
    assert moment(archived["metadata"]["archived_at"]) >= moment(session["completed_at"])
    assert expect(api.act(session, "archive"), 200) == archived == api.read_session(session)


@pytest.mark.parametrize("status", ["active", "paused", "stalled"])
def test_a_live_session_is_not_archived(api: Api, status: str) -> None:
    session = api.session_in(status)
    expect_error(api.act(session, "archive"), 400)
    assert api.read_session(session) == session


def ended(api: Api, database: Documents, status: str = "completed", **since: float) -> Json:
    """A session with two tasks that ended `timedelta(**since)` ago."""
    session = api.session()
    api.task_in(session, "completed")
    api.task(session)
    api.set_session(session, status)
    query, change = {"session_id": session["session_id"]}, {"$set": {"completed_at": ago(**since)}}
    database.sessions.update_one(query, change)
    return session


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_cleanup_deletes_what_ended_before_the_retention(own: Servers, method: str) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        old = [ended(api, database, status, days=31) for status in ("completed", "failed")]
        kept = [ended(api, database, days=29), api.session(), api.session_in("stalled")]
        archived = ended(api, database, days=300)
        expect(api.act(archived, "archive"), 200)
        result = expect(api.request(method, "/api/sessions/cleanup"), 200)
        assert result == {"deleted_sessions": 2, "deleted_tasks": 4}
        for session in old:
            expect_error(api.get(f"/api/sessions/{session['session_id']}"), 404)
        for session in (*kept, archived):
            api.read_session(session)
        assert len(api.tasks_of(archived)) == 2
        again = expect(api.request(method, "/api/sessions/cleanup"), 200)
        assert again == {"deleted_sessions": 0, "deleted_tasks": 0}


def test_cleanup_takes_another_age(own: Servers) -> None:
    database = own.database()
    server = own.start(database, RETENTION_DAYS="7")
    with Api(server.base_url, server.key) as api:
        ended(api, database, days=3)
        ended(api, database, days=5)
        fresh = api.session_in("completed")
        live = api.session()

        def cleanup(**query: int) -> Json:
            return expect(api.post("/api/sessions/cleanup", params=query), 200)

        assert cleanup() == {"deleted_sessions": 0, "deleted_tasks": 0}
        assert cleanup(older_than_days=4) == {"deleted_sessions": 1, "deleted_tasks": 2}
        assert cleanup(older_than_days=2) == {"deleted_sessions": 1, "deleted_tasks": 2}
        api.read_session(fresh)
        assert cleanup(older_than_days=0) == {"deleted_sessions": 1, "deleted_tasks": 0}
        api.read_session(live)


@pytest.mark.parametrize("value", ["-1", "x", "", "1.5", "true", "99999999999999999999"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_wrong_age_is_refused(api: Api, method: str, value: str) -> None:
    answer = api.request(method, "/api/sessions/cleanup", params={"older_than_days": value})
    expect_error(answer, 400, fields=("older_than_days",))


def test_cleanup_removes_what_the_database_left_behind(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        machine = api.machine()
        gone = api.session(machine_id=machine["machine_id"])
        live = api.session(machine_id=machine["machine_id"])
        orphans = [api.task(gone) for _ in range(3)]
        kept = api.task(live)
        database.sessions.delete_one({"session_id": gone["session_id"]})  # as the TTL monitor does it
        database.machines.update_one(
            {"machine_id": machine["machine_id"]}, {"$push": {"active_sessions": uuid4()}}
        )
        result = expect(api.post("/api/sessions/cleanup"), 200)
        assert result == {"deleted_sessions": 0, "deleted_tasks": len(orphans)}
        assert database.tasks.count_documents({"session_id": gone["session_id"]}) == 0
        assert api.read_task(kept) == kept
        assert api.read_machine(machine)["active_sessions"] == [live["session_id"]]


def test_archiving_exempts_the_tasks_from_expiry(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = ended(api, database, days=0)
        expect(api.act(session, "archive"), 200)
        expiring = next(index for index in database.tasks.list_indexes() if "expireAfterSeconds" in index)
        database.tasks.update_many({}, {"$set": {"completed_at": ago(days=90)}})
        partial = dict(expiring["partialFilterExpression"])
        assert database.tasks.count_documents(partial | {"session_id": session["session_id"]}) == 0
