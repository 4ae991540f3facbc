"""The whole path of a killed orchestration, with real processes and real signals."""

import signal
from collections.abc import Callable

from claude_projects import Client
from claude_projects.exits import Exit
from client_harness.command import Machine
from client_harness.processes import is_held, lives
from client_harness.server import KEY, Server
from client_harness.waiting import until

# Each task notes when it begins and when it is done; the second one waits for a file, so that it can be
# killed in the middle and is allowed to end the next time.
PLAN = """
project_id = "{project}"
command = ["sh", "-c", "cat >> effects; echo >> effects"]

[[tasks]]
name = "format"
command = "echo format >> effects"

[[tasks]]
name = "lint"
command = "echo lint-begins >> effects; until [ -e go ]; do sleep 0.05; done; echo lint-ends >> effects"

[[tasks]]
name = "types"
github_issue_id = "17"
prompt = "types"

[[tasks]]
name = "wheel"
command = "echo wheel >> effects"
"""


def test_a_run_killed_in_its_second_task_is_listed_as_stalled_and_finished_by_another_machine(
    nervous: Server, machines: Callable[..., Machine], project: str
) -> None:
    here, there = machines(nervous.url), machines(nervous.url)
    run = here.start("run", here.plan(PLAN.format(project=project)))
    here.await_effect("lint-begins")
    children = run.children()
    assert len(children) >= 2, "a guard and its command"

    run.signal(signal.SIGKILL)
    assert run.finish().code == -signal.SIGKILL
    until(lambda: not any(map(lives, children)), "the command to die with its run")

    def stalled() -> list[str]:
        listed = there.do("sessions", "stalled", "--json").json()["stalled_sessions"]
        return [one["session_id"] for one in listed if one["project_id"] == project]

    (session_id,) = until(stalled, "the session to be listed as stalled")

    there.work.joinpath("effects").write_bytes(here.work.joinpath("effects").read_bytes())
    there.work.joinpath("go").touch()
    resumed = there.do("resume", session_id)
    assert resumed.code == Exit.OK, resumed.err
    assert there.effects() == ["format", "lint-begins", "lint-begins", "lint-ends", "types", "wheel"]

    with Client(nervous.url, KEY) as client:
        original = client.get_session(session_id)
        assert original.status == "completed"
        assert original.recovered_by is not None
        successor = client.get_session(original.recovered_by)
        assert (successor.status, successor.machine_id) == ("completed", there.machine_id)
        tasks = [*client.list_tasks(session_id=session_id).items]
        tasks += client.list_tasks(session_id=successor.session_id).items
        completed = sorted(task.task_name for task in tasks if task.status == "completed")
        assert completed == ["format", "lint", "types", "wheel"], "each once"
        (interrupted,) = [task for task in tasks if task.status == "failed"]
        assert (interrupted.task_name, interrupted.session_id) == ("lint", session_id)
        (types,) = [task for task in tasks if task.task_name == "types" and task.status == "completed"]
        assert types.github_issue_id == "17"


def test_a_process_that_wakes_after_it_was_replaced_stops_itself_and_its_command(
    nervous: Server, machines: Callable[..., Machine], project: str
) -> None:
    here = machines(nervous.url, environment={"CLAUDE_PROJECTS_FREEZE_AFTER_SECONDS": "1"})
    there = machines(nervous.url)
    # This command works without end, and every piece of its work can be seen.
    busy = (
        "echo begins >> effects; while [ ! -e go ]; do echo x >> work; sleep 0.02; done; echo ends >> effects"
    )
    plan = f"""
        project_id = "{project}"
        [[tasks]]
        name = "first"
        command = "echo first >> effects"
        [[tasks]]
        name = "second"
        command = "{busy}"
        [[tasks]]
        name = "third"
        command = "echo third >> effects"
    """
    run = here.start("run", here.plan(plan))
    here.await_effect("begins")
    command = next(child for child in run.children() if "while" in " ".join(child.cmdline()))
    guard = next(child for child in run.children() if "guard.py" in " ".join(child.cmdline()))

    run.signal(signal.SIGSTOP)
    until(lambda: is_held(command), "the guard to hold the command of a frozen run")

    with Client(nervous.url, KEY) as client:
        (session,) = client.list_sessions(project_id=project).items
        until(lambda: client.session_health(session.session_id).is_stalled, "the session to be stalled")
        there.work.joinpath("go").touch()
        resumed = there.do("resume", session.session_id)
        assert resumed.code == Exit.OK, resumed.err
        assert there.effects() == ["begins", "ends", "third"], "and not the first, which was done"
        work_done = here.effects("work")

        run.signal(signal.SIGCONT)
        woken = run.finish()
        assert woken.code == Exit.REPLACED, woken.err
        successor = client.get_session(session.session_id).recovered_by
        assert successor is not None
        assert successor in woken.err
        assert not lives(command)
        until(lambda: not lives(guard), "the guard to end")
        assert here.effects("work") == work_done, "not one piece of work after it was replaced"
        assert here.effects() == ["first", "begins"]

        tasks = client.list_tasks(session_id=session.session_id).items
        assert sorted((task.task_name, task.status) for task in tasks) == [
            ("first", "completed"),
            ("second", "failed"),
            ("third", "pending"),
        ], "as the recovery left them"
