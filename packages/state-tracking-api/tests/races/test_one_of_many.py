"""50 want the same thing at once, over two servers: one gets it, and the others learn who did."""

from __future__ import annotations

import pytest

from api_harness import load
from api_harness.api import Api, unique
from api_harness.pair import CROWD, Pair, statuses
from api_harness.servers import Documents


async def test_one_of_50_creations_for_a_project_on_a_machine_succeeds(
    pair: Pair, database: Documents
) -> None:
    place = {"project_id": unique("project"), "machine_id": unique("machine")}
    answers = await pair.crowd("POST", "/api/sessions", place)
    assert statuses(answers) == {201: 1, 409: CROWD - 1}
    [created] = [answer.json()["session_id"] for answer in answers if answer.status_code == 201]
    refused = {answer.json()["existing_session_id"] for answer in answers if answer.status_code == 409}
    assert refused == {created}
    assert database.sessions.count_documents(place) == 1


async def test_one_of_50_creations_on_a_registered_machine_succeeds(
    pair: Pair, api: Api, database: Documents
) -> None:
    machine = api.machine()
    place = {"project_id": unique("project"), "machine_id": machine["machine_id"]}
    answers = await pair.crowd("POST", "/api/sessions", place)
    assert statuses(answers) == {201: 1, 409: CROWD - 1}
    [created] = [answer.json()["session_id"] for answer in answers if answer.status_code == 201]
    assert api.read_machine(machine)["active_sessions"] == [created]
    assert database.sessions.count_documents(place) == 1


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "unregistered"])
async def test_one_of_50_sessions_gets_a_docker_slot(
    pair: Pair, api: Api, database: Documents, registered: bool
) -> None:
    machine_id = api.machine()["machine_id"] if registered else unique("machine")

    def create() -> load.Request:
        body = {"project_id": unique("project"), "machine_id": machine_id, "docker_slot": 2}
        return pair.post("/api/sessions", body)

    answers = await load.at_once(*(create() for _ in range(CROWD)))
    assert statuses(answers) == {201: 1, 409: CROWD - 1}
    assert database.sessions.count_documents({"machine_id": machine_id}) == 1


@pytest.mark.parametrize("status", ["stalled", "failed"])
async def test_50_recoveries_have_one_successor(
    pair: Pair, api: Api, database: Documents, status: str
) -> None:
    session = api.session()
    tasks = [
        api.task_in(session, state) for state in ("pending", "in_progress", "failed", "blocked", "completed")
    ]
    api.set_session(session, status)
    path = f"/api/sessions/{session['session_id']}/recover"
    answers = await load.at_once(
        *(pair.post(path, {"new_machine_id": unique("machine")}) for _ in range(CROWD))
    )
    assert statuses(answers) == {201: 1, 200: CROWD - 1}
    [successor] = {answer.json()["session_id"] for answer in answers}
    assert database.sessions.count_documents({"project_id": session["project_id"]}) == 2
    carried = [task["metadata"]["recovered_from_task"] for task in api.tasks_of({"session_id": successor})]
    assert sorted(carried) == sorted(task["task_id"] for task in tasks[:4]), "no task lost, none twice"


async def test_50_recoveries_to_one_registered_machine_and_slot_have_one_successor(
    pair: Pair, api: Api
) -> None:
    session, machine = api.session_in("stalled"), api.machine()
    body = {"new_machine_id": machine["machine_id"], "docker_slot": 3}
    answers = await pair.crowd("POST", f"/api/sessions/{session['session_id']}/recover", body)
    assert statuses(answers) == {201: 1, 200: CROWD - 1}
    [successor] = {answer.json()["session_id"] for answer in answers}
    assert api.read_machine(machine)["active_sessions"] == [successor]


@pytest.mark.parametrize("before", ["pending", "blocked"])
async def test_one_of_50_claims_a_task(pair: Pair, api: Api, before: str) -> None:
    session = api.session()
    task = api.task_in(session, before)
    answers = await pair.crowd("PATCH", f"/api/tasks/{task['task_id']}", {"status": "in_progress"})
    assert statuses(answers) == {200: 1, 400: CROWD - 1}
    assert api.read_session(session)["current_task_id"] == task["task_id"]


async def test_50_workers_share_25_tasks_without_doing_one_twice(pair: Pair, api: Api) -> None:
    session = api.session()
    tasks = [api.task(session)["task_id"] for _ in range(25)]
    answers = await load.at_once(
        *(pair.patch(f"/api/tasks/{task}", {"status": "in_progress"}) for task in tasks * 2)
    )
    assert statuses(answers) == {200: 25, 400: 25}


async def test_50_registrations_of_one_machine_make_one(pair: Pair, database: Documents) -> None:
    body = {"machine_id": unique("machine"), "hostname": unique("host"), "docker_slots": [1]}
    answers = await pair.crowd("POST", "/api/machines", body)
    assert statuses(answers) == {201: 1, 200: CROWD - 1}
    assert database.machines.count_documents({"machine_id": body["machine_id"]}) == 1


async def test_one_of_50_hosts_gets_a_machine_id(pair: Pair, database: Documents) -> None:
    machine_id = unique("machine")

    def register() -> load.Request:
        body = {"machine_id": machine_id, "hostname": unique("host"), "docker_slots": []}
        return pair.post("/api/machines", body)

    answers = await load.at_once(*(register() for _ in range(CROWD)))
    assert statuses(answers) == {201: 1, 409: CROWD - 1}
    assert database.machines.count_documents({"machine_id": machine_id}) == 1


async def test_50_deletions_delete_once(pair: Pair, api: Api, database: Documents) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    api.task(session)
    answers = await pair.crowd("DELETE", f"/api/sessions/{session['session_id']}")
    assert statuses(answers) == {204: 1, 404: CROWD - 1}
    assert api.read_machine(machine)["active_sessions"] == []
    assert database.tasks.count_documents({"session_id": session["session_id"]}) == 0


async def test_50_paused_sessions_of_one_place_have_one_active(pair: Pair, api: Api) -> None:
    place = {"project_id": unique("project"), "machine_id": unique("machine")}
    paused = [api.session_in("paused", **place)["session_id"] for _ in range(10)]
    answers = await load.at_once(
        *(pair.patch(f"/api/sessions/{session_id}", {"status": "active"}) for session_id in paused * 5)
    )
    winners = {answer.json()["session_id"] for answer in answers if answer.status_code == 200}
    assert len(winners) == 1
    refused = {answer.json()["existing_session_id"] for answer in answers if answer.status_code == 409}
    assert refused == winners
    states = sorted(api.read_session(session_id)["status"] for session_id in paused)
    assert states == ["active", *["paused"] * 9]
