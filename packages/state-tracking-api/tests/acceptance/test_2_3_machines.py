"""PRD 2.3: machines, their slots, and the sessions on them."""

from __future__ import annotations

import pytest

from api_harness.api import Api, ago, expect, is_uuid4, moment, unique
from api_harness.servers import Documents


@pytest.mark.prd("2.3.a")
def test_2_3_a_a_machine_is_registered_online_with_an_id_of_its_own(api: Api) -> None:
    answer = api.post("/api/machines", json={"hostname": unique("host"), "docker_slots": [1]})
    machine = expect(answer, 201)
    assert is_uuid4(machine["machine_id"])
    assert machine["status"] == "online"


@pytest.mark.prd("2.3.b")
def test_2_3_b_the_slots_are_stored(api: Api) -> None:
    assert api.read_machine(api.machine(docker_slots=[1, 2, 3]))["docker_slots"] == [1, 2, 3]


@pytest.mark.prd("2.3.c")
def test_2_3_c_a_new_session_appears_on_its_machine(api: Api) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    assert api.read_machine(machine)["active_sessions"] == [session["session_id"]]


@pytest.mark.prd("2.3.d")
def test_2_3_d_a_deleted_session_disappears_from_its_machine(api: Api) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    expect(api.delete(f"/api/sessions/{session['session_id']}"), 204)
    assert api.read_machine(machine)["active_sessions"] == []


@pytest.mark.prd("2.3.e")
def test_2_3_e_a_heartbeat_brings_an_offline_machine_online(api: Api, database: Documents) -> None:
    machine = api.machine()
    path = f"/api/machines/{machine['machine_id']}"
    assert expect(api.patch(path, json={"status": "offline"}), 200)["status"] == "offline"
    old = ago(minutes=10)
    database.machines.update_one({"machine_id": machine["machine_id"]}, {"$set": {"last_heartbeat": old}})
    expect(api.post(f"{path}/heartbeat"), 200)
    beaten = api.read_machine(machine)
    assert beaten["status"] == "online"
    assert moment(beaten["last_heartbeat"]) > old


@pytest.mark.prd("2.3.f")
def test_2_3_f_the_list_is_filtered_by_status(api: Api) -> None:
    online, offline = api.machine(), api.machine()
    expect(api.patch(f"/api/machines/{offline['machine_id']}", json={"status": "offline"}), 200)
    found = expect(api.get("/api/machines", params={"status": "online", "limit": 100}), 200)["machines"]
    ids = {machine["machine_id"] for machine in found}
    assert online["machine_id"] in ids
    assert offline["machine_id"] not in ids
    assert {machine["status"] for machine in found} == {"online"}
