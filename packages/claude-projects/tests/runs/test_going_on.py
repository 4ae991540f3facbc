"""A run that is started again goes on with what is left, and nobody's work is taken away."""

import signal
from collections.abc import Callable

import pytest

from claude_projects import Client, calls
from claude_projects.errors import NothingLeftError
from claude_projects.exchange import Outcome, Request, Steps
from claude_projects.exits import Exit
from claude_projects.handover import Handover, Worker
from claude_projects.journal import Journals
from claude_projects.process import Process
from client_harness.command import Machine
from client_harness.processes import lives
from client_harness.server import KEY, Server
from client_harness.waiting import until
from client_harness.wire import Wire

Machines = Callable[..., Machine]


def three_tasks(project: str, second: str = "until [ -e go ]; do sleep 0.05; done") -> str:
    """A plan whose second task waits for a file, by default."""
    return f"""
        project_id = "{project}"
        [[tasks]]
        name = "one"
        command = "echo one >> effects"
        [[tasks]]
        name = "two"
        command = "echo two-begins >> effects; {second}; echo two-ends >> effects"
        [[tasks]]
        name = "three"
        command = "echo three >> effects"
    """


def kill_in_second_task(machine: Machine, plan: str) -> None:
    """A run that dies of SIGKILL in its second task."""
    run = machine.start("run", plan)
    machine.await_effect("two-begins")
    children = run.children()
    run.signal(signal.SIGKILL)
    run.finish()
    until(lambda: not any(map(lives, children)), "no child")
    machine.work.joinpath("go").touch()


def statuses(client: Client, project: str) -> list[tuple[str, str]]:
    """All tasks of a project with their statuses, sorted."""
    return sorted((task.task_name, task.status) for task in client.list_tasks(project_id=project).items)


def test_a_killed_run_that_is_started_again_goes_on_at_once_with_the_task_that_was_interrupted(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    plan = machine.plan(three_tasks(project))
    kill_in_second_task(machine, plan)
    (killed,) = client.list_sessions(project_id=project).items
    assert killed.status == "active", "nobody has noticed yet: the threshold is three minutes"

    again = machine.do("run", plan)

    assert again.code == Exit.OK, again.err
    assert f"Going on with session {killed.session_id}" in again.out
    assert machine.effects() == ["one", "two-begins", "two-begins", "two-ends", "three"]
    sessions = client.list_sessions(project_id=project).items
    assert [one.status for one in sessions] == ["completed", "completed"]
    assert sessions[0].recovered_from == killed.session_id


@pytest.mark.parametrize("status", ["stalled", "paused", "failed"])
def test_whatever_has_become_of_the_session_of_a_dead_run_the_next_run_finds_it(
    server: Server, client: Client, machines: Machines, project: str, status: str
) -> None:
    machine = machines(server.url)
    plan = machine.plan(three_tasks(project))
    kill_in_second_task(machine, plan)
    (killed,) = client.list_sessions(project_id=project).items
    client.send(calls.update_session(killed.session_id, status=status))  # pyright: ignore[reportArgumentType]

    assert machine.do("run", plan).code == Exit.OK

    assert machine.effects() == ["one", "two-begins", "two-begins", "two-ends", "three"]
    assert client.get_session(killed.session_id).recovered_by is not None


def test_a_run_that_has_ended_well_begins_anew(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    plan = machine.plan(three_tasks(project, "true"))
    assert machine.do("run", plan).code == Exit.OK
    assert machine.do("run", plan).code == Exit.OK
    assert machine.effects() == ["one", "two-begins", "two-ends", "three"] * 2
    assert statuses(client, project) == sorted(
        [("one", "completed"), ("two", "completed"), ("three", "completed")] * 2
    )


@pytest.mark.parametrize("how", ["the same state directory", "another state directory"])
def test_a_second_run_leaves_a_living_one_alone(
    server: Server, client: Client, machines: Machines, project: str, how: str
) -> None:
    machine = machines(server.url)
    rival = machine
    if how == "another state directory":  # so that the lock does not keep them apart, but the session does
        rival = machines(server.url, f"{machine.machine_id}-rival", environment={})
        rival.environment["CLAUDE_PROJECTS_MACHINE_ID"] = machine.machine_id
    run = machine.start("run", machine.plan(three_tasks(project)))
    machine.await_effect("two-begins")

    second = rival.do("run", rival.plan(three_tasks(project)))

    assert second.code == Exit.HELD, second.err
    assert str(run.process.pid) in second.err
    machine.work.joinpath("go").touch()
    assert run.finish().code == Exit.OK
    assert machine.effects() == ["one", "two-begins", "two-ends", "three"]
    assert len(client.list_sessions(project_id=project).items) == 1


def test_resume_on_another_machine_leaves_a_living_session_alone(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine, other = machines(server.url), machines(server.url)
    run = machine.start("run", machine.plan(three_tasks(project)))
    machine.await_effect("two-begins")
    (session,) = client.list_sessions(project_id=project).items

    resumed = other.do("resume", session.session_id)

    assert resumed.code == Exit.HELD
    assert f"session {session.session_id} is being worked on by process {run.process.pid}" in resumed.err
    machine.work.joinpath("go").touch()
    assert run.finish().code == Exit.OK


def test_a_suspended_run_that_is_stalled_is_not_robbed_by_another_run(
    nervous: Server, machines: Machines, project: str
) -> None:
    machine = machines(nervous.url)
    rival = machines(nervous.url, f"{machine.machine_id}-rival")
    rival.environment["CLAUDE_PROJECTS_MACHINE_ID"] = machine.machine_id
    run = machine.start("run", machine.plan(three_tasks(project)))
    machine.await_effect("two-begins")
    run.signal(signal.SIGSTOP)
    with Client(nervous.url, KEY) as client:
        (session,) = client.list_sessions(project_id=project).items
        until(lambda: client.session_health(session.session_id).is_stalled, "the session to be stalled")

        second = rival.do("run", rival.plan(three_tasks(project)))
        assert second.code == Exit.HELD, second.err
        assert f"claude-projects resume {session.session_id}" in second.err

        run.signal(signal.SIGCONT)
        machine.work.joinpath("go").touch()
        assert run.finish().code == Exit.OK, "its next heartbeat has revived the session"
        assert client.get_session(session.session_id).status == "completed"


def test_of_two_runs_that_start_at_the_same_moment_one_works(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    rival = machines(server.url, f"{machine.machine_id}-rival")
    rival.environment["CLAUDE_PROJECTS_MACHINE_ID"] = machine.machine_id
    both = [one.start("run", one.plan(three_tasks(project, "true"))) for one in (machine, rival)]

    codes = sorted(run.finish().code for run in both)

    # The second may come so late that the first one's work is done, and then it rightly begins anew.
    effects = machine.effects() + rival.effects()
    runs = len(client.list_sessions(project_id=project).items)
    assert codes == ([Exit.OK, Exit.HELD] if runs == 1 else [Exit.OK, Exit.OK])
    assert sorted(effects) == sorted(["one", "two-begins", "two-ends", "three"] * runs)


@pytest.mark.parametrize("same_machine_id", [False, True])
def test_of_two_that_resume_the_same_session_at_the_same_moment_one_works(
    server: Server, client: Client, machines: Machines, project: str, *, same_machine_id: bool
) -> None:
    dead = machines(server.url)
    kill_in_second_task(dead, dead.plan(three_tasks(project)))
    (session,) = client.list_sessions(project_id=project).items
    rivals = [machines(server.url), machines(server.url)]
    if same_machine_id:
        rivals[1].environment["CLAUDE_PROJECTS_MACHINE_ID"] = rivals[0].machine_id
    for rival in rivals:
        rival.work.joinpath("go").touch()

    ends = [run.finish() for run in [rival.start("resume", session.session_id) for rival in rivals]]

    # The loser is refused; or he comes so late that nothing is left to be done.
    assert sorted(end.code for end in ends) in ([Exit.OK, Exit.HELD], [Exit.OK, Exit.OK]), [
        end.err for end in ends
    ]
    assert sorted(rivals[0].effects() + rivals[1].effects()) == sorted(["two-begins", "two-ends", "three"])
    assert len(client.list_sessions(project_id=project).items) == 2


def test_a_session_that_ends_while_it_is_taken_over_is_looked_at_again(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    kill_in_second_task(machine, machine.plan(three_tasks(project)))
    (session,) = client.list_sessions(project_id=project).items
    worker = Worker(Process.current(), machine.machine_id)
    journals = Journals(machine.home / "state")
    handover = Handover(worker, None, run_id="later", journals=journals, note=print)

    def with_an_end_in_between() -> Steps[object]:
        steps = handover.resume(session.session_id)
        outcome: Outcome = None
        while True:
            step = steps.send(outcome)
            if isinstance(step, Request) and step.path.endswith("/mark-stalled"):
                client.update_session(session.session_id, status="completed")
            outcome = yield step

    with pytest.raises(NothingLeftError):
        client.drive(with_an_end_in_between())


def test_a_chain_of_crashes_on_three_machines_loses_nothing_and_repeats_only_what_was_interrupted(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    first, second, third = machines(server.url), machines(server.url), machines(server.url)
    kill_in_second_task(first, first.plan(three_tasks(project)))
    (session,) = client.list_sessions(project_id=project).items
    run = second.start("resume", session.session_id)
    second.await_effect("two-begins")
    run.signal(signal.SIGKILL)
    run.finish()
    third.work.joinpath("go").touch()

    # The first session's id is enough: what came of it is found from there.
    end = third.do("resume", session.session_id)

    assert end.code == Exit.OK, end.err
    assert third.effects() == ["two-begins", "two-ends", "three"]
    completed = [one for one in statuses(client, project) if one[1] == "completed"]
    assert completed == [("one", "completed"), ("three", "completed"), ("two", "completed")]


def test_a_run_killed_while_it_records_its_tasks_is_finished_elsewhere_without_the_plan_file(
    server: Server, client: Client, wire: Wire, machines: Machines, project: str
) -> None:
    here, there = machines(wire.url), machines(server.url)
    run = here.start("run", here.plan(three_tasks(project, "true")))
    created: list[str] = []

    def kill_after_two(line: str) -> None:
        created.extend([line] if line.startswith("POST /api/tasks") else [])
        if len(created) == 2:
            run.signal(signal.SIGKILL)

    wire.on_request = kill_after_two
    assert run.finish().code == -signal.SIGKILL
    assert here.effects() == []
    (session,) = client.list_sessions(project_id=project).items
    assert [task.task_name for task in client.list_tasks(session_id=session.session_id).items] == [
        "two",
        "one",
    ]

    end = there.do("resume", session.session_id)

    assert end.code == Exit.OK, end.err
    assert there.effects() == ["one", "two-begins", "two-ends", "three"]


def test_a_plan_that_was_changed_after_a_failure_keeps_what_is_done(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    assert machine.do("run", machine.plan(three_tasks(project, "exit 4"))).code == Exit.TASK_FAILED

    mended = machine.do("run", machine.plan(three_tasks(project, "true")))

    assert mended.code == Exit.OK, mended.err
    assert machine.effects() == ["one", "two-begins", "two-begins", "two-ends", "three"]
    last = client.list_sessions(project_id=project).items[0]
    names = [task.task_name for task in client.list_tasks(session_id=last.session_id).items]
    assert sorted(names) == ["three", "two"], "the failed task's old definition is gone"


def test_fresh_begins_anew_after_a_failure(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    plan = machine.plan(three_tasks(project))
    kill_in_second_task(machine, plan)

    assert machine.do("run", "--fresh", plan).code == Exit.OK

    assert machine.effects() == ["one", "two-begins", "one", "two-begins", "two-ends", "three"]
    given_up = client.list_sessions(project_id=project).items[1]
    assert given_up.status == "failed"
    assert "--fresh" in given_up.metadata["error_message"]


def test_a_run_in_another_slot_of_the_machine_makes_the_slot_known(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    for slot in ("1", "2"):
        plan = machine.plan(three_tasks(f"{project}-{slot}", "true"))
        run = machine.do("run", "--docker-slot", slot, plan)
        assert run.code == Exit.OK, run.err
    assert client.get_machine(machine.machine_id).docker_slots == (1, 2)
    (session,) = client.list_sessions(project_id=f"{project}-2").items
    assert session.docker_slot == 2


def test_fresh_leaves_what_goes_on_on_another_machine_alone(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine, other = machines(server.url), machines(server.url)
    plan = machine.plan(three_tasks(project))
    kill_in_second_task(machine, plan)
    (killed,) = client.list_sessions(project_id=project).items
    elsewhere = other.start("resume", killed.session_id)
    other.await_effect("two-begins")

    assert machine.do("run", plan).code == Exit.HELD
    fresh = machine.do("run", "--fresh", plan)

    assert fresh.code == Exit.OK, fresh.err
    assert machine.effects() == ["one", "two-begins", "one", "two-begins", "two-ends", "three"]
    other.work.joinpath("go").touch()
    assert elsewhere.finish().code == Exit.OK


def test_another_plan_of_the_project_does_not_take_the_work_of_a_dead_one_but_its_place(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    kill_in_second_task(machine, machine.plan(three_tasks(project), "first.toml"))

    other = machine.do("run", machine.plan(three_tasks(project, "true"), "second.toml"))

    assert other.code == Exit.OK, other.err
    newest, dead = client.list_sessions(project_id=project).items
    assert (newest.status, newest.metadata["plan"]["name"]) == ("completed", "second")
    assert (dead.status, dead.metadata["plan"]["name"]) == ("stalled", "first")


def test_resume_of_a_completed_session_says_that_nothing_is_left(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    assert machine.do("run", machine.plan(three_tasks(project, "true"))).code == Exit.OK
    (session,) = client.list_sessions(project_id=project).items
    resumed = machine.do("resume", session.session_id)
    assert resumed.code == Exit.OK
    assert "nothing is left to do" in resumed.out


def test_resume_of_a_session_without_a_plan_says_what_it_lacks(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    session = client.create_session(project_id=project, machine_id=machine.machine_id)
    client.mark_failed(session.session_id, error_message="for this test")
    resumed = machine.do("resume", session.session_id)
    assert resumed.code == Exit.USAGE
    assert "does not say what there is to do" in resumed.err
    assert client.get_session(session.session_id).recovered_by is None
