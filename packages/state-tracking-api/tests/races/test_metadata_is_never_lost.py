"""Metadata merged by 50 at once: nobody's part overwrites another's."""

from __future__ import annotations

import pytest

from api_harness import load
from api_harness.api import Api
from api_harness.pair import CROWD, Pair, statuses


@pytest.mark.parametrize("nested", [False, True], ids=["at the top", "nested"])
@pytest.mark.parametrize("way", ["heartbeat", "patch", "both", "task", "machine"])
async def test_every_part_is_there_in_the_end(pair: Pair, api: Api, way: str, nested: bool) -> None:
    machine = api.machine()
    session = api.session(machine_id=machine["machine_id"])
    task = api.task(session)
    session_path = f"/api/sessions/{session['session_id']}"

    def write(number: int) -> load.Request:
        part = {f"key.{number}": {"$value": number}}
        body = {"metadata": {"shared": part} if nested else part}
        if way == "task":
            return pair.patch(f"/api/tasks/{task['task_id']}", body)
        if way == "machine":
            return pair.patch(f"/api/machines/{machine['machine_id']}", body)
        if way == "heartbeat" or (way == "both" and number % 2):
            return pair.post(f"{session_path}/heartbeat", body)
        return pair.patch(session_path, body)

    answers = await load.at_once(*(write(number) for number in range(CROWD)))
    assert statuses(answers) == {200: CROWD}
    stored = {
        "task": lambda: api.read_task(task),
        "machine": lambda: api.read_machine(machine),
    }.get(way, lambda: api.read_session(session))()["metadata"]
    everything = {f"key.{number}": {"$value": number} for number in range(CROWD)}
    assert stored == ({"shared": everything} if nested else everything)
