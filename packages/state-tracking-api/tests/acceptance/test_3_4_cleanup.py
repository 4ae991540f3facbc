"""PRD 3.4: what has ended is kept for a while, archived for good, or deleted as a whole."""

from __future__ import annotations

import json

import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, moment
from api_harness.server import Server, run
from api_harness.servers import Documents, Servers


def end_long_ago(api: Api, database: Documents, **since: float) -> Json:
    """A completed session whose end lies `timedelta(**since)` back."""
    session = api.session_in("completed")
    database.sessions.update_one(
        {"session_id": session["session_id"]}, {"$set": {"completed_at": ago(**since)}}
    )
    return session


def run_cleanup_job(server: Server, database: Documents, uri: str) -> Json:
    """`state-tracking-api job cleanup`, as an outside schedule runs it; its printed result."""
    ended = run(
        "job",
        "cleanup",
        environment={"MONGODB_URI": uri, "MONGODB_DATABASE": database.name, "API_KEYS": server.key},
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.prd("3.4.a")
def test_3_4_a_the_cleanup_job_deletes_a_session_that_ended_35_days_ago(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        old = end_long_ago(api, database, days=35)
        recent = end_long_ago(api, database, days=25)
        result = run_cleanup_job(server, database, own.uri)
        expect_error(api.get(f"/api/sessions/{old['session_id']}"), 404)
        api.read_session(recent)
    assert result["deleted_sessions"] == 1


@pytest.mark.prd("3.4.b")
def test_3_4_b_the_tasks_go_with_their_session(api: Api, database: Documents) -> None:
    session = api.session()
    for _ in range(3):
        api.task(session)
    expect(api.delete(f"/api/sessions/{session['session_id']}"), 204)
    assert api.tasks_of(session) == []
    assert database.tasks.count_documents({"session_id": session["session_id"]}) == 0


@pytest.mark.prd("3.4.c")
def test_3_4_c_an_archived_session_says_so(api: Api) -> None:
    session = api.session_in("completed")
    expect(api.act(session, "archive"), 200)
    metadata = api.read_session(session)["metadata"]
    assert metadata["archived"] is True
    assert moment(metadata["archived_at"]) >= moment(session["completed_at"])


@pytest.mark.prd("3.4.d")
def test_3_4_d_the_cleanup_job_leaves_an_archived_session(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        session = api.session()
        task = api.task_in(session, "completed")
        api.set_session(session, "completed")
        expect(api.act(session, "archive"), 200)
        long_ago = {"$set": {"completed_at": ago(days=100)}}
        database.sessions.update_one({"session_id": session["session_id"]}, long_ago)
        database.tasks.update_one({"task_id": task["task_id"]}, long_ago)
        assert run_cleanup_job(server, database, own.uri)["deleted_sessions"] == 0
        api.read_session(session)
        api.read_task(task)


@pytest.mark.prd("3.4.e")
def test_3_4_e_cleanup_on_request_says_how_much_it_deleted(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        for _ in range(5):
            end_long_ago(api, database, days=40)
        result = expect(api.post("/api/sessions/cleanup"), 200)
    assert result == {"deleted_sessions": 5, "deleted_tasks": 0}


@pytest.mark.prd("3.4.f")
def test_3_4_f_a_deletion_that_fails_half_way_leaves_everything_as_it_was(own: Servers) -> None:
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        machine = api.machine()
        session = api.session(machine_id=machine["machine_id"])
        tasks = [api.task(session) for _ in range(3)]
        validator = database.command("listCollections", filter={"name": "machines"})["cursor"]["firstBatch"]
        kept = validator[0]["options"]["validator"]
        # No machine can be written any more, so the deletion fails at taking the session off its machine.
        database.command("collMod", "machines", validator={"hostname": "no such host"})
        failed = api.delete(f"/api/sessions/{session['session_id']}")
        expect_error(failed, 500)
        database.command("collMod", "machines", validator=kept)
        assert api.read_session(session) == session
        assert [api.read_task(task) for task in tasks] == tasks
        assert api.read_machine(machine)["active_sessions"] == [session["session_id"]]
        expect(api.delete(f"/api/sessions/{session['session_id']}"), 204)
