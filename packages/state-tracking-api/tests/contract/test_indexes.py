"""Every query that the API makes has an index, as the database itself records it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_harness.api import Api, ago, expect, unique, uuid4
from api_harness.server import run
from api_harness.servers import Document, Documents, Servers

COLLECTIONS = ("sessions", "tasks", "machines")

PROMISED = {
    "sessions": [["project_id", "status"], ["session_id"], ["machine_id"], ["last_heartbeat"]],
    "tasks": [["session_id", "status"], ["task_id"], ["project_id"]],
    "machines": [["machine_id"], ["status"], ["last_heartbeat"]],
}


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_the_promised_indexes_exist(api: Api, database: Documents, collection: str) -> None:
    expect(api.get("/api/sessions"), 200)
    keys = [list(index["key"]) for index in database[collection].list_indexes()]
    missing = [
        fields
        for fields in PROMISED[collection]
        if fields not in keys and not any(key[: len(fields)] == fields for key in keys)
    ]
    assert not missing, keys


@pytest.mark.parametrize(
    ("collection", "field"), [("sessions", "session_id"), ("tasks", "task_id"), ("machines", "machine_id")]
)
def test_the_ids_are_unique_by_an_index(database: Documents, collection: str, field: str) -> None:
    unique_keys = [list(i["key"]) for i in database[collection].list_indexes() if i.get("unique")]
    assert [field] in unique_keys


@pytest.fixture
def populated(own: Servers) -> Iterator[tuple[Api, Documents, Servers]]:
    """A database with enough in it for the planner to prefer an index, its profiler recording everything."""
    database = own.database()
    server = own.start(database)
    with Api(server.base_url, server.key) as api:
        for _ in range(15):
            machine = api.machine()
            session = api.session(machine_id=machine["machine_id"], docker_slot=1)
            for status in ("pending", "in_progress", "completed"):
                api.task_in(session, status)
            other = api.session_in("stalled", machine_id=machine["machine_id"])
            api.act(api.set_session(other, "completed"), "archive")
        database.command("profile", 2, slowms=0)
        yield api, database, own
        database.command("profile", 0)


def drive(api: Api, database: Documents, servers: Servers) -> None:
    """Every route, every filter and every job, each on its way that succeeds."""
    project = unique("project")
    machine = api.machine()
    elsewhere = api.machine()
    machine_path = f"/api/machines/{machine['machine_id']}"
    expect(api.post(f"{machine_path}/heartbeat"), 200)
    expect(api.patch(machine_path, json={"docker_slots": [0, 1, 2], "metadata": {"a": 1}}), 200)
    body = {name: machine[name] for name in ("machine_id", "hostname", "docker_slots")}
    expect(api.post("/api/machines", json=body), 200)
    session = api.session(project_id=project, machine_id=machine["machine_id"], docker_slot=1)
    path = f"/api/sessions/{session['session_id']}"
    task, other_task = api.task(session), api.task(session)
    task_path = f"/api/tasks/{task['task_id']}"
    expect(api.patch(task_path, json={"status": "in_progress"}), 200)
    expect(api.patch(task_path, json={"metadata": {"a": 1}}), 200)
    expect(api.patch(task_path, json={"status": "completed"}), 200)
    expect(api.get(task_path), 200)
    expect(api.delete(f"/api/tasks/{other_task['task_id']}"), 204)
    for query in (
        {},
        {"session_id": session["session_id"]},
        {"session_id": session["session_id"], "status": "completed"},
        {"project_id": project},
        {"project_id": project, "status": "completed"},
        {"status": "in_progress"},
    ):
        expect(api.get("/api/tasks", params=query), 200)
    expect(api.get(path), 200)
    for query in (
        {},
        {"project_id": project},
        {"machine_id": machine["machine_id"]},
        {"status": "active"},
        {"project_id": project, "status": "active"},
        {"machine_id": machine["machine_id"], "status": "active"},
        {"project_id": project, "machine_id": machine["machine_id"], "status": "active"},
    ):
        expect(api.get("/api/sessions", params=query), 200)
    for query in ({}, {"status": "online"}):
        expect(api.get("/api/machines", params=query), 200)
    expect(api.post(f"{path}/heartbeat", json={"current_task_id": "x", "metadata": {"a": 1}}), 200)
    expect(api.patch(path, json={"status": "paused", "metadata": {"b": 1}}), 200)
    expect(api.patch(path, json={"status": "active"}), 200)
    expect(api.get(f"{path}/health"), 200)
    for name in ("health", "stalled", "archived"):
        expect(api.get(f"/api/sessions/{name}"), 200)
    silent = {"$set": {"last_heartbeat": ago(hours=1)}}
    database.sessions.update_one({"session_id": session["session_id"]}, silent)
    expect(api.post("/api/sessions/detect-failures"), 200)
    expect(api.act(session, "mark-stalled"), 200)
    expect(api.act(session, "prepare-recovery", {"clear_machine_assignment": True}), 200)
    expect(api.get(f"{path}/recovery-state"), 200)
    successor = expect(api.recover(session, new_machine_id=elsewhere["machine_id"], docker_slot=0), 201)
    expect(api.recover(session), 200)
    expect(api.act(session, "archive"), 200)
    expect(api.act(successor, "mark-failed", {"error_message": "x"}), 200)
    old = api.session_in("completed")
    database.sessions.update_one({"session_id": old["session_id"]}, {"$set": {"completed_at": ago(days=99)}})
    expect(api.post("/api/sessions/cleanup"), 200)
    expect(api.delete(path), 204)
    expect(api.delete(machine_path), 204)
    expect(api.get("/health/detailed"), 200)
    assert api.get("/metrics").status_code == 200
    settings = {"MONGODB_URI": servers.uri, "MONGODB_DATABASE": database.name, "API_KEYS": uuid4()}
    for job in ("detect-failures", "cleanup"):
        assert run("job", job, environment=settings).returncode == 0


def scans(database: Documents) -> list[Document]:
    """What the profiler recorded as a full scan of one of our collections, its own entries apart."""
    ours = {f"{database.name}.{name}" for name in COLLECTIONS}
    return [
        entry
        for entry in database["system.profile"].find({"ns": {"$in": sorted(ours)}})
        if "COLLSCAN" in entry.get("planSummary", "") or '"COLLSCAN"' in str(entry.get("execStats", {}))
    ]


def _asked(entry: Document) -> str:
    """What was asked of the database, without what every command carries."""
    return str(
        {name: value for name, value in entry["command"].items() if not name.startswith(("$", "lsid"))}
    )


@pytest.mark.slow
def test_no_request_and_no_job_scans_a_whole_collection(populated: tuple[Api, Documents, Servers]) -> None:
    api, database, servers = populated
    drive(api, database, servers)
    recorded = database["system.profile"].count_documents({})
    assert recorded > 100, "the profiler has recorded the requests"
    offenders = {f"{entry['ns']} {entry['op']}: {_asked(entry)}" for entry in scans(database)}
    assert offenders == set()


@pytest.mark.slow
def test_no_request_looks_at_many_more_documents_than_it_needs(
    populated: tuple[Api, Documents, Servers],
) -> None:
    """A list counts its total by an index alone, and a single document is found by its own key."""
    api, database, servers = populated
    drive(api, database, servers)
    single = {"ns": {"$regex": r"\.(sessions|tasks|machines)$"}, "op": "query", "command.singleBatch": True}
    wasteful = {
        f"{entry['ns']} {entry['docsExamined']} for {entry['nreturned']}: {_asked(entry)}"
        for entry in database["system.profile"].find(single)
        if entry.get("docsExamined", 0) > max(1, entry.get("nreturned", 0))
    }
    assert wasteful == set()
