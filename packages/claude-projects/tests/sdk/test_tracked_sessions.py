"""A tracked session: kept alive, reported in order, and lost at once when it is lost."""

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from claude_projects import (
    AsyncClient,
    BadRequestError,
    Client,
    ConflictError,
    Listener,
    Retry,
    SessionLostError,
    UnauthorizedError,
    track,
)
from client_harness.server import KEY, Server
from client_harness.waiting import until
from client_harness.wire import Wire, answer


def the_session(client: Client, project: str) -> Any:
    (session,) = client.list_sessions(project_id=project).items
    return session


def tasks_of(client: Client, project: str) -> list[tuple[str, str]]:
    """Name and status, oldest first."""
    return [(one.task_name, one.status) for one in reversed(client.list_tasks(project_id=project).items)]


def test_a_session_is_created_kept_alive_and_completed(server: Server, client: Client, project: str) -> None:
    with track(
        client, project_id=project, machine_id="m", heartbeat_interval=0.05, metadata={"x": 1}
    ) as session:
        begun = the_session(client, project)
        assert session.session is not None
        assert session.session.session_id == begun.session_id
        until(lambda: the_session(client, project).last_heartbeat > begun.last_heartbeat, "a heartbeat")
        with session.task("one", github_issue_id="7", metadata={"y": 2}) as task:
            assert the_session(client, project).current_task_id == task.task_id
        with session.task("two"):
            pass
    ended = the_session(client, project)
    assert (ended.status, ended.metadata["x"], ended.current_task_id) == ("completed", 1, None)
    assert tasks_of(client, project) == [("one", "completed"), ("two", "completed")]
    one = client.list_tasks(project_id=project).items[1]
    assert (one.github_issue_id, one.metadata["y"]) == ("7", 2)


def test_an_exception_fails_the_task_and_the_session(client: Client, project: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        track(client, project_id=project, machine_id="m") as session,
        session.task("one"),
    ):
        _ = 1 / 0
    assert the_session(client, project).status == "failed"
    assert the_session(client, project).metadata["error_message"] == "ZeroDivisionError: division by zero"
    assert (
        client.list_tasks(project_id=project).items[0].error_message == "ZeroDivisionError: division by zero"
    )


def test_an_interruption_blocks_the_task_and_pauses_the_session(client: Client, project: str) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        track(client, project_id=project, machine_id="m") as session,
        session.task("one"),
    ):
        raise KeyboardInterrupt
    assert the_session(client, project).status == "paused"
    assert tasks_of(client, project) == [("one", "blocked")]


@pytest.mark.parametrize(
    ("error", "session_is", "task_is"),
    [
        (SystemExit(), "completed", "completed"),
        (SystemExit(0), "completed", "completed"),
        (SystemExit(3), "failed", "failed"),
        (GeneratorExit(), "paused", "blocked"),
    ],
)
def test_an_exit_is_judged_by_its_code(
    client: Client, project: str, error: BaseException, session_is: str, task_is: str
) -> None:
    with (
        pytest.raises(type(error)),
        track(client, project_id=project, machine_id="m") as session,
        session.task("one"),
    ):
        raise error
    assert the_session(client, project).status == session_is
    assert tasks_of(client, project) == [("one", task_is)]


@pytest.mark.parametrize("how", ["recovered", "failed", "fenced"])
def test_a_loss_is_told_by_event_by_callback_and_by_exception(client: Client, project: str, how: str) -> None:
    heard: list[SessionLostError] = []
    successor: str | None = None
    session = track(client, project_id=project, machine_id="m", listener=Listener(lost=heard.append))
    with contextlib.suppress(SessionLostError), session:
        session_id = the_session(client, project).session_id
        if how == "recovered":
            client.mark_failed(session_id, error_message="thought dead")
            successor = client.recover(session_id, new_machine_id="n").session.session_id
        elif how == "failed":
            client.mark_failed(session_id, error_message="by an operator")
        else:
            client.mark_stalled(session_id)
            client.prepare_recovery(session_id, clear_machine_assignment=True)
        seen: list[bool] = []
        session.ask().add_done_callback(lambda _: seen.append(session.lost_event.is_set()))
        with pytest.raises(SessionLostError):
            session.confirm()
        assert seen == [True], "who waits is not told before the event is set"
        with pytest.raises(SessionLostError):
            session.add_task("work that must not be done")
    assert session.lost is not None
    assert heard == [session.lost]
    assert session.lost.recovered_by == successor
    assert tasks_of(client, project) == []


def test_a_loss_that_nobody_asks_about_is_raised_on_leaving(client: Client, project: str) -> None:
    def work() -> None:
        with track(client, project_id=project, machine_id="m", heartbeat_interval=0.05) as session:
            client.mark_failed(the_session(client, project).session_id, error_message="x")
            assert session.lost_event.wait(30)

    with pytest.raises(SessionLostError):
        work()


def test_an_error_of_the_callers_own_is_not_hidden_by_a_loss(client: Client, project: str) -> None:
    def work() -> None:
        with track(client, project_id=project, machine_id="m", heartbeat_interval=0.05) as session:
            client.mark_failed(the_session(client, project).session_id, error_message="x")
            assert session.lost_event.wait(30)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        work()


def test_a_claim_of_somebody_elses_task_is_a_loss(client: Client, project: str) -> None:
    with contextlib.suppress(SessionLostError), track(client, project_id=project, machine_id="m") as session:
        task = session.add_task("one")
        until(lambda: task.task_id, "the task to be known")
        client.update_task(str(task.task_id), status="in_progress", metadata={"claimed_by": "another"})
        with pytest.raises(SessionLostError, match="another process is at work"):
            session.claim(task)


def test_what_the_api_has_against_a_session_is_raised_on_entering(
    server: Server, client: Client, project: str
) -> None:
    client.create_session(project_id=project, machine_id="m")
    before = threading.active_count()
    with pytest.raises(ConflictError), track(client, project_id=project, machine_id="m"):
        pytest.fail("entered")
    with pytest.raises(BadRequestError), track(client, project_id="", machine_id="m"):
        pytest.fail("entered")
    with (
        Client(server.url, "9f1c2f2e-6b0c-4a3e-9f57-1d2c3b4a5e6f") as stranger,
        pytest.raises(UnauthorizedError),
        track(stranger, project_id=project, machine_id="m"),
    ):
        pytest.fail("entered")
    until(lambda: threading.active_count() == before, "the threads to end")


def test_what_is_reported_while_the_api_is_away_arrives_in_order_when_it_is_back(
    frail: Server, project: str
) -> None:
    heard: list[str] = []
    listener = Listener(
        away=lambda _: heard.append("away"), back=lambda waiting: heard.append(f"back {waiting > 5}")
    )
    quick = Retry(attempts=0)
    with (
        Client(frail.url, KEY, retry=quick) as client,
        track(
            client, project_id=project, machine_id="m", heartbeat_interval=0.1, listener=listener
        ) as session,
    ):
        with session.task("before"):
            pass
        frail.kill()
        for name in ("a", "b", "c"):
            with session.task(name):
                pass
        assert session.unsent >= 9
        session.update({"note": "while away"})
        until(lambda: heard == ["away"], "the listener to hear of it")
        frail.start()
        until(lambda: session.unsent == 0, "the reports to arrive")
        assert heard == ["away", "back True"]
        assert tasks_of(client, project) == [(name, "completed") for name in ("before", "a", "b", "c")]
        assert the_session(client, project).metadata["note"] == "while away"


def test_a_session_that_begins_while_the_api_is_away_is_created_when_it_comes(
    frail: Server, project: str
) -> None:
    frail.stop()
    with (
        Client(frail.url, KEY) as client,
        track(client, project_id=project, machine_id="m", heartbeat_interval=0.1) as session,
    ):
        assert session.session is None
        with session.task("one"):
            pass
        frail.start()
        until(lambda: session.unsent == 0, "the reports to arrive")
        assert tasks_of(client, project) == [("one", "completed")]


@pytest.mark.parametrize("nth", range(1, 9))
def test_no_lost_answer_makes_anything_happen_twice(
    wired: Client, wire: Wire, client: Client, project: str, nth: int
) -> None:
    for _ in range(nth - 1):
        wire.faults.append("pass")
    wire.faults.append("lose answer")
    with track(wired, project_id=project, machine_id="m") as session:
        for name in ("one", "two"):
            with session.task(name):
                pass
    assert the_session(client, project).status == "completed"
    assert tasks_of(client, project) == [("one", "completed"), ("two", "completed")]


def test_a_limit_of_the_api_delays_reports_and_loses_none(
    wired: Client, wire: Wire, client: Client, project: str
) -> None:
    heard: list[object] = []
    with track(wired, project_id=project, machine_id="m", listener=Listener(away=heard.append)) as session:
        wire.faults.extend([answer("429 Too Many Requests", "Retry-After: 1")] * 2)
        with session.task("one"):
            pass
    assert tasks_of(client, project) == [("one", "completed")]
    assert heard == [], "it is there: nobody needs to worry"


def test_heartbeats_stop_while_there_is_no_progress_and_begin_again_with_it(
    nervous: Server, project: str
) -> None:
    with (
        Client(nervous.url, KEY) as client,
        track(
            client, project_id=project, machine_id="m", heartbeat_interval=0.1, stalled_after=0.5
        ) as session,
    ):
        session_id = the_session(client, project).session_id
        until(lambda: client.session_health(session_id).is_stalled, "the API to see that nothing moves")
        session.progress()
        until(lambda: client.session_health(session_id).is_healthy, "the API to see that it moves again")


def test_a_session_that_stands_still_can_be_asked_about_and_reports_are_progress(
    nervous: Server, project: str
) -> None:
    with (
        Client(nervous.url, KEY) as client,
        track(
            client, project_id=project, machine_id="m", heartbeat_interval=0.1, stalled_after=0.5
        ) as session,
    ):
        session_id = the_session(client, project).session_id
        until(lambda: client.session_health(session_id).is_stalled, "the API to see that nothing moves")
        assert session.confirm()
        assert client.session_health(session_id).is_healthy, "asked by a heartbeat"
        until(lambda: client.session_health(session_id).is_stalled, "the API to see that nothing moves")
        with session.task("one"):
            pass
        assert client.session_health(session_id).is_healthy


def test_the_machine_of_a_living_session_is_online(client: Client, project: str) -> None:
    client.register_machine(hostname="h", machine_id=project)
    client.update_machine(project, status="offline")
    with track(client, project_id=project, machine_id=project, heartbeat_interval=0.05):
        until(lambda: client.get_machine(project).status == "online", "the machine to be seen")


def test_heartbeats_carry_what_the_caller_wants_to_be_known(client: Client, project: str) -> None:
    with track(
        client, project_id=project, machine_id="m", heartbeat_interval=0.05, pulse=lambda: {"done": "half"}
    ):
        until(lambda: the_session(client, project).metadata.get("done") == "half", "the metadata")


def test_metadata_that_is_no_json_is_the_callers_error_and_the_session_lives_on(
    client: Client, project: str
) -> None:
    with track(client, project_id=project, machine_id="m", heartbeat_interval=0.05) as session:
        for bad in ({"x": object()}, {"x": float("nan")}):
            with pytest.raises((TypeError, ValueError)):
                session.update(bad)
            with pytest.raises((TypeError, ValueError)):
                session.add_task("one", metadata=bad)
        metadata = {"steps": ["a"]}
        told = session.update(metadata)
        metadata["steps"].append("b")
        assert session.settled(told, 30)
        assert the_session(client, project).metadata["steps"] == ["a"], "as it was when it was given"
    assert the_session(client, project).status == "completed"
    assert tasks_of(client, project) == []


def test_what_the_callers_own_functions_raise_does_not_end_the_heartbeats(
    client: Client, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> dict[str, object]:
        raise ZeroDivisionError

    with track(
        client,
        project_id=project,
        machine_id="m",
        heartbeat_interval=0.05,
        pulse=broken,
        listener=Listener(problem=broken),
    ) as session:
        assert session.settled(session.update({"archived": True}), 30) is False  # the server's own key
        begun = the_session(client, project)
        until(lambda: the_session(client, project).last_heartbeat > begun.last_heartbeat, "a heartbeat")
    assert the_session(client, project).status == "completed"
    said = {record.getMessage() for record in caplog.records if record.name == "claude_projects"}
    assert said == {
        "the pulse of the tracked session has failed",
        "a listener of the tracked session has failed",
    }


def test_a_pulse_that_the_api_refuses_is_left_out_and_the_session_stays_alive(
    client: Client, project: str
) -> None:
    problems: list[str] = []
    with track(
        client,
        project_id=project,
        machine_id="m",
        heartbeat_interval=0.05,
        pulse=lambda: {"much": "x" * 70_000},
        listener=Listener(problem=problems.append),
    ):
        begun = the_session(client, project)
        until(lambda: the_session(client, project).last_heartbeat > begun.last_heartbeat, "a heartbeat")
    assert len(problems) == 1
    assert "refuses the heartbeat" in problems[0]


def test_a_report_that_the_api_refuses_is_told_and_holds_up_nothing(client: Client, project: str) -> None:
    problems: list[str] = []
    with track(
        client, project_id=project, machine_id="m", listener=Listener(problem=problems.append)
    ) as session:
        session.update({"archived": True})  # the server's own key
        with session.task("one"):
            pass
    assert len(problems) == 1
    assert "archived" in problems[0]
    assert tasks_of(client, project) == [("one", "completed")]


async def test_an_async_session_is_kept_alive_and_completed(
    server: Server, client: Client, project: str
) -> None:
    async with (
        AsyncClient(server.url, KEY) as asynchronous,
        track(asynchronous, project_id=project, machine_id="m", heartbeat_interval=0.05) as session,
    ):
        begun = the_session(client, project)
        async with session.task("one") as task:
            assert the_session(client, project).current_task_id == task.task_id
        await asyncio.to_thread(
            until, lambda: the_session(client, project).last_heartbeat > begun.last_heartbeat, "a heartbeat"
        )
    assert the_session(client, project).status == "completed"
    assert tasks_of(client, project) == [("one", "completed")]


async def test_an_async_session_that_is_taken_over_says_so(
    server: Server, client: Client, project: str
) -> None:
    heard: list[SessionLostError] = []
    async with AsyncClient(server.url, KEY) as asynchronous:
        session = track(
            asynchronous, project_id=project, machine_id="m", listener=Listener(lost=heard.append)
        )
        with contextlib.suppress(SessionLostError):
            async with session:
                session_id = the_session(client, project).session_id
                client.mark_stalled(session_id)
                successor = client.recover(session_id, new_machine_id="n").session.session_id
                with pytest.raises(SessionLostError) as raised:
                    await session.confirm()
                await asyncio.wait_for(session.lost_event.wait(), 30)
                assert heard == [raised.value]
                assert raised.value.recovered_by == successor
                with pytest.raises(SessionLostError):
                    session.add_task("work that must not be done")


async def test_an_async_session_fails_with_its_exception_and_pauses_when_cancelled(
    server: Server, client: Client, project: str
) -> None:
    async with AsyncClient(server.url, KEY) as asynchronous:
        with pytest.raises(ZeroDivisionError):
            async with (
                track(asynchronous, project_id=project, machine_id="m") as session,
                session.task("one"),
            ):
                _ = 1 / 0
        assert the_session(client, project).status == "failed"

        begun = asyncio.Event()

        async def work() -> None:
            async with track(asynchronous, project_id=f"{project}-2", machine_id="m"):
                begun.set()
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        await begun.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert the_session(client, f"{project}-2").status == "paused"


async def test_an_async_session_goes_on_while_the_api_is_away(frail: Server, project: str) -> None:
    async with (
        AsyncClient(frail.url, KEY) as asynchronous,
        track(asynchronous, project_id=project, machine_id="m", heartbeat_interval=0.1) as session,
    ):
        await asyncio.to_thread(frail.kill)
        for name in ("a", "b"):
            async with session.task(name):
                pass
        await asyncio.to_thread(frail.start)
        await asyncio.to_thread(until, lambda: session.unsent == 0, "the reports to arrive")
    with Client(frail.url, KEY) as client:
        assert tasks_of(client, project) == [("a", "completed"), ("b", "completed")]
        assert the_session(client, project).status == "completed"
