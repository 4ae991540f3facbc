"""Heartbeats by the dozen while a session ends: whatever comes first, an ended session never lives again."""

from __future__ import annotations

import asyncio

import pytest

from api_harness import load
from api_harness.api import Api, Json, ago, unique
from api_harness.pair import CROWD, Pair, statuses
from api_harness.servers import Documents

ROUNDS = 5

ENDS: dict[str, tuple[str, str, Json, str]] = {
    "mark-failed": ("POST", "/mark-failed", {"error_message": "x"}, "failed"),
    "complete": ("PATCH", "", {"status": "completed"}, "completed"),
    "fail": ("PATCH", "", {"status": "failed"}, "failed"),
    "recover": ("POST", "/recover", {"new_machine_id": "elsewhere"}, "completed"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_heartbeat_never_revives_an_ended_session(
    pair: Pair, api: Api, database: Documents, end: str
) -> None:
    method, action, body, ended = ENDS[end]
    if end == "recover":
        body = body | {"new_machine_id": unique("machine")}
    for _ in range(ROUNDS):
        machine = api.machine()
        session = api.session(machine_id=machine["machine_id"])
        if end == "recover":
            api.act(session, "mark-failed", {"error_message": "x"})
        path = f"/api/sessions/{session['session_id']}"
        # With metadata each goes to the database by itself, without they go together.
        bodies = [{"metadata": {"n": n}} if n % 2 else None for n in range(CROWD - 1)]
        beats = [pair.post(f"{path}/heartbeat", body) for body in bodies]
        half = len(beats) // 2
        answers = await load.at_once(*beats[:half], pair.send(method, path + action, body), *beats[half:])
        ending = answers.pop(half)
        assert ending.is_success, ending.text
        assert set(statuses(answers)) <= {200, 409}
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["status"] == "active"
                assert answer.json()["completed_at"] is None
        stored = database.sessions.find_one({"session_id": session["session_id"]})
        assert stored
        assert stored["status"] == ended
        assert api.read_machine(machine)["active_sessions"] == []
        late = await pair.crowd("POST", f"{path}/heartbeat")
        assert statuses(late) == {409: CROWD}
        assert api.read_session(session)["status"] == ended
        if end == "recover":
            assert {answer.json()["recovered_by"] for answer in late} == {ending.json()["session_id"]}


async def test_a_stalled_session_is_either_revived_or_recovered(pair: Pair, api: Api) -> None:
    """A heartbeat and a recovery at the same moment: exactly one of the two sessions lives."""
    for _ in range(ROUNDS):
        session = api.session_in("stalled")
        path = f"/api/sessions/{session['session_id']}"
        recover = {"new_machine_id": unique("machine")}
        beats = [pair.post(f"{path}/heartbeat") for _ in range(10)]
        recoveries = [pair.post(f"{path}/recover", recover) for _ in range(10)]
        mixed = [request for both in zip(beats, recoveries, strict=True) for request in both]
        answers = await load.at_once(*mixed)
        recovered = {a.json()["session_id"] for a in answers[1::2] if a.status_code in {200, 201}}
        now = api.read_session(session)
        found = await pair.get(f"/api/sessions?project_id={session['project_id']}")
        if recovered:
            assert len(recovered) == 1
            assert (now["status"], now["recovered_by"]) == ("completed", *recovered)
            assert found["total"] == 2
        else:
            assert now["status"] == "active"
            assert statuses(answers[1::2]) == {400: 10}
            assert found["total"] == 1


async def test_of_opposite_ends_one_wins_and_stays(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        session = api.session()
        path = f"/api/sessions/{session['session_id']}"
        requests: list[load.Request] = []
        for _ in range(CROWD // 2):
            requests.append(pair.patch(path, {"status": "completed"}))
            requests.append(pair.post(f"{path}/mark-failed", {"error_message": "x"}))
        answers = await load.at_once(*requests)
        won = {answer.json()["status"] for answer in answers if answer.status_code == 200}
        assert won == {api.read_session(session)["status"]}
        times = {answer.json()["completed_at"] for answer in answers if answer.status_code == 200}
        assert len(times) == 1, "it ended once"


async def test_a_scan_never_marks_a_session_that_has_ended_or_beaten(
    pair: Pair, api: Api, database: Documents
) -> None:
    sessions = [api.session() for _ in range(20)]
    ids = [session["session_id"] for session in sessions]
    database.sessions.update_many({"session_id": {"$in": ids}}, {"$set": {"last_heartbeat": ago(minutes=9)}})
    ends = [pair.patch(f"/api/sessions/{session_id}", {"status": "completed"}) for session_id in ids[:10]]
    beats = [pair.post(f"/api/sessions/{session_id}/heartbeat") for session_id in ids[10:]]
    scans = [pair.post("/api/sessions/detect-failures") for _ in range(6)]
    answers = await asyncio.gather(*scans[:2], *ends, *scans[2:4], *beats, *scans[4:])
    assert statuses(answers) == {200: len(answers)}
    states = dict.fromkeys(("completed", "active", "stalled"), 0)
    for session_id in ids:
        states[api.read_session(session_id)["status"]] += 1
    assert states == {"completed": 10, "active": 10, "stalled": 0}


async def test_a_fenced_session_stays_fenced(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        machine = api.machine()
        session = api.session_in("stalled", machine_id=machine["machine_id"], docker_slot=1)
        path = f"/api/sessions/{session['session_id']}"
        beats = [pair.post(f"{path}/heartbeat") for _ in range(10)]
        fence = pair.post(f"{path}/prepare-recovery", {"clear_machine_assignment": True})
        answers = await load.at_once(*beats[:5], fence, *beats[5:])
        fenced = answers[5].status_code == 200
        listed = api.read_machine(machine)["active_sessions"]
        now = api.read_session(session)["status"]
        assert (now, listed) == (("stalled", []) if fenced else ("active", [session["session_id"]]))
        late = await pair.crowd("POST", f"{path}/heartbeat")
        assert statuses(late) == ({409: CROWD} if fenced else {200: CROWD})
