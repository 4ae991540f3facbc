"""GET /api/sessions/{id}/events: every transition exactly once, with from, to, when, why and by whom."""

from __future__ import annotations

from datetime import timedelta

import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, moment, unique, uuid4
from api_harness.server import run
from api_harness.servers import Documents, Servers
from state_tracking_api.lifecycle import EVENTS_KEPT, REASON_KEPT

Transition = tuple[str, str | None, str, str, str | None]


def events_of(api: Api, session: Json, **query: int) -> Json:
    """The session's timeline."""
    return expect(api.get(f"/api/sessions/{session['session_id']}/events", params=query), 200)


def transitions(timeline: Json) -> list[Transition]:
    """Of each event: of which task (or the session), from, to, by whom, why."""
    return [
        (event["task_name"] or "session", event["from"], event["to"], event["actor"], event["reason"])
        for event in timeline["events"]
    ]


def test_a_whole_life_with_its_recovery_is_told_exactly_once(own: Servers) -> None:
    database = own.database()
    human, robot = uuid4(), uuid4()
    server = own.start(database, API_KEYS=f"human={human},robot={robot}")
    with Api(server.base_url, human) as api, Api(server.base_url, robot) as machine:
        session = machine.session()
        tasks = {
            name: machine.task(session, task_name=name) for name in ("done", "broken", "open", "waiting")
        }
        machine.set_task(tasks["done"], "in_progress")
        machine.set_task(tasks["done"], "completed")
        machine.set_task(tasks["broken"], "in_progress")
        machine.set_task(tasks["broken"], "failed")
        machine.set_task(tasks["waiting"], "blocked")
        machine.set_task(tasks["open"], "in_progress")
        expect(machine.act(session, "heartbeat"), 200)
        api.set_session(session, "paused")
        api.set_session(session, "paused")  # changes nothing, so nothing happened
        api.set_session(session, "active")
        silent = {"$set": {"last_heartbeat": ago(minutes=5)}}
        mine = {"session_id": session["session_id"]}
        database.sessions.update_one(mine, silent)
        job = run(
            "job",
            "detect-failures",
            environment={
                "MONGODB_URI": own.uri,
                "MONGODB_DATABASE": database.name,
                "API_KEYS": human,
            },
        )
        assert job.returncode == 0, job.stderr
        expect(machine.act(session, "heartbeat"), 200)
        expect(api.act(session, "mark-stalled"), 200)
        expect(api.act(session, "mark-failed", {"error_message": "power cut"}), 200)
        expect(api.act(session, "mark-failed", {"error_message": "again"}), 200)
        successor = expect(api.recover(session), 201)
        expect(api.recover(session), 200)
        told = events_of(api, session)
        told_of_successor = events_of(api, successor)

    by = {"robot": "key:robot", "human": "key:human", "job": "job:detect-failures"}
    expected: list[Transition] = [
        ("session", None, "active", by["robot"], "started"),
        ("done", None, "pending", by["robot"], None),
        ("broken", None, "pending", by["robot"], None),
        ("open", None, "pending", by["robot"], None),
        ("waiting", None, "pending", by["robot"], None),
        ("done", "pending", "in_progress", by["robot"], None),
        ("done", "in_progress", "completed", by["robot"], None),
        ("broken", "pending", "in_progress", by["robot"], None),
        ("broken", "in_progress", "failed", by["robot"], "broken"),
        ("waiting", "pending", "blocked", by["robot"], None),
        ("open", "pending", "in_progress", by["robot"], None),
        ("session", "active", "paused", by["human"], "patched"),
        ("session", "paused", "active", by["human"], "patched"),
        ("session", "active", "stalled", by["job"], "silent for longer than its threshold"),
        ("session", "stalled", "active", by["robot"], "heartbeat"),
        ("session", "active", "stalled", by["human"], "marked by hand"),
        ("session", "stalled", "failed", by["human"], "power cut"),
        ("open", "in_progress", "failed", by["human"], "Session failed: power cut"),
        ("session", "failed", "completed", by["human"], f"recovered by session {successor['session_id']}"),
    ]
    assert sorted(transitions(told), key=repr) == sorted(expected, key=repr)
    assert told["total"] == len(expected)
    of_session = [step for step in transitions(told) if step[0] == "session"]
    assert of_session == [step for step in expected if step[0] == "session"], "in order"
    times = [moment(event["at"]) for event in told["events"]]
    assert times == sorted(times)
    [scanned] = [event for event in told["events"] if event["actor"] == by["job"]]
    assert timedelta(minutes=5) <= timedelta(milliseconds=scanned["silent_ms"]) < timedelta(minutes=6)

    started = ("session", None, "active", by["human"], f"recovered from session {session['session_id']}")
    carried = [
        (name, None, "pending", by["human"], f"recovered from task {tasks[name]['task_id']}")
        for name in ("broken", "open", "waiting")
    ]
    assert sorted(transitions(told_of_successor), key=repr) == sorted([started, *carried], key=repr)


def test_the_time_of_an_event_is_the_time_of_its_change(api: Api) -> None:
    session = api.session()
    failed = expect(api.act(session, "mark-failed", {"error_message": "x"}), 200)
    started, ended = events_of(api, session)["events"]
    assert (started["at"], ended["at"]) == (session["created_at"], failed["completed_at"])


def test_heartbeats_are_remembered_but_are_no_transitions(api: Api) -> None:
    session = api.session()
    beaten = [expect(api.act(session, "heartbeat"), 200)["last_heartbeat"] for _ in range(3)]
    told = events_of(api, session)
    assert told["heartbeats"] == [session["last_heartbeat"], *beaten]
    assert told["total"] == 1


@pytest.mark.parametrize("name", ["short-lived", "$status", "$$ROOT"])
def test_a_deleted_task_stays_in_its_sessions_timeline(api: Api, name: str) -> None:
    session = api.session()
    task = api.task(session, task_name=name)
    expect(api.delete(f"/api/tasks/{task['task_id']}"), 204)
    last = events_of(api, session)["events"][-1]
    assert (last["task_name"], last["from"], last["to"]) == (name, "pending", "deleted")


def test_a_timeline_is_read_in_parts(api: Api) -> None:
    session = api.session()
    for _ in range(4):
        api.task(session)
    whole = events_of(api, session)["events"]
    parts = [events_of(api, session, limit=2, offset=offset) for offset in (0, 2, 4)]
    assert [event for part in parts for event in part["events"]] == whole
    assert {part["total"] for part in parts} == {5}


def test_a_refused_transition_leaves_no_event(api: Api) -> None:
    session = api.session_in("completed")
    before = events_of(api, session)
    expect_error(api.patch(f"/api/sessions/{session['session_id']}", json={"status": "active"}), 409)
    expect_error(api.act(session, "mark-failed", {"error_message": "x"}), 409)
    assert events_of(api, session) == before


def test_the_timeline_goes_with_its_session(api: Api) -> None:
    session = api.session(machine_id=unique("m"))
    api.task(session)
    expect(api.delete(f"/api/sessions/{session['session_id']}"), 204)
    expect_error(api.get(f"/api/sessions/{session['session_id']}/events"), 404)


def test_cleanup_takes_the_timeline_along(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = api.session_in("completed")
        api.session()
        old = {"$set": {"completed_at": ago(days=40)}}
        database.sessions.update_one({"session_id": session["session_id"]}, old)
        expect(api.post("/api/sessions/cleanup"), 200)
        expect_error(api.get(f"/api/sessions/{session['session_id']}/events"), 404)
    kept = [
        name for name in database.list_collection_names() if database[name].find_one(session["session_id"])
    ]
    assert not kept
    everything = [document for name in database.list_collection_names() for document in database[name].find()]
    assert session["session_id"] not in str(everything)


def test_however_often_something_happens_the_latest_events_are_kept(api: Api, database: Documents) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress")
    filler = {"at": ago(minutes=9), "from": "paused", "to": "active", "actor": "key:tests", "reason": "n"}
    full = {"$set": {"events": [filler] * EVENTS_KEPT}}
    mine, its = {"session_id": session["session_id"]}, {"task_id": task["task_id"]}
    database.sessions.update_one(mine, full)
    database.tasks.update_one(its, full)

    def latest() -> tuple[str, str]:
        for collection, one in ((database.sessions, mine), (database.tasks, its)):
            stored = collection.find_one(one)
            assert stored
            assert len(stored["events"]) == EVENTS_KEPT
        told = events_of(api, session, limit=1, offset=2 * EVENTS_KEPT - 1)
        assert told["total"] == 2 * EVENTS_KEPT
        return told["events"][0]["kind"], told["events"][0]["to"]

    api.set_task(task, "blocked")
    assert latest() == ("task", "blocked")
    api.set_session(session, "paused")
    assert latest() == ("session", "paused")
    for metadata in ({}, {"with": "metadata"}):
        api.set_session(session, "stalled")
        expect(api.act(session, "heartbeat", {"metadata": metadata}), 200)
        assert latest() == ("session", "active")
    database.sessions.update_one(mine, {"$set": {"last_heartbeat": ago(minutes=5)}})
    expect(api.post("/api/sessions/detect-failures"), 200)
    assert latest() == ("session", "stalled")
    expect(api.delete(f"/api/tasks/{api.task(session)['task_id']}"), 204)
    assert latest() == ("task", "deleted")


def test_of_a_long_reason_the_event_has_the_beginning(api: Api) -> None:
    session = api.session()
    reason = "x" * 30_000
    failed = expect(api.act(session, "mark-failed", {"error_message": reason}), 200)
    assert failed["metadata"]["error_message"] == reason
    told = events_of(api, session)["events"][-1]["reason"]
    assert told == "x" * (REASON_KEPT - 1) + "…"
