"""What the page polls: order, counts, filters, chains, and 304 where nothing has changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api_harness.api import Api, Json, ago, expect, expect_error, unique
from api_harness.server import Server, wait_until
from api_harness.servers import Documents, Servers
from state_tracking_api.health import overdue
from state_tracking_api.lifecycle import SessionStatus
from state_tracking_api.overview import branches

VIEW = "/api/dashboard/overview"


def look(api: Api, **filters: object) -> Json:
    return expect(api.get(VIEW, params={name: str(value) for name, value in filters.items()}), 200)


def ids(view: Json) -> list[str]:
    return [row["session_id"] for row in view["sessions"]]


def silence(database: Documents, session: Json, **parts: float) -> None:
    """Let the session's last heartbeat lie back by this much."""
    database["sessions"].update_one(
        {"session_id": session["session_id"]}, {"$set": {"last_heartbeat": ago(**parts)}}
    )


@pytest.mark.parametrize(
    "path",
    [
        VIEW,
        "/api/dashboard/names",
        "/api/dashboard/machines",
        "/api/dashboard/trends",
        "/api/dashboard/sessions/nobody",
    ],
)
def test_every_view_needs_a_key(anonymous: Api, path: str) -> None:
    expect_error(anonymous.get(path), 401)


def test_who_needs_somebody_comes_first(api: Api, database: Documents) -> None:
    project = unique("project")
    completed = api.session_in("completed", project_id=project)
    archived = api.session_in("failed", project_id=project)
    expect(api.act(archived, "archive"), 200)
    paused = api.session_in("paused", project_id=project)
    older = api.session(project_id=project)
    newer = api.session(project_id=project)
    failed = api.session_in("failed", project_id=project)
    silent = api.session(project_id=project)
    silence(database, silent, minutes=10)
    stalled = api.session_in("stalled", project_id=project)
    silence(database, stalled, minutes=20)
    expected = [stalled, silent, failed, newer, older, paused, completed, archived]
    view = look(api, project_id=project)
    assert ids(view) == [session["session_id"] for session in expected]
    assert view["counts"] == {"stalled": 2, "failed": 2, "active": 2, "paused": 1, "completed": 1}
    assert view["total"] == 8
    assert [row["is_stalled"] for row in view["sessions"]] == [True, True] + [False] * 6

    for offset in range(8):
        page = look(api, project_id=project, limit=1, offset=offset)
        assert ids(page) == [expected[offset]["session_id"]]


def test_a_silent_session_counts_as_stalled_before_a_scan_has_marked_it(
    api: Api, database: Documents
) -> None:
    project = unique("project")
    silent = api.session(project_id=project)
    api.session(project_id=project)
    silence(database, silent, minutes=4)
    assert ids(look(api, project_id=project, status="stalled")) == [silent["session_id"]]
    assert silent["session_id"] not in ids(look(api, project_id=project, status="active"))
    [row] = look(api, project_id=project, status="stalled")["sessions"]
    assert (row["status"], row["is_stalled"], row["stall_threshold_ms"]) == ("active", True, 180_000)


def test_a_row_says_how_far_the_session_is(api: Api) -> None:
    session = api.session(docker_slot=3)
    for status in ("completed", "completed", "failed", "in_progress", "pending", "blocked"):
        api.task_in(session, status, task_name=f"a task that is {status}")
    [row] = look(api, project_id=session["project_id"])["sessions"]
    assert row["tasks"] == {"completed": 2, "failed": 1, "in_progress": 1, "pending": 1, "blocked": 1}
    assert row["current_task"] == "a task that is in_progress"
    assert (row["machine_id"], row["docker_slot"]) == (session["machine_id"], 3)


def test_filters_are_taken_together(api: Api) -> None:
    project, machine = unique("project"), unique("machine")
    both = api.session(project_id=project, machine_id=machine)
    api.session(project_id=project)
    api.session(machine_id=machine)
    assert ids(look(api, project_id=project, machine_id=machine)) == [both["session_id"]]
    assert look(api, project_id=project, machine_id=machine, status="failed")["total"] == 0


@pytest.mark.parametrize(("name", "value"), [("status", "bogus"), ("limit", "101"), ("status[$ne]", "x")])
def test_a_filter_that_means_nothing_is_refused(api: Api, name: str, value: str) -> None:
    expect_error(
        api.get(VIEW, params={name: value}), 400, fields=("status",) if name != "limit" else ("limit",)
    )


def test_a_view_that_has_not_changed_is_not_sent_again(api: Api) -> None:
    session = api.session()
    for path in (
        f"{VIEW}?project_id={session['project_id']}",
        f"/api/dashboard/sessions/{session['session_id']}",
    ):
        tag = api.get(path).headers["etag"]
        again = api.get(path, headers={"If-None-Match": f'"other", W/{tag}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["x-ratelimit-remaining"]
        expect(api.act(session, "heartbeat"), 200)
        changed = api.get(path, headers={"If-None-Match": tag})
        assert changed.status_code == 200
        assert changed.headers["etag"] != tag


def test_a_long_error_message_is_cut_and_large_metadata_left_out(api: Api) -> None:
    session = api.session(metadata={"large": "x" * 50_000})
    expect(api.act(session, "mark-failed", {"error_message": "y" * 20_000}), 200)
    answer = api.get(VIEW, params={"project_id": session["project_id"]})
    assert len(answer.content) < 25_000
    [row] = answer.json()["sessions"]
    assert row["error_message"] == "y" * 300 + "…"


def test_a_session_comes_with_its_tasks_and_its_whole_chain(api: Api) -> None:
    first = api.session_in("stalled")
    names = ["one", "two", "three"]
    for name in names:
        api.task(first, task_name=name)
    second = expect(api.recover(first), 201)
    api.set_session(second, "failed")
    third = expect(api.recover(second), 201)
    chain = [session["session_id"] for session in (first, second, third)]
    for session in (first, second, third):
        view = expect(api.get(f"/api/dashboard/sessions/{session['session_id']}"), 200)
        assert [link["session_id"] for link in view["chain"]] == chain
        assert view["session"] == api.read_session(session)
        assert [task["task_name"] for task in view["tasks"]] == names
        assert sum(view["task_counts"].values()) == 3


def test_a_silent_successor_counts_as_stalled_in_the_chain(api: Api, database: Documents) -> None:
    first = api.session_in("stalled")
    second = expect(api.recover(first), 201)
    silence(database, second, minutes=4)
    view = expect(api.get(f"/api/dashboard/sessions/{first['session_id']}"), 200)
    assert [(link["status"], link["is_stalled"]) for link in view["chain"]] == [
        ("completed", False),
        ("active", True),
    ]


def test_trends_are_the_success_metrics_and_not_sent_again_either(api: Api) -> None:
    session = api.session_in("completed")
    asked = {"project_id": session["project_id"], "since": ago(hours=1).isoformat()}
    path = "/api/dashboard/trends"

    def unchanged() -> str | None:
        """The tag of what is also the summary, and not sent again."""
        shown = api.get(path, params=asked)
        summary = expect(api.get("/api/analytics/summary", params=asked), 200)
        tag = shown.headers["etag"]
        again = api.get(path, params=asked, headers={"If-None-Match": tag})
        same = expect(shown, 200) == {name: value for name, value in summary.items() if name != "until"}
        return tag if same and (again.status_code, again.content) == (304, b"") else None

    # The heartbeats of other tests are added to both once a minute, which may be between the requests.
    tag = wait_until(unchanged, "the summary, and 304 where nothing has changed")
    api.session(project_id=session["project_id"], machine_id=unique("machine"))
    changed = expect(api.get(path, params=asked, headers={"If-None-Match": tag}), 200)
    assert changed["sessions"]["started"] == 2


def test_trends_of_two_thousand_years_are_refused(api: Api) -> None:
    asked = {"since": "0001-01-01T00:00:00Z"}
    expect_error(api.get("/api/dashboard/trends", params=asked), 400, fields=("since",))


def test_a_session_that_does_not_exist_is_not_found(api: Api) -> None:
    for name in ("0f8fad5b-d9cb-469f-a165-70867728950e", "nonsense"):
        expect_error(api.get(f"/api/dashboard/sessions/{name}"), 404)


def test_machines_come_with_the_live_sessions_on_them(api: Api) -> None:
    machine = api.machine(docker_slots=[1, 2])
    there = {"machine_id": machine["machine_id"]}
    held = api.session(**there, docker_slot=2)
    stalled = api.session_in("stalled", **there)
    api.session_in("completed", **there)
    view = expect(api.get("/api/dashboard/machines"), 200)
    [shown] = [each for each in view["machines"] if each["machine_id"] == machine["machine_id"]]
    assert [(each["session_id"], each["docker_slot"], each["is_stalled"]) for each in shown["sessions"]] == [
        (held["session_id"], 2, False),
        (stalled["session_id"], None, True),
    ]


SESSIONS = 10_000


@pytest.fixture(scope="module")
def crowded(shared: Servers) -> tuple[Server, Documents]:
    """A server with ten thousand sessions, most of them completed."""
    database = shared.database()
    server = shared.start(database)
    with Api(server.base_url, server.key) as api:
        template = api.session()
    stored = database["sessions"].find_one({"session_id": template["session_id"]})
    assert stored is not None
    database["sessions"].delete_many({})
    now = datetime.now(UTC)
    kinds = ["completed"] * 90 + ["active"] * 6 + ["failed"] * 2 + ["stalled", "paused"]
    database["sessions"].insert_many(
        [_copy(stored, number, kinds[number % 100], now) for number in range(SESSIONS)]
    )
    return server, database


def _copy(stored: Json, number: int, status: str, now: datetime) -> dict[str, Any]:
    began = now - timedelta(minutes=number)
    ended = {"completed_at": began} if status in {"completed", "failed"} else {}
    return {
        **{name: value for name, value in stored.items() if name != "_id"},
        "session_id": f"0f8fad5b-d9cb-469f-a165-{number:012}",
        "project_id": f"project-{number % 500:03}",
        "machine_id": f"machine-{number:05}",
        "status": status,
        "created_at": began,
        "started_at": began,
        "last_heartbeat": now if status == "active" else began,
        **ended,
    }


def test_ten_thousand_sessions_are_paged_through_in_order(crowded: tuple[Server, Documents]) -> None:
    with Api(crowded[0].base_url, crowded[0].key) as api:
        view = look(api, limit=100)
        assert view["counts"] == {
            "stalled": 100,
            "failed": 200,
            "active": 600,
            "paused": 100,
            "completed": 9_000,
        }
        assert view["total"] == SESSIONS
        assert {row["status"] for row in view["sessions"]} == {"stalled"}
        names = expect(api.get("/api/dashboard/names"), 200)
        assert len(names["projects"]) == len(names["machines"]) == 200
        assert names["projects"] == sorted(names["projects"])
        last = look(api, limit=100, offset=SESSIONS - 50)
        assert len(last["sessions"]) == 50
        assert {row["status"] for row in last["sessions"]} == {"completed"}
        assert look(api, limit=100, offset=300)["sessions"][0]["status"] == "active"


def test_every_branch_of_the_order_has_an_index(crowded: tuple[Server, Documents]) -> None:
    sessions = crowded[1]["sessions"]
    silent = overdue(datetime.now(UTC), timedelta(minutes=3), None)
    for _, condition, field, direction in branches(silent):
        plan = sessions.find(condition).sort(field, direction).limit(50).explain()
        assert "COLLSCAN" not in json.dumps(plan["queryPlanner"]["winningPlan"], default=str), condition
    assert {counted for counted, *_ in branches(silent)} == set(SessionStatus)
