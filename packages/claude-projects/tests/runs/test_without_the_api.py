"""Tracking that is down never stops the work, and what was missed is told when it is back."""

import signal
from collections.abc import Callable

import pytest
from ports import free_port

from claude_projects import Client
from claude_projects.exits import Exit
from client_harness.command import Machine
from client_harness.server import KEY, Server
from client_harness.waiting import until
from client_harness.wire import Wire

pytestmark = pytest.mark.slow

Machines = Callable[..., Machine]


def two_gates(project: str) -> str:
    """A plan of four tasks, of which the second and the third wait for a file each."""
    return f"""
        project_id = "{project}"
        [[tasks]]
        name = "one"
        command = "echo one >> effects"
        [[tasks]]
        name = "two"
        command = "echo two-begins >> effects; until [ -e go2 ]; do sleep 0.05; done"
        [[tasks]]
        name = "three"
        command = "echo three-begins >> effects; until [ -e go3 ]; do sleep 0.05; done"
        [[tasks]]
        name = "four"
        command = "echo four >> effects"
    """


def completed(client: Client, project: str) -> list[str]:
    """The names of a project's completed tasks, oldest first."""
    tasks = client.list_tasks(project_id=project, status="completed").items
    return [task.task_name for task in reversed(tasks)]


def test_an_api_that_is_killed_and_restarted_learns_the_true_end_of_every_task(
    frail: Server, machines: Machines, project: str
) -> None:
    machine = machines(frail.url)
    run = machine.start("run", machine.plan(two_gates(project)))
    machine.await_effect("two-begins")
    frail.kill()
    machine.work.joinpath("go2").touch()
    machine.await_effect("three-begins")  # the work goes on
    until(lambda: "the work goes on" in run.err, "a word about the API")

    frail.start()
    until(lambda: "The API is back" in run.out, "a word about the API")
    machine.work.joinpath("go3").touch()

    end = run.finish()
    assert end.code == Exit.OK, end.err
    with Client(frail.url, KEY) as client:
        assert completed(client, project) == ["one", "two", "three", "four"]
        (session,) = client.list_sessions(project_id=project).items
        assert session.status == "completed"
        tasks = {task.task_name: task for task in client.list_tasks(project_id=project).items}
        ends = [tasks[name].completed_at for name in ("one", "two", "three", "four")]
        assert all(ends)
        assert ends == sorted(end for end in ends if end), "reported in the order in which they happened"


def test_an_api_that_hangs_does_not_stop_the_work(frail: Server, machines: Machines, project: str) -> None:
    machine = machines(frail.url)
    run = machine.start("run", machine.plan(two_gates(project)))
    machine.await_effect("two-begins")
    frail.signal(signal.SIGSTOP)
    machine.work.joinpath("go2").touch()
    machine.await_effect("three-begins")
    frail.signal(signal.SIGCONT)
    machine.work.joinpath("go3").touch()
    assert run.finish().code == Exit.OK
    with Client(frail.url, KEY) as client:
        assert completed(client, project) == ["one", "two", "three", "four"]


def test_a_second_interruption_does_not_wait_for_an_api_that_hangs(
    frail: Server, machines: Machines, project: str
) -> None:
    machine = machines(frail.url)
    run = machine.start("run", machine.plan(two_gates(project)))
    machine.await_effect("two-begins")
    frail.signal(signal.SIGSTOP)
    run.signal(signal.SIGINT)
    until(lambda: "Stopped by SIGINT" in run.err, "a word about the signal")
    run.signal(signal.SIGINT)
    end = run.finish()
    assert end.code == Exit.INTERRUPTED
    assert "The API does not know of this yet" in end.err
    assert "Traceback" not in end.err


def test_a_run_that_begins_without_the_api_works_and_says_that_nobody_knows(
    machines: Machines, project: str
) -> None:
    machine = machines(f"http://127.0.0.1:{free_port()}")
    machine.work.joinpath("go2").touch()
    machine.work.joinpath("go3").touch()
    run = machine.do("run", machine.plan(two_gates(project)))
    assert run.code == Exit.OK, run.err
    assert machine.effects() == ["one", "two-begins", "three-begins", "four"]
    assert "cannot be reached" in run.err
    assert "The API does not know of this yet" in run.err


def test_a_run_that_begins_without_the_api_is_tracked_as_soon_as_it_comes(
    frail: Server, machines: Machines, project: str
) -> None:
    frail.stop()
    machine = machines(frail.url)
    run = machine.start("run", machine.plan(two_gates(project)))
    machine.await_effect("two-begins")
    frail.start()
    with Client(frail.url, KEY) as client:
        until(lambda: completed(client, project) == ["one"], "the first task to be known as completed")
        (session,) = client.list_sessions(project_id=project).items
        until(lambda: client.get_session(session.session_id).current_task_id, "the second task to be current")
        machine.work.joinpath("go2").touch()
        machine.work.joinpath("go3").touch()
        assert run.finish().code == Exit.OK
        assert completed(client, project) == ["one", "two", "three", "four"]
        assert client.get_session(session.session_id).status == "completed"


def test_a_refusal_that_comes_late_does_not_stop_the_work(
    frail: Server, machines: Machines, project: str
) -> None:
    machine = machines(frail.url)
    with Client(frail.url, KEY) as client:
        client.register_machine(hostname="h", machine_id=machine.machine_id)
        client.update_machine(machine.machine_id, status="maintenance")
        frail.stop()
        run = machine.start("run", machine.plan(two_gates(project)))
        machine.await_effect("two-begins")
        frail.start()
        until(lambda: "The work goes on untracked" in run.err, "the refusal to be told")
        machine.work.joinpath("go2").touch()
        machine.await_effect("three-begins")
        client.update_machine(machine.machine_id, status="online")
        until(lambda: completed(client, project) == ["one", "two"], "the API to know of both tasks")
        machine.work.joinpath("go3").touch()
        assert run.finish().code == Exit.OK
        assert completed(client, project) == ["one", "two", "three", "four"]


def test_what_was_done_while_the_api_was_away_is_not_done_again_after_a_crash(
    frail: Server, machines: Machines, project: str
) -> None:
    machine = machines(frail.url)
    plan = machine.plan(two_gates(project))
    run = machine.start("run", plan)
    machine.await_effect("two-begins")
    frail.kill()
    machine.work.joinpath("go2").touch()
    machine.await_effect("three-begins")  # the API believes that the second task is at work
    run.signal(signal.SIGKILL)
    run.finish()
    machine.work.joinpath("go3").touch()
    frail.start()

    again = machine.do("run", plan)

    assert again.code == Exit.OK, again.err
    assert machine.effects() == ["one", "two-begins", "three-begins", "three-begins", "four"]
    with Client(frail.url, KEY) as client:
        assert sorted(completed(client, project)) == ["four", "one", "three", "two"]


def test_what_a_run_did_without_the_api_and_took_to_its_grave_is_recorded_by_the_next_one(
    frail: Server, machines: Machines, project: str
) -> None:
    wire = Wire(frail.port)
    # The API goes away between the session and its tasks: not even their creation is recorded.
    wire.on_request = lambda line: frail.kill() if line.startswith("POST /api/sessions ") else None
    machine = machines(wire.url)
    plan = machine.plan(two_gates(project))
    try:
        run = machine.start("run", plan)
        machine.await_effect("two-begins")
        machine.work.joinpath("go2").touch()
        machine.await_effect("three-begins")
        run.signal(signal.SIGKILL)
        run.finish()
        machine.work.joinpath("go3").touch()
        wire.on_request = lambda _: None
        frail.start()

        again = machine.do("run", plan)
    finally:
        wire.close()

    assert again.code == Exit.OK, again.err
    assert machine.effects() == ["one", "two-begins", "three-begins", "three-begins", "four"]
    with Client(frail.url, KEY) as client:
        assert sorted(completed(client, project)) == ["four", "one", "three", "two"]
        late = [
            task for task in client.list_tasks(project_id=project).items if "reported_late" in task.metadata
        ]
        assert sorted(task.task_name for task in late) == ["one", "two"]


def test_fresh_begins_anew_without_the_api_too(machines: Machines, project: str) -> None:
    machine = machines(f"http://127.0.0.1:{free_port()}")
    plan = machine.plan(two_gates(project))
    run = machine.start("run", plan)
    machine.await_effect("two-begins")
    run.signal(signal.SIGKILL)
    run.finish()
    machine.work.joinpath("go2").touch()
    machine.work.joinpath("go3").touch()

    assert machine.do("run", "--fresh", plan).code == Exit.OK
    assert machine.effects() == ["one", "two-begins", "one", "two-begins", "three-begins", "four"]


def test_a_crashed_run_goes_on_without_the_api_by_what_this_machine_remembers(
    machines: Machines, project: str
) -> None:
    machine = machines(f"http://127.0.0.1:{free_port()}")
    plan = machine.plan(two_gates(project))
    run = machine.start("run", plan)
    machine.await_effect("two-begins")
    run.signal(signal.SIGKILL)
    run.finish()
    machine.work.joinpath("go2").touch()
    machine.work.joinpath("go3").touch()

    assert machine.do("run", plan).code == Exit.OK
    assert machine.effects() == ["one", "two-begins", "two-begins", "three-begins", "four"]

    assert machine.do("run", plan).code == Exit.OK, "and a run that had ended is followed by a new one"
    assert machine.effects()[5:] == ["one", "two-begins", "three-begins", "four"]


def test_the_end_of_a_run_that_the_api_missed_is_told_by_the_next_run(
    frail: Server, machines: Machines, project: str
) -> None:
    machine = machines(frail.url)
    plan = machine.plan(two_gates(project))
    run = machine.start("run", plan)
    machine.await_effect("two-begins")
    frail.kill()
    machine.work.joinpath("go2").touch()
    machine.work.joinpath("go3").touch()
    assert run.finish().code == Exit.OK
    frail.start()

    assert machine.do("run", plan).code == Exit.OK

    with Client(frail.url, KEY) as client:
        newest, successor, original = client.list_sessions(project_id=project).items
        assert (original.recovered_by, original.status) == (successor.session_id, "completed")
        assert (successor.status, newest.status) == ("completed", "completed")
        assert newest.recovered_from is None
        assert sorted(completed(client, project)) == sorted(["one", "two", "three", "four"] * 2)


def test_a_wrong_key_is_told_before_anything_is_done(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url, key="9f1c2f2e-6b0c-4a3e-9f57-1d2c3b4a5e6f")
    run = machine.do("run", machine.plan(two_gates(project)))
    assert run.code == Exit.UNAUTHORIZED
    assert "the API refuses the key: Invalid API key" in run.err
    assert machine.effects() == []


def test_resume_without_the_api_says_so(machines: Machines) -> None:
    machine = machines(f"http://127.0.0.1:{free_port()}")
    resumed = machine.do("resume", "0c0ffee0-0000-4000-8000-000000000000")
    assert resumed.code == Exit.UNREACHABLE
    assert "cannot be reached" in resumed.err


def test_a_session_that_is_deleted_under_a_run_does_not_stop_it(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    machine.work.joinpath("go3").touch()
    run = machine.start("run", machine.plan(two_gates(project)))
    machine.await_effect("two-begins")
    (session,) = client.list_sessions(project_id=project).items
    client.delete_session(session.session_id)
    until(lambda: "has been deleted" in run.err, "a word about the deletion")
    machine.work.joinpath("go2").touch()
    assert run.finish().code == Exit.OK
    assert machine.effects() == ["one", "two-begins", "three-begins", "four"]
