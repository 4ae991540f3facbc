"""A run whose session is taken over, or whose words are lost on the way."""

import signal
from collections.abc import Callable

import pytest

from claude_projects import BadRequestError, Client
from claude_projects.exits import Exit
from client_harness.command import Machine
from client_harness.processes import is_held
from client_harness.server import KEY, Server
from client_harness.waiting import until
from client_harness.wire import Fault, Wire

Machines = Callable[..., Machine]


def plan(project: str) -> str:
    return f"""
        project_id = "{project}"
        [[tasks]]
        name = "one"
        command = "echo one >> effects"
        [[tasks]]
        name = "two"
        command = "echo begins >> effects; until [ -e go ]; do sleep 0.05; done; echo ends >> effects"
        [[tasks]]
        name = "three"
        command = "echo three >> effects"
    """


def lose_every_fifth(wire: Wire, first: int) -> None:
    """Lose the answer of request ``first`` (from 1) and of every fifth one after it."""
    for number in range(1, 31):
        wire.faults.append("lose answer" if number % 5 == first % 5 else "pass")


def fence_off(client: Client, session_id: str) -> None:
    """Fence off a session whose heartbeats may come at any moment, and revive it in between."""

    def fenced() -> bool:
        client.mark_stalled(session_id)
        try:
            client.prepare_recovery(session_id, clear_machine_assignment=True)
        except BadRequestError:  # it is active again
            return False
        return True

    until(fenced, "no heartbeat to come between the two calls")


@pytest.mark.parametrize("how", ["recovered", "marked as failed", "fenced off"])
def test_a_run_that_loses_its_session_kills_its_command_and_ends_with_a_code_of_its_own(
    server: Server, client: Client, machines: Machines, project: str, how: str
) -> None:
    machine = machines(server.url)
    run = machine.start("run", machine.plan(plan(project)))
    machine.await_effect("begins")
    children = run.children()
    (session,) = client.list_sessions(project_id=project).items
    if how == "fenced off":
        fence_off(client, session.session_id)
    else:
        client.mark_failed(session.session_id, error_message="by an operator")
    if how == "recovered":
        client.recover(session.session_id, new_machine_id="another")

    end = run.finish()

    assert end.code == Exit.REPLACED, end.err
    assert session.session_id in end.err
    assert "Traceback" not in end.err
    until(lambda: not any(child.is_running() for child in children), "the command and its guard to be gone")
    assert machine.effects() == ["one", "begins"]


def test_the_run_that_finds_its_work_on_another_machine_leaves_it_there(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    here, there = machines(server.url), machines(server.url)
    run = here.start("run", here.plan(plan(project)))
    here.await_effect("begins")
    run.signal(signal.SIGKILL)
    run.finish()
    (session,) = client.list_sessions(project_id=project).items
    resumed = there.start("resume", session.session_id)
    there.await_effect("begins")

    again = here.do("run", here.plan(plan(project)))

    assert again.code == Exit.HELD, again.err
    assert f"on machine {there.machine_id!r}" in again.err
    there.work.joinpath("go").touch()
    assert resumed.finish().code == Exit.OK


def test_a_run_is_resumed_by_its_own_machine_while_the_process_is_suspended_only_by_word(
    nervous: Server, machines: Machines, project: str
) -> None:
    machine = machines(nervous.url)
    rival = machines(nervous.url, f"{machine.machine_id}-rival")
    rival.environment["CLAUDE_PROJECTS_MACHINE_ID"] = machine.machine_id
    run = machine.start("run", machine.plan(plan(project)))
    machine.await_effect("begins")
    run.signal(signal.SIGSTOP)
    with Client(nervous.url, KEY) as client:
        (session,) = client.list_sessions(project_id=project).items
        until(lambda: client.session_health(session.session_id).is_stalled, "the session to be stalled")
        rival.work.joinpath("go").touch()
        assert rival.do("resume", session.session_id).code == Exit.OK
    run.signal(signal.SIGCONT)
    assert run.finish().code == Exit.REPLACED


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 6))
def test_no_answer_that_is_lost_makes_a_run_do_anything_twice(
    server: Server, client: Client, wire: Wire, machines: Machines, project: str, first: int
) -> None:
    machine = machines(wire.url)
    machine.work.joinpath("go").touch()
    lose_every_fifth(wire, first)
    run = machine.do("run", machine.plan(plan(project)))
    assert run.code == Exit.OK, run.err
    assert machine.effects() == ["one", "begins", "ends", "three"]
    (session,) = client.list_sessions(project_id=project).items
    assert session.status == "completed"
    tasks = client.list_tasks(project_id=project).items
    assert sorted((task.task_name, task.status) for task in tasks) == [
        ("one", "completed"),
        ("three", "completed"),
        ("two", "completed"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 6))
def test_no_answer_that_is_lost_makes_a_resume_lose_or_repeat_anything(
    server: Server, client: Client, wire: Wire, machines: Machines, project: str, first: int
) -> None:
    dead, machine = machines(server.url), machines(wire.url)
    run = dead.start("run", dead.plan(plan(project)))
    dead.await_effect("begins")
    run.signal(signal.SIGKILL)
    run.finish()
    (session,) = client.list_sessions(project_id=project).items
    machine.work.joinpath("go").touch()
    lose_every_fifth(wire, first)
    resumed = machine.do("resume", session.session_id)
    assert resumed.code == Exit.OK, resumed.err
    assert machine.effects() == ["begins", "ends", "three"]
    assert len(client.list_sessions(project_id=project).items) == 2
    done = [task.task_name for task in client.list_tasks(project_id=project, status="completed").items]
    assert sorted(done) == ["one", "three", "two"]


def test_a_run_whose_new_session_was_taken_for_silent_meanwhile_goes_on_with_it(
    nervous: Server, machines: Machines, project: str
) -> None:
    wire = Wire(nervous.port)
    machine = machines(wire.url)
    before: list[Fault | bytes] = ["pass", "pass", "pass", "lose answer"]
    afterwards: list[Fault | bytes] = ["lose request"]
    wire.faults.extend(before + 1000 * afterwards)
    try:
        run = machine.start("run", machine.plan(plan(project)))
        machine.await_effect("begins")
        assert wire.seen[3].startswith("POST /api/sessions ")
        with Client(nervous.url, KEY) as client:
            (session,) = client.list_sessions(project_id=project).items
            until(lambda: client.get_session(session.session_id).status == "stalled", "it to be stalled")
            wire.faults.clear()
            until(lambda: client.get_session(session.session_id).status == "active", "it to be active again")
            machine.work.joinpath("go").touch()
            end = run.finish()
            assert end.code == Exit.OK, end.err
            assert client.get_session(session.session_id).status == "completed"
        assert machine.effects() == ["one", "begins", "ends", "three"]
    finally:
        wire.close()


def test_a_guard_holds_its_command_while_the_run_is_suspended_and_lets_it_go_on_afterwards(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url, environment={"CLAUDE_PROJECTS_FREEZE_AFTER_SECONDS": "0.5"})
    run = machine.start("run", machine.plan(plan(project)))
    machine.await_effect("begins")
    command = next(child for child in run.children() if "until" in " ".join(child.cmdline()))
    run.signal(signal.SIGSTOP)
    until(lambda: is_held(command), "the command to be held")
    run.signal(signal.SIGCONT)
    until(lambda: not is_held(command), "the command to go on")
    machine.work.joinpath("go").touch()
    assert run.finish().code == Exit.OK
