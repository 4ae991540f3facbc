"""`active_sessions` holds exactly the live sessions at every moment at which it can be read."""

from __future__ import annotations

import asyncio

from pymongo import MongoClient

from api_harness import load
from api_harness.api import Api, Json, expect, unique
from api_harness.pair import Pair, statuses, while_running
from api_harness.servers import Document, Documents

LIVE = ["active", "paused", "stalled"]


class Watch:
    """Compares a machine with its sessions in one snapshot of the database, as often as it is asked."""

    def __init__(self, mongo: MongoClient[Document], database: Documents, machine_id: str) -> None:
        self.mongo = mongo
        self.database = database
        self.machine_id = machine_id
        self.times = 0
        self.sizes: set[int] = set()

    async def __call__(self) -> None:
        with self.mongo.start_session(snapshot=True) as snapshot:
            machine = self.database.machines.find_one({"machine_id": self.machine_id}, session=snapshot)
            live = self.database.sessions.find(
                {"machine_id": self.machine_id, "status": {"$in": LIVE}}, {"session_id": 1}, session=snapshot
            )
            expected = sorted(session["session_id"] for session in live)
        self.times += 1
        if machine:
            assert sorted(machine["active_sessions"]) == expected
            self.sizes.add(len(expected))
        # Let the requests go on: the snapshot is read synchronously.
        await load.breathe()


async def test_active_sessions_is_exact_while_sessions_come_and_go(
    pair: Pair, api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    machine = api.machine(docker_slots=list(range(60)))
    watch = Watch(mongo, database, machine["machine_id"])

    async def life(number: int) -> None:
        body = {"project_id": unique("project"), "machine_id": machine["machine_id"], "docker_slot": number}
        created = await pair.post("/api/sessions", body)
        assert created.status_code == 201, created.text
        path = f"/api/sessions/{created.json()['session_id']}"
        ends: list[tuple[str, str, Json | None]] = [
            ("DELETE", "", None),
            ("PATCH", "", {"status": "completed"}),
            ("POST", "/mark-failed", {"error_message": "x"}),
            ("PATCH", "", {"status": "stalled"}),
            ("PATCH", "", {"status": "paused"}),
        ]
        method, action, content = ends[number % len(ends)]
        ended = await pair.send(method, path + action, content)
        assert ended.is_success, ended.text
        if number % len(ends) == 3:
            moved = await pair.post(f"{path}/recover", {"new_machine_id": unique("machine")})
            assert moved.status_code == 201, moved.text

    async with while_running(watch):
        await asyncio.gather(*(life(number) for number in range(50)))
    assert watch.times > 5
    assert len(watch.sizes) > 2, "it was seen to change"
    assert len(api.read_machine(machine)["active_sessions"]) == 10, "the paused ones are left"


async def test_a_session_created_while_its_machine_is_registered_is_on_it(
    pair: Pair, api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    for _ in range(2):
        machine_id = unique("machine")
        registration = {"machine_id": machine_id, "hostname": unique("host"), "docker_slots": [0]}
        watch = Watch(mongo, database, machine_id)
        creations = [
            pair.post("/api/sessions", {"project_id": unique("project"), "machine_id": machine_id})
            for _ in range(49)
        ]
        async with while_running(watch):
            answers = await load.at_once(
                *creations[:25], pair.post("/api/machines", registration), *creations[25:]
            )
        assert statuses(answers) == {201: 50}
        created = [answer.json().get("session_id") for answer in answers]
        expected = sorted(session_id for session_id in created if session_id)
        assert sorted(api.read_machine(machine_id)["active_sessions"]) == expected


async def test_machine_heartbeats_and_registrations_lose_no_session(
    pair: Pair, api: Api, database: Documents, mongo: MongoClient[Document]
) -> None:
    machine = api.machine()
    path = f"/api/machines/{machine['machine_id']}"
    again = {name: machine[name] for name in ("machine_id", "hostname", "docker_slots")}
    watch = Watch(mongo, database, machine["machine_id"])
    requests: list[load.Request] = []
    for _ in range(16):
        body = {"project_id": unique("project"), "machine_id": machine["machine_id"]}
        requests += [
            pair.post("/api/sessions", body),
            pair.post(f"{path}/heartbeat"),
            pair.post("/api/machines", again),
        ]
    async with while_running(watch):
        answers = await load.at_once(*requests)
    assert statuses(answers) == {201: 16, 200: 32}
    assert len(api.read_machine(machine)["active_sessions"]) == 16


async def test_a_machine_is_not_deleted_under_a_session_that_is_being_created(pair: Pair, api: Api) -> None:
    for _ in range(10):
        machine = api.machine()
        path = f"/api/machines/{machine['machine_id']}"
        creations = [
            pair.post("/api/sessions", {"project_id": unique("p"), "machine_id": machine["machine_id"]})
            for _ in range(6)
        ]
        answers = await load.at_once(*creations[:3], pair.send("DELETE", path), *creations[3:])
        deletion = answers.pop(3)
        assert statuses(answers) == {201: 6}
        if deletion.status_code == 409:
            assert len(expect(api.get(path), 200)["active_sessions"]) == 6
        else:
            assert deletion.status_code == 204
            assert api.get(path).status_code == 404


async def test_a_slot_is_not_taken_away_from_a_session_that_is_being_created(pair: Pair, api: Api) -> None:
    for _ in range(10):
        machine = api.machine(docker_slots=[1, 2])
        path = f"/api/machines/{machine['machine_id']}"
        body = {"project_id": unique("project"), "machine_id": machine["machine_id"], "docker_slot": 1}
        creation, shrink = await load.at_once(
            pair.post("/api/sessions", body), pair.patch(path, {"docker_slots": [2]})
        )
        slots = api.read_machine(machine)["docker_slots"]
        if creation.status_code == 201:
            assert (shrink.status_code, slots) == (409, [1, 2])
        else:
            assert (creation.status_code, shrink.status_code, slots) == (400, 200, [2])


async def test_no_session_enters_a_machine_that_goes_into_maintenance(pair: Pair, api: Api) -> None:
    machine = api.machine()
    path = f"/api/machines/{machine['machine_id']}"
    creations = [
        pair.post("/api/sessions", {"project_id": unique("project"), "machine_id": machine["machine_id"]})
        for _ in range(49)
    ]
    answers = await load.at_once(
        *creations[:20], pair.patch(path, {"status": "maintenance"}), *creations[20:]
    )
    assert answers.pop(20).status_code == 200
    assert set(statuses(answers)) <= {201, 409}
    assert len(api.read_machine(machine)["active_sessions"]) == statuses(answers)[201]
    body = {"project_id": unique("project"), "machine_id": machine["machine_id"]}
    assert (await pair.post("/api/sessions", body)).status_code == 409


async def test_within_a_process_those_who_want_the_same_machine_queue_for_it(
    api: Api, mongo: MongoClient[Document]
) -> None:
    """Who is only tried again and again may lose every time, until the request has timed out."""

    def collisions() -> int:
        return mongo.admin.command("serverStatus")["transactions"]["totalAborted"]

    machine = api.machine(docker_slots=list(range(60)))
    path = f"/api/machines/{machine['machine_id']}"
    again = {name: machine[name] for name in ("machine_id", "hostname", "docker_slots")}
    sessions = [{"project_id": unique("project"), "machine_id": machine["machine_id"]} for _ in range(10)]
    original = api.session_in("stalled")
    takeover = {"new_machine_id": machine["machine_id"]}
    before = collisions()
    async with load.Crowd(str(api.http.base_url), api.http.headers["X-API-Key"]) as crowd:
        answers = await load.at_once(
            *(crowd.request("PATCH", path, {"metadata": {str(n): n}}) for n in range(10)),
            *(crowd.request("POST", f"{path}/heartbeat") for _ in range(10)),
            *(crowd.request("POST", "/api/machines", again) for _ in range(10)),
            *(crowd.request("POST", "/api/sessions", new) for new in sessions),
            crowd.request("POST", f"/api/sessions/{original['session_id']}/recover", takeover),
        )
    assert statuses(answers) == {200: 30, 201: 11}
    assert collisions() == before
