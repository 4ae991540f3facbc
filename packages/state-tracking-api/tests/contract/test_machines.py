"""machines: registration, slots, states, and the sessions on them."""

from __future__ import annotations

import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, moment, same_but, unique, uuid4
from api_harness.servers import Documents

AWAKENING = [("online", "online"), ("offline", "online"), ("maintenance", "maintenance")]
NOBODY = "a3bb189e-8bf9-4c4e-9b5d-1d1b3f1c7a10"


def path_of(machine: Json) -> str:
    """The machine's resource."""
    return f"/api/machines/{machine['machine_id']}"


def test_the_same_machine_again_is_updated(api: Api) -> None:
    machine = api.machine(metadata={"cpus": 4})
    body = {"machine_id": machine["machine_id"], "hostname": machine["hostname"], "docker_slots": [7]}
    again = expect(api.post("/api/machines", json=body | {"metadata": {"cpus": 8}}), 200)
    assert (again["docker_slots"], again["metadata"]["cpus"]) == ([7], 8)
    assert moment(again["last_heartbeat"]) >= moment(machine["last_heartbeat"])
    same_but(machine, again, "docker_slots", "metadata", "last_heartbeat", "updated_at")
    assert api.read_machine(machine) == again


def test_a_machine_id_belongs_to_one_hostname(api: Api) -> None:
    machine = api.machine()
    body = {"machine_id": machine["machine_id"], "hostname": unique("host"), "docker_slots": []}
    expect_error(api.post("/api/machines", json=body), 409)
    assert api.read_machine(machine) == machine


def test_a_hostname_may_stand_for_several_machines(api: Api) -> None:
    one = api.machine()
    assert api.machine(hostname=one["hostname"])["machine_id"] != one["machine_id"]


@pytest.mark.parametrize(("before", "after"), AWAKENING)
def test_registering_again_wakes_an_offline_machine_and_leaves_maintenance(
    api: Api, before: str, after: str
) -> None:
    machine = api.machine()
    expect(api.patch(path_of(machine), json={"status": before}), 200)
    body = {name: machine[name] for name in ("machine_id", "hostname", "docker_slots")}
    assert expect(api.post("/api/machines", json=body), 200)["status"] == after


@pytest.mark.parametrize(("before", "after"), AWAKENING)
def test_a_heartbeat_wakes_an_offline_machine_only(
    api: Api, database: Documents, before: str, after: str
) -> None:
    machine = api.machine()
    expect(api.patch(path_of(machine), json={"status": before}), 200)
    old = ago(minutes=9)
    database.machines.update_one({"machine_id": machine["machine_id"]}, {"$set": {"last_heartbeat": old}})
    beaten = expect(api.post(f"{path_of(machine)}/heartbeat"), 200)
    assert beaten["status"] == after
    assert moment(beaten["last_heartbeat"]) > old


def test_a_heartbeat_brings_active_sessions_in_line(api: Api, database: Documents) -> None:
    machine = api.machine()
    sessions = [api.session(machine_id=machine["machine_id"])["session_id"] for _ in range(2)]
    database.machines.update_one(
        {"machine_id": machine["machine_id"]}, {"$set": {"active_sessions": [sessions[0], uuid4()]}}
    )
    beaten = expect(api.post(f"{path_of(machine)}/heartbeat"), 200)
    assert sorted(beaten["active_sessions"]) == sorted(sessions)


@pytest.mark.parametrize("status", ["paused", "stalled"])
def test_active_sessions_holds_every_live_session(api: Api, status: str) -> None:
    machine = api.machine()
    sessions = [
        api.session_in(state, machine_id=machine["machine_id"])["session_id"] for state in ("active", status)
    ]
    api.session_in("completed", machine_id=machine["machine_id"])
    assert sorted(api.read_machine(machine)["active_sessions"]) == sorted(sessions)


def test_a_patch_changes_status_slots_and_metadata(api: Api) -> None:
    machine = api.machine(metadata={"a": 1, "b": 2})
    body = {"status": "maintenance", "docker_slots": [9], "metadata": {"a": None, "c": 3}}
    patched = expect(api.patch(path_of(machine), json=body), 200)
    assert (patched["status"], patched["docker_slots"]) == ("maintenance", [9])
    assert patched["metadata"] == {"b": 2, "c": 3}
    same_but(machine, patched, "status", "docker_slots", "metadata", "updated_at")
    assert expect(api.patch(path_of(machine), json={"status": "online"}), 200)["status"] == "online"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"status": null}', b'{"docker_slots": null}'])
def test_an_empty_patch_is_refused(api: Api, content: bytes) -> None:
    machine = api.machine()
    headers = {"content-type": "application/json"}
    expect_error(api.patch(path_of(machine), content=content, headers=headers), 400)
    assert api.read_machine(machine) == machine


@pytest.mark.parametrize(
    "body",
    [
        {"status": "asleep"},
        {"status": 1},
        {"docker_slots": "1"},
        {"docker_slots": [1.0]},
        {"docker_slots": [True]},
        {"docker_slots": [-1]},
        {"metadata": []},
        {"hostname": "other"},
        {"machine_id": "other"},
        {"active_sessions": []},
    ],
    ids=str,
)
def test_a_wrong_or_unknown_field_in_a_patch_is_named(api: Api, body: Json) -> None:
    machine = api.machine()
    expect_error(api.patch(path_of(machine), json=body), 400, fields=tuple(body))
    assert api.read_machine(machine) == machine


@pytest.mark.parametrize("status", ["active", "paused", "stalled"])
def test_a_slot_that_a_live_session_holds_cannot_be_taken_away(api: Api, status: str) -> None:
    machine = api.machine(docker_slots=[1, 2])
    session = api.session_in(status, machine_id=machine["machine_id"], docker_slot=1)
    before = api.read_machine(machine)
    expect_error(api.patch(path_of(machine), json={"docker_slots": [2]}), 409)
    body = {"machine_id": machine["machine_id"], "hostname": machine["hostname"], "docker_slots": [2]}
    expect_error(api.post("/api/machines", json=body), 409)
    assert api.read_machine(machine) == before
    assert expect(api.patch(path_of(machine), json={"docker_slots": [1]}), 200)["docker_slots"] == [1]
    api.set_session(session, "completed")
    assert expect(api.patch(path_of(machine), json={"docker_slots": []}), 200)["docker_slots"] == []


@pytest.mark.parametrize("status", ["active", "paused", "stalled"])
def test_a_machine_with_live_sessions_is_not_deleted(api: Api, status: str) -> None:
    machine = api.machine()
    session = api.session_in(status, machine_id=machine["machine_id"])
    expect_error(api.delete(path_of(machine)), 409)
    api.set_session(session, "failed")
    deleted = api.delete(path_of(machine))
    assert (deleted.status_code, deleted.content) == (204, b"")
    expect_error(api.get(path_of(machine)), 404)
    expect_error(api.delete(path_of(machine)), 404)
    assert api.read_session(session)["machine_id"] == machine["machine_id"]


@pytest.mark.parametrize("machine_id", ["unknown", NOBODY, "$ne", "a" * 300])
@pytest.mark.parametrize(
    ("method", "action", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"status": "online"}),
        ("DELETE", "", None),
        ("POST", "/heartbeat", None),
    ],
)
def test_a_machine_that_does_not_exist_is_not_found(
    api: Api, machine_id: str, method: str, action: str, body: Json | None
) -> None:
    expect_error(api.request(method, f"/api/machines/{machine_id}{action}", json=body), 404)
