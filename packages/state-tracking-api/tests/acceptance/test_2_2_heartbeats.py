"""PRD 2.2: a session that lives says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from api_harness import load
from api_harness.api import Api, ago, expect, expect_error, moment
from api_harness.server import Server
from api_harness.servers import Documents


@pytest.mark.prd("2.2.a")
def test_2_2_a_a_heartbeat_sets_last_heartbeat_to_the_present(api: Api, database: Documents) -> None:
    session = api.session()
    database.sessions.update_one(
        {"session_id": session["session_id"]}, {"$set": {"last_heartbeat": ago(seconds=60)}}
    )
    asked = datetime.now(UTC)
    expect(api.act(session, "heartbeat"), 200)
    answered = datetime.now(UTC)
    beat = moment(api.read_session(session)["last_heartbeat"])
    # The server's times are whole milliseconds.
    assert asked - timedelta(milliseconds=1) <= beat <= answered


@pytest.mark.prd("2.2.b")
def test_2_2_b_a_heartbeat_names_the_current_task(api: Api) -> None:
    session = api.session()
    expect(api.act(session, "heartbeat", {"current_task_id": "task-123"}), 200)
    assert api.read_session(session)["current_task_id"] == "task-123"


@pytest.mark.prd("2.2.c")
def test_2_2_c_a_heartbeat_revives_a_stalled_session(api: Api) -> None:
    session = api.session_in("stalled")
    expect(api.act(session, "heartbeat"), 200)
    assert api.read_session(session)["status"] == "active"


@pytest.mark.prd("2.2.d")
async def test_2_2_d_100_concurrent_heartbeats_take_less_than_500_ms_at_p95(api: Api, server: Server) -> None:
    paths = [f"/api/sessions/{api.session()['session_id']}/heartbeat" for _ in range(20)]
    beats = [("POST", paths[number % len(paths)]) for number in range(100)]
    limit = 0.5
    assert await load.p95_of(server.base_url, beats, server.key, below=limit) < limit


@pytest.mark.prd("2.2.e")
def test_2_2_e_a_heartbeat_for_an_id_that_is_no_uuid_is_not_found(api: Api) -> None:
    expect_error(api.post("/api/sessions/invalid-uuid/heartbeat"), 404)


@pytest.mark.prd("2.2.f")
async def test_2_2_f_two_heartbeats_within_a_second_both_succeed(api: Api, server: Server) -> None:
    path = f"/api/sessions/{api.session()['session_id']}/heartbeat"
    async with load.Crowd(server.base_url, server.key) as crowd:
        answers = await load.at_once(*(crowd.request("POST", path) for _ in range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
