"""PRD 2.4: which sessions are well, and which have fallen silent."""

from __future__ import annotations

import pytest

from api_harness import load
from api_harness.api import Api, Json, ago, expect
from api_harness.server import Server
from api_harness.servers import Documents, Servers


def silence(database: Documents, session: Json, **since: float) -> None:
    """Set the session's last heartbeat back by `timedelta(**since)`."""
    changed = database.sessions.update_one(
        {"session_id": session["session_id"]}, {"$set": {"last_heartbeat": ago(**since)}}
    )
    assert changed.modified_count == 1


def stalled_ids(api: Api) -> list[str]:
    """The ids that GET /api/sessions/stalled lists, in its order."""
    body = expect(api.get("/api/sessions/stalled"), 200)
    return [session["session_id"] for session in body["stalled_sessions"]]


@pytest.mark.prd("2.4.a")
def test_2_4_a_the_summary_counts_sessions_by_state(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        for status in ("active", "active", "stalled", "failed", "completed"):
            api.session_in(status)
        summary = expect(api.get("/api/sessions/health"), 200)
    counted = {
        name: summary[f"{name}_sessions"] for name in ("total", "active", "stalled", "failed", "completed")
    }
    assert counted == {"total": 5, "active": 2, "stalled": 1, "failed": 1, "completed": 1}


@pytest.mark.prd("2.4.b")
def test_2_4_b_a_session_silent_for_5_minutes_is_listed_as_stalled(api: Api, database: Documents) -> None:
    session = api.session()
    silence(database, session, minutes=5)
    assert session["session_id"] in stalled_ids(api)


@pytest.mark.prd("2.4.c")
def test_2_4_c_a_session_that_has_just_beaten_is_not_listed_as_stalled(api: Api) -> None:
    session = api.session()
    expect(api.act(session, "heartbeat"), 200)
    assert session["session_id"] not in stalled_ids(api)


@pytest.mark.prd("2.4.d")
def test_2_4_d_an_active_session_within_its_threshold_is_healthy(api: Api) -> None:
    session = api.session()
    health = expect(api.get(f"/api/sessions/{session['session_id']}/health"), 200)
    assert health["is_healthy"] is True


@pytest.mark.prd("2.4.e")
def test_2_4_e_the_threshold_can_be_set(api: Api, database: Documents, shared: Servers) -> None:
    impatient = shared.start(database, STALL_THRESHOLD_MS="60000")
    session = api.session()
    silence(database, session, seconds=90)
    with Api(impatient.base_url, impatient.key) as other:
        assert session["session_id"] in stalled_ids(other)
        assert expect(other.get("/api/sessions/stalled"), 200)["stall_threshold_ms"] == 60000
    assert session["session_id"] not in stalled_ids(api), "90 s are within the default of 3 minutes"


@pytest.mark.prd("2.4.f")
async def test_2_4_f_100_concurrent_health_summaries_take_less_than_1000_ms_at_p95(
    api: Api, server: Server
) -> None:
    for status in ("active", "paused", "stalled", "failed", "completed"):
        for _ in range(10):
            api.session_in(status)
    limit, requests = 1.0, [("GET", "/api/sessions/health")] * 100
    assert await load.p95_of(server.base_url, requests, server.key, below=limit) < limit
