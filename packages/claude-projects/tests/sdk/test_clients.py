"""Both clients against the real server, over a wire that can be cut."""

import contextlib
import inspect
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from claude_projects import (
    AsyncClient,
    BadRequestError,
    Client,
    ConflictError,
    NotFoundError,
    NotTheApiError,
    RateLimitedError,
    Retry,
    UnauthorizedError,
    UnreachableError,
    calls,
)
from client_harness.server import KEY, Server
from client_harness.wire import Wire, answer
from state_tracking_api.embedded import Mongod


class Either:
    """A client of either kind behind ``await``: the tests below are written once."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self._client, name)(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return call

    async def every(self, call: Any) -> list[Any]:
        if isinstance(self._client, Client):
            return list(self._client.every(call))
        return [item async for item in self._client.every(call)]


KINDS = [Client, AsyncClient]
QUICK = Retry(attempts=4, base=0.001)


@pytest.fixture(params=KINDS, ids=["blocking", "async"])
async def either(request: pytest.FixtureRequest, server: Server) -> Any:
    made = request.param(server.url, KEY)
    yield Either(made)
    await Either(made).close()


@pytest.fixture(params=KINDS, ids=["blocking", "async"])
async def wired(request: pytest.FixtureRequest, wire: Wire) -> Any:
    made = request.param(wire.url, KEY, retry=QUICK)
    yield Either(made)
    await Either(made).close()


async def test_a_session_goes_through_its_life(either: Either, project: str) -> None:
    machine = await either.register_machine(hostname="h", docker_slots=[1, 2], machine_id=f"m-{project}")
    assert machine.docker_slots == (1, 2)
    session = await either.create_session(
        project_id=project,
        machine_id=machine.machine_id,
        docker_slot=1,
        metadata={"a.b": {"$c": None, "d": 1}},
    )
    assert session.metadata["a.b"] == {"$c": None, "d": 1}
    assert (await either.get_machine(machine.machine_id)).active_sessions == (session.session_id,)
    task = await either.create_task(session_id=session.session_id, project_id=project, task_name="t")
    assert (await either.update_task(task.task_id, status="in_progress")).started_at is not None
    beat = await either.heartbeat(session.session_id, metadata={"progress": 1})
    assert (beat.current_task_id, beat.metadata["progress"]) == (task.task_id, 1)
    assert (await either.session_health(session.session_id)).is_healthy
    await either.update_task(task.task_id, status="completed")
    second = await either.create_task(session_id=session.session_id, project_id=project, task_name="u")
    await either.mark_stalled(session.session_id)
    assert session.session_id in [
        one.session_id for one in (await either.stalled_sessions()).stalled_sessions
    ]
    state = await either.recovery_state(session.session_id)
    assert [one.task_id for one in state.pending_tasks] == [second.task_id]
    assert state.last_successful_task.task_id == task.task_id
    assert (await either.prepare_recovery(session.session_id)).session_id == session.session_id
    recovery = await either.recover(session.session_id, new_machine_id=machine.machine_id, docker_slot=2)
    assert recovery.created is True
    assert (await either.recover(session.session_id, new_machine_id="x")).created is False
    with pytest.raises(ConflictError) as error:
        await either.heartbeat(session.session_id)
    assert error.value.recovered_by == recovery.session.session_id
    failed = await either.mark_failed(recovery.session.session_id, error_message="why")
    assert failed.metadata["error_message"] == "why"
    assert (await either.archive_session(failed.session_id)).metadata["archived"] is True
    assert (await either.archived_sessions(limit=1)).total >= 1
    await either.delete_session(failed.session_id)
    with pytest.raises(NotFoundError):
        await either.get_session(failed.session_id)
    assert (await either.update_machine(machine.machine_id, status="offline")).status == "offline"
    assert (await either.machine_heartbeat(machine.machine_id)).status == "online"
    assert (await either.list_machines(status="online")).total >= 1
    await either.delete_machine(machine.machine_id)
    assert (await either.health_summary()).total_sessions >= 1
    assert (await either.detect_failures()).marked_stalled >= 0
    assert (await either.cleanup(older_than_days=3650)).deleted_sessions == 0
    assert (await either.service_health()).status == "ok"


async def test_a_list_is_read_to_its_end_page_by_page(either: Either, server: Server, project: str) -> None:
    session = await either.create_session(project_id=project, machine_id="m")
    with Client(server.url, KEY) as client:
        made = {
            client.create_task(session_id=session.session_id, project_id=project, task_name="t").task_id
            for _ in range(201)
        }
    found = [task.task_id for task in await either.every(calls.list_tasks(session_id=session.session_id))]
    assert len(found) == 201
    assert set(found) == made


async def test_what_was_wrong_is_told_field_by_field(either: Either) -> None:
    with pytest.raises(BadRequestError) as error:
        await either.create_session(project_id="", machine_id="")
    assert {one.field for one in error.value.fields} == {"project_id", "machine_id"}
    assert error.value.request_id is not None


async def test_a_second_session_is_told_which_one_is_in_its_way(either: Either, project: str) -> None:
    first = await either.create_session(project_id=project, machine_id="m")
    with pytest.raises(ConflictError) as error:
        await either.create_session(project_id=project, machine_id="m")
    assert error.value.existing_session_id == first.session_id


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wrong_key_is_not_tried_twice(kind: type, wire: Wire) -> None:
    client = Either(kind(wire.url, str(uuid.uuid4()), retry=QUICK))
    with pytest.raises(UnauthorizedError, match="Invalid API key"):
        await client.list_sessions()
    assert len(wire.seen) == 1
    await client.close()


@pytest.mark.parametrize("fault", ["lose request", "lose answer"])
async def test_a_session_is_created_once_whatever_is_lost(
    wired: Either, wire: Wire, client: Client, project: str, fault: Any
) -> None:
    wire.faults.extend([fault, fault])
    session = await wired.create_session(project_id=project, machine_id="m")
    assert [one.session_id for one in client.list_sessions(project_id=project).items] == [session.session_id]


@pytest.mark.parametrize("fault", ["lose request", "lose answer"])
async def test_a_task_is_created_once_whatever_is_lost(
    wired: Either, wire: Wire, client: Client, project: str, fault: Any
) -> None:
    session = client.create_session(project_id=project, machine_id="m")
    wire.faults.extend([fault, "pass", fault])
    task = await wired.create_task(session_id=session.session_id, project_id=project, task_name="t")
    assert [one.task_id for one in client.list_tasks(session_id=session.session_id).items] == [task.task_id]


async def test_a_claim_whose_answer_was_lost_is_still_ours(
    wired: Either, wire: Wire, client: Client, project: str
) -> None:
    session = client.create_session(project_id=project, machine_id="m")
    task = client.create_task(session_id=session.session_id, project_id=project, task_name="t")
    wire.faults.append("lose answer")
    claimed = await wired.update_task(task.task_id, status="in_progress", metadata={"claimed_by": "us"})
    assert claimed.status == "in_progress"


async def test_a_deletion_whose_answer_was_lost_is_done(
    wired: Either, wire: Wire, client: Client, project: str
) -> None:
    session = client.create_session(project_id=project, machine_id="m")
    wire.faults.append("lose answer")
    await wired.delete_session(session.session_id)
    assert len(wire.seen) == 2


async def test_a_machine_without_an_id_is_registered_once(wired: Either, wire: Wire, client: Client) -> None:
    before = client.list_machines().total
    wire.faults.append("lose answer")
    await wired.register_machine(hostname="h")
    assert client.list_machines().total == before + 1


async def test_whose_successor_it_is_remains_open_after_a_lost_answer(
    wired: Either, wire: Wire, client: Client, project: str
) -> None:
    session = client.create_session(project_id=project, machine_id="m")
    client.mark_failed(session.session_id, error_message="x")
    wire.faults.append("lose answer")
    assert (await wired.recover(session.session_id, new_machine_id="n")).created is None


async def test_a_limit_is_waited_for(wired: Either, wire: Wire) -> None:
    wire.faults.extend([answer("429 Too Many Requests", "Retry-After: 0"), answer("503 Service Unavailable")])
    assert (await wired.service_health()).status == "ok"
    assert len(wire.seen) == 3


async def test_a_limit_beyond_patience_is_told(wired: Either, wire: Wire) -> None:
    wire.faults.append(answer("429 Too Many Requests", "Retry-After: 3600"))
    with pytest.raises(RateLimitedError) as error:
        await wired.service_health()
    assert error.value.retry_after == 3600


async def test_the_real_limit_is_told_with_the_time_to_wait(mongod: Mongod, tmp_path: Path) -> None:
    limited = Server(mongod.uri, "limited", tmp_path / "log", RATE_LIMIT_PER_MINUTE="3")
    limited.start()
    try:
        with Client(limited.url, KEY, retry=Retry(patience=0)) as client:
            with contextlib.suppress(RateLimitedError):
                for _ in range(3):  # the harness has asked before, to see whether it answers
                    client.health_summary()
            with pytest.raises(RateLimitedError) as error:
                client.health_summary()
        assert error.value.retry_after is not None
        assert 0 < error.value.retry_after <= 60
    finally:
        limited.stop()


def test_the_example_of_the_readme_runs(server: Server, client: Client, project: str) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    example = example.replace("http://127.0.0.1:3000", server.url).replace("my-project", project)
    done: list[str] = []
    exec(example, {"api_key": KEY, "run_the_tests": lambda: done.append("tests")})  # noqa: S102 - our own text
    assert done == ["tests"]
    (task,) = client.list_tasks(project_id=project).items
    assert (task.task_name, task.status, task.github_issue_id) == ("Tests", "completed", "142")


async def test_something_else_at_the_address_is_recognised(wired: Either, wire: Wire) -> None:
    wire.faults.append(answer("200 OK", "Content-Type: text/html", body="<html>Log in</html>"))
    with pytest.raises(NotTheApiError):
        await wired.list_sessions()
    assert len(wire.seen) == 1


async def test_a_redirect_does_not_take_the_key_along(wired: Either, wire: Wire, server: Server) -> None:
    there = f"{server.url}/api/sessions"  # would be answered, if it were followed
    wire.faults.append(answer("302 Found", f"Location: {there}"))
    with pytest.raises(NotTheApiError, match=f"redirects to {there}; set the API's own address"):
        await wired.list_sessions()
    assert len(wire.seen) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_an_api_that_is_away_is_told_in_a_sentence(kind: type) -> None:
    port = free_port()
    client = Either(kind(f"http://127.0.0.1:{port}", KEY, retry=QUICK))
    with pytest.raises(UnreachableError, match=f"API at http://127.0.0.1:{port} cannot be reached") as error:
        await client.list_sessions()
    assert not error.value.perhaps_done
    await client.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("url", ["localhost:3000", "ftp://x", "http://", "x y"])
def test_an_address_that_is_none_is_refused(kind: Any, url: str) -> None:
    with pytest.raises(NotTheApiError, match="is not an address"):
        kind(url, KEY)


async def test_the_address_may_have_a_path(either: Either, wire: Wire) -> None:
    wire.faults.append(answer("404 Not Found", body='{"statusCode": 404, "message": "x"}'))
    with Client(wire.url + "/base/", KEY) as client, pytest.raises(NotFoundError):
        client.list_sessions(project_id="a&b")
    assert wire.seen == ["GET /base/api/sessions?project_id=a%26b HTTP/1.1"]
