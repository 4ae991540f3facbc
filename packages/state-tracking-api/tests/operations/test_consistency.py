"""The job check-consistency: finds each kind of violation, and mends what can be derived when told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from api_harness.api import Api, Json, ago, expect, unique, uuid4
from api_harness.server import run
from api_harness.servers import Document, Documents, Servers
from operations.log_lines import written
from operations.reading import read_metrics
from state_tracking_api import settings
from state_tracking_api.consistency import CHECKS
from state_tracking_api.embedded import Mongod
from state_tracking_api.lifecycle import Stamp
from state_tracking_api.storage import Storage


@dataclass
class Damage:
    """What a test has broken: the violated promise and the id under which it must be reported."""

    check: str
    identifier: str
    mended: Callable[[], bool] | None = None


Seed = Callable[[Api, Documents], Damage]


def changed(database: Documents, collection: str, id_field: str, identifier: str, **fields: object) -> None:
    """Edit a document past every validator."""
    database.get_collection(collection).update_one(
        {id_field: identifier}, {"$set": fields}, bypass_document_validation=True
    )


def a_ghost_on_a_machine(api: Api, database: Documents) -> Damage:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    ghosts = [session["session_id"], uuid4()]
    changed(database, "machines", "machine_id", machine["machine_id"], active_sessions=ghosts)
    return Damage(
        "a machine's active_sessions are exactly its live sessions",
        machine["machine_id"],
        lambda: api.read_machine(machine)["active_sessions"] == [session["session_id"]],
    )


def two_active_sessions(api: Api, database: Documents) -> Damage:
    place = {"project_id": unique("project"), "machine_id": unique("machine")}
    first, second = api.session(**place), api.session(project_id=unique("other"))
    database.sessions.drop_index("one_active_session")
    changed(database, "sessions", "session_id", second["session_id"], **place)
    return Damage("a project has at most one active session on a machine", first["session_id"])


def two_successors(api: Api, database: Documents) -> Damage:
    original = api.session_in("stalled")
    successor, usurper = expect(api.recover(original), 201), api.session()
    database.sessions.drop_index("one_successor")
    changed(database, "sessions", "session_id", usurper["session_id"], recovered_from=original["session_id"])
    return Damage("a session has at most one successor", successor["session_id"])


def an_end_without_a_time(api: Api, database: Documents) -> Damage:
    session = api.session_in("completed")
    changed(database, "sessions", "session_id", session["session_id"], completed_at=None)
    return Damage(
        "an ended session has completed_at",
        session["session_id"],
        lambda: api.read_session(session)["completed_at"] == session["updated_at"],
    )


def work_under_a_failed_session(api: Api, database: Documents) -> Damage:
    session = api.session()
    task = api.task(session)
    api.set_session(session, "failed")
    changed(database, "tasks", "task_id", task["task_id"], status="in_progress", started_at=ago(seconds=1))
    return Damage(
        "no task is in progress under a failed session",
        task["task_id"],
        lambda: api.read_task(task)["status"] == "failed",
    )


def an_orphan(api: Api, database: Documents) -> Damage:
    task = api.task(api.session())
    database.sessions.delete_one({"session_id": task["session_id"]})
    return Damage(
        "a task has a session",
        task["task_id"],
        lambda: api.get(f"/api/tasks/{task['task_id']}").status_code == 404,
    )


def another_sessions_task_as_current(api: Api, database: Documents) -> Damage:
    session, others = api.session(), api.task_in(api.session(), "in_progress")
    changed(database, "sessions", "session_id", session["session_id"], current_task_id=others["task_id"])
    return Damage(
        "current_task_id is a task of the session and in progress",
        session["session_id"],
        lambda: api.read_session(session)["current_task_id"] is None,
    )


def a_finished_task_as_current(api: Api, database: Documents) -> Damage:
    session = api.session()
    task = api.task_in(session, "completed")
    changed(database, "sessions", "session_id", session["session_id"], current_task_id=task["task_id"])
    return Damage(
        "current_task_id is a task of the session and in progress",
        session["session_id"],
        lambda: api.read_session(session)["current_task_id"] is None,
    )


def an_end_before_the_start(api: Api, database: Documents) -> Damage:
    session = api.session_in("completed")
    changed(database, "sessions", "session_id", session["session_id"], completed_at=ago(days=1))
    return Damage("a session's times are in order", session["session_id"])


def a_task_that_ended_before_it_began(api: Api, database: Documents) -> Damage:
    task = api.task_in(api.session(), "completed")
    changed(database, "tasks", "task_id", task["task_id"], completed_at=ago(days=1))
    return Damage("a task's times are in order", task["task_id"])


SEEDS: tuple[Seed, ...] = (
    a_ghost_on_a_machine,
    two_active_sessions,
    two_successors,
    an_end_without_a_time,
    work_under_a_failed_session,
    an_orphan,
    another_sessions_task_as_current,
    a_finished_task_as_current,
    an_end_before_the_start,
    a_task_that_ended_before_it_began,
)


def job(own: Servers, database: Documents, *options: str) -> tuple[Json, list[Document]]:
    """Run the job from the command line; its result, and its log lines (on standard error)."""
    environment = {"MONGODB_URI": own.uri, "MONGODB_DATABASE": database.name, "API_KEYS": uuid4()}
    done = run("job", "check-consistency", *options, environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines()]


def contents(database: Documents) -> dict[str, list[Document]]:
    """Everything that clients have stored."""
    return {name: list(database[name].find().sort("_id")) for name in ("sessions", "tasks", "machines")}


def healthy_life(api: Api) -> None:
    """Something of everything, by the API alone."""
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"], docker_slot=0)
    for status in ("pending", "completed", "failed", "blocked", "in_progress"):
        api.task_in(session, status)
    expect(api.act(session, "heartbeat", {"current_task_id": "none-of-ours"}), 200)
    stalled = api.session_in("stalled", machine_id=machine["machine_id"])
    api.task_in(stalled, "in_progress")
    expect(api.recover(stalled), 201)
    api.session_in("failed")
    api.session_in("completed")
    api.session_in("paused", machine_id=machine["machine_id"])


def test_there_is_a_seeded_violation_for_every_check() -> None:
    named = {"two_active_sessions", "two_successors"}
    assert len(CHECKS) == 9
    assert named <= {seed.__name__ for seed in SEEDS}


@pytest.mark.slow
def test_what_the_api_does_violates_nothing(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        healthy_life(api)
        result, _ = job(own, database)
        assert result == {"violations": [], "repaired": [], "left": 0}
        consistency = expect(api.get("/health/detailed"), 200)["dependencies"]["consistency"]
        assert consistency["status"] == "ok"
        assert consistency["violations"] == 0
        assert read_metrics(api).value("consistency_violations_count") == 0


@pytest.mark.slow
def test_each_violation_is_found_logged_shown_and_where_it_can_be_derived_mended(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        healthy_life(api)
        damages = [seed(api, database) for seed in SEEDS]
        assert {damage.check for damage in damages} == {check.name for check in CHECKS}
        expected = sorted((damage.check, damage.identifier) for damage in damages)

        before = contents(database)
        result, lines = job(own, database)
        assert contents(database) == before, "nothing is changed unless told to"
        assert found(result["violations"]) == expected
        assert result["repaired"] == []
        assert result["left"] == len(damages)
        errors = [line["context"] for line in lines if line["level"] == "ERROR"]
        assert found(errors) == expected
        assert read_metrics(api).value("consistency_violations_count") == len(damages)
        health = expect(api.get("/health/detailed"), 200)
        assert health["status"] == health["dependencies"]["consistency"]["status"] == "degraded"
        assert health["dependencies"]["consistency"]["violations"] == len(damages)

        derivable = [damage for damage in damages if damage.mended]
        hopeless = sorted((d.check, d.identifier) for d in damages if not d.mended)
        untouched = database.sessions.find_one({"session_id": damages[1].identifier})
        result, _ = job(own, database, "--repair")
        assert found(result["violations"]) == expected
        assert found(result["repaired"]) == sorted((d.check, d.identifier) for d in derivable)
        assert result["left"] == len(hopeless)
        for damage in derivable:
            assert damage.mended
            assert damage.mended(), damage.check
        assert database.sessions.find_one({"session_id": damages[1].identifier}) == untouched

        result, _ = job(own, database, "--repair")
        assert found(result["violations"]) == hopeless
        assert result["repaired"] == []
        assert read_metrics(api).value("consistency_violations_count") == len(hopeless)


def found(violations: list[Any]) -> list[tuple[str, str]]:
    """Of each violation the promise and the id."""
    ids = ("task_id", "machine_id", "session_id")
    return sorted((item["check"], next(item[name] for name in ids if name in item)) for item in violations)


@pytest.mark.slow
def test_tasks_that_the_ttl_index_left_behind_are_no_violation(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        task = api.task(api.session())
        changed(database, "tasks", "task_id", task["task_id"], created_at=ago(days=31))
        database.sessions.delete_one({"session_id": task["session_id"]})
        assert job(own, database)[0]["violations"] == []
        assert expect(api.post("/api/sessions/cleanup"), 200)["deleted_tasks"] == 1


async def test_a_repair_leaves_alone_what_has_come_right_since_the_check(
    api: Api, mongod: Mongod, database: Documents
) -> None:
    working = api.session()
    task = api.task_in(working, "in_progress")
    storage = Storage(settings.load(mongodb_uri=mongod.uri, mongodb_database=database.name, api_keys=uuid4()))
    [check] = [check for check in CHECKS if check.name.startswith("current_task_id")]
    assert check.repair
    await check.repair(storage, working["session_id"], Stamp(ago(), "job:tests"))
    await storage.close()
    assert api.read_session(working)["current_task_id"] == task["task_id"]


@pytest.mark.slow
def test_more_than_a_hundred_of_a_kind_are_counted_and_a_hundred_listed(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        task = api.task(api.session())
        stored = database.tasks.find_one({"task_id": task["task_id"]}, {"_id": 0})
        assert stored
        database.tasks.insert_many(
            [{**stored, "task_id": uuid4(), "session_id": uuid4()} for _ in range(130)]
        )
        result, _ = job(own, database)
        assert (len(result["violations"]), result["left"]) == (100, 130)
        assert read_metrics(api).value("consistency_violations_count") == 130
        result, _ = job(own, database, "--repair")
        assert result["left"] == 0
        assert database.tasks.count_documents({}) == 1


@pytest.mark.slow
def test_clocks_of_instances_that_differ_a_little_are_no_violation(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = api.session_in("completed")
        stored = database.sessions.find_one({"session_id": session["session_id"]})
        assert stored
        early = stored["started_at"] - timedelta(milliseconds=900)
        changed(
            database, "sessions", "session_id", session["session_id"], last_heartbeat=early, updated_at=early
        )
        result, _ = job(own, database)
        assert result["violations"] == []


@pytest.mark.slow
def test_the_scheduler_checks_by_itself_and_says_what_it_found(own: Servers) -> None:
    database = own.database()
    first = own.start(database)
    with Api(first.base_url, first.key) as api:
        damage = an_orphan(api, database)
    second = own.start(database, SCHEDULER="on")
    line = written(second, "Consistency violated", task_id=damage.identifier)
    assert line["level"] == "ERROR"
    assert line["context"]["check"] == damage.check
    assert database.tasks.find_one({"task_id": damage.identifier}), "it repairs nothing by itself"
