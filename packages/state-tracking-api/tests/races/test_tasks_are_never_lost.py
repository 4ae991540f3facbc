"""A task that was acknowledged while its session ends, moves or goes is where it belongs, or gone with it."""

from __future__ import annotations

import pytest

from api_harness import load
from api_harness.api import Api, Json, expect, unique
from api_harness.pair import Pair, statuses
from api_harness.servers import Documents

ROUNDS = 4
CREATIONS = 24


def creations(pair: Pair, session: Json) -> list[load.Request]:
    """Requests that each create a task of the session."""
    body = {"session_id": session["session_id"], "project_id": session["project_id"]}
    return [pair.post("/api/tasks", body | {"task_name": f"task {n}"}) for n in range(CREATIONS)]


async def race(pair: Pair, session: Json, *others: load.Request) -> list[str]:
    """Create tasks while the others happen; the ids of the tasks that were acknowledged."""
    requests = creations(pair, session)
    half = len(requests) // 2
    answers = await load.at_once(*requests[:half], *others, *requests[half:])
    for other in answers[half : half + len(others)]:
        assert other.is_success, other.text
    made = answers[:half] + answers[half + len(others) :]
    assert set(statuses(made)) <= {201, 400}
    return [answer.json()["task_id"] for answer in made if answer.status_code == 201]


async def test_no_task_is_added_to_a_session_after_its_end(pair: Pair, api: Api) -> None:
    for status in ("completed", "failed") * (ROUNDS // 2):
        session = api.session()
        path = f"/api/sessions/{session['session_id']}"
        acknowledged = await race(pair, session, pair.patch(path, {"status": status}))
        tasks = api.tasks_of(session)
        assert sorted(task["task_id"] for task in tasks) == sorted(acknowledged)


async def test_every_acknowledged_task_of_a_recovered_session_is_carried(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        session = api.session_in("stalled")
        path = f"/api/sessions/{session['session_id']}"
        recovery = pair.post(f"{path}/recover", {"new_machine_id": unique("machine")})
        acknowledged = await race(pair, session, recovery)
        successor = {"session_id": api.read_session(session)["recovered_by"]}
        carried = [task["metadata"]["recovered_from_task"] for task in api.tasks_of(successor)]
        assert sorted(carried) == sorted(acknowledged)
        assert all(task["metadata"].get("carried_to") for task in api.tasks_of(session))


async def test_no_task_outlives_a_deleted_session(pair: Pair, api: Api, database: Documents) -> None:
    for _ in range(ROUNDS):
        session = api.session()
        await race(pair, session, pair.send("DELETE", f"/api/sessions/{session['session_id']}"))
        assert database.tasks.count_documents({"session_id": session["session_id"]}) == 0


async def test_no_task_is_in_progress_under_a_failed_session(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        session = api.session()
        tasks = [api.task(session)["task_id"] for _ in range(24)]
        path = f"/api/sessions/{session['session_id']}"
        claims = [pair.patch(f"/api/tasks/{task}", {"status": "in_progress"}) for task in tasks]
        failure = pair.post(f"{path}/mark-failed", {"error_message": "x"})
        answers = await load.at_once(*claims[:12], failure, *claims[12:])
        assert answers.pop(12).status_code == 200
        assert set(statuses(answers)) <= {200, 409}
        states = {task["task_id"]: task["status"] for task in api.tasks_of(session)}
        for task, answer in zip(tasks, answers, strict=True):
            assert states[task] == ("failed" if answer.status_code == 200 else "pending")
        assert api.read_session(session)["current_task_id"] is None


async def test_a_task_completed_while_its_session_is_recovered_is_done_once(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        session = api.session()
        tasks = [api.task_in(session, "in_progress")["task_id"] for _ in range(12)]
        api.set_session(session, "stalled")
        path = f"/api/sessions/{session['session_id']}"
        ends = [pair.patch(f"/api/tasks/{task}", {"status": "completed"}) for task in tasks]
        recovery = pair.post(f"{path}/recover", {"new_machine_id": unique("machine")})
        answers = await load.at_once(*ends[:6], recovery, *ends[6:])
        recovered = answers.pop(6)
        assert recovered.status_code == 201, recovered.text
        assert set(statuses(answers)) <= {200, 409}
        done = [task for task, answer in zip(tasks, answers, strict=True) if answer.status_code == 200]
        carried = [t["metadata"]["recovered_from_task"] for t in api.tasks_of(recovered.json())]
        assert sorted(done + carried) == sorted(tasks), "each is either done or to be done again"


async def test_the_current_task_is_always_one_in_progress(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        session = api.session()
        tasks = [api.task_in(session, "in_progress")["task_id"] for _ in range(20)]
        ends = [pair.patch(f"/api/tasks/{task}", {"status": "completed"}) for task in tasks]
        assert statuses(await load.at_once(*ends)) == {200: 20}
        assert api.read_session(session)["current_task_id"] is None


@pytest.mark.parametrize("end", ["completed", "failed", "blocked", "deleted"])
@pytest.mark.parametrize("status", ["active", "stalled"])
def test_a_heartbeat_overtaken_by_the_end_of_its_task_does_not_bring_the_task_back(
    api: Api, end: str, status: str
) -> None:
    """A client beats beside its work: the heartbeat that names a task may arrive after the task's end."""
    session = api.session()
    task = api.task_in(session, "in_progress")
    if end == "deleted":
        expect(api.delete(f"/api/tasks/{task['task_id']}"), 204)
    else:
        api.set_task(task, end)
    if status == "stalled":
        api.set_session(session, "stalled")
    late = expect(
        api.act(session, "heartbeat", {"current_task_id": task["task_id"], "metadata": {"a": 1}}), 200
    )
    assert (late["status"], late["current_task_id"], late["metadata"]) == ("active", None, {"a": 1})
    assert late["last_heartbeat"] > session["last_heartbeat"]


def test_a_task_that_is_taken_up_again_is_the_current_one_again(api: Api) -> None:
    session = api.session()
    task = api.set_task(api.task_in(session, "blocked"), "in_progress")
    beaten = expect(api.act(session, "heartbeat", {"current_task_id": task["task_id"]}), 200)
    assert beaten["current_task_id"] == task["task_id"]


async def test_heartbeats_beside_the_end_of_a_task_leave_no_current_task(pair: Pair, api: Api) -> None:
    for _ in range(ROUNDS):
        session = api.session()
        task = api.task_in(session, "in_progress")
        beat = {"current_task_id": task["task_id"]}
        path = f"/api/sessions/{session['session_id']}/heartbeat"
        answers = await load.at_once(
            *(pair.post(path, beat) for _ in range(CREATIONS // 2)),
            pair.patch(f"/api/tasks/{task['task_id']}", {"status": "completed"}),
            *(pair.post(path, beat) for _ in range(CREATIONS // 2)),
        )
        assert set(statuses(answers)) == {200}
        assert api.read_session(session)["current_task_id"] is None
