"""Failures, timeouts, signals: what the command learns, what the API learns, and the exit code."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from claude_projects import Client
from claude_projects.exits import Exit
from client_harness.command import Machine
from client_harness.processes import lives
from client_harness.server import Server
from client_harness.waiting import until

Machines = Callable[..., Machine]
WAITS = "echo begins >> effects; until [ -e go ]; do sleep 0.05; done"


def plan(project: str, *commands: str, more: str = "") -> str:
    """A plan whose tasks are called a, b, c…; ``more`` is added to the last one."""
    tasks = [f"[[tasks]]\nname = '{chr(97 + n)}'\ncommand = '''{one}'''\n" for n, one in enumerate(commands)]
    return f"project_id = '{project}'\n" + "".join(tasks) + more


def tasks_of(client: Client, project: str) -> dict[str, tuple[str, str | None]]:
    """Status and error message of a project's tasks, by name."""
    tasks = client.list_tasks(project_id=project).items
    return {task.task_name: (task.status, task.error_message) for task in tasks}


def test_a_failed_command_ends_the_plan_with_its_exit_code_and_the_end_of_its_error_output(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    noisy = "seq 100000 >&2; printf '\\033[31mno \\000such thing\\033[0m\\n' >&2; exit 3"
    run = machine.do("run", machine.plan(plan(project, "true", noisy, "echo never >> effects")))
    assert run.code == Exit.TASK_FAILED
    assert machine.effects() == []
    tasks = tasks_of(client, project)
    assert tasks["a"] == ("completed", None)
    assert tasks["c"] == ("pending", None)
    status, message = tasks["b"]
    assert status == "failed"
    assert message is not None
    assert message.startswith("exit code 3\n")
    assert message.endswith("100000\nno such thing")
    assert len(message) < 5000
    (session,) = client.list_sessions(project_id=project).items
    assert session.status == "failed"
    assert session.metadata["error_message"] == "task 2 of 3 ('b') has failed"
    assert "no such thing" in run.err


def test_a_command_that_cannot_be_started_is_a_failure_that_names_it(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    text = f"project_id = '{project}'\n[[tasks]]\nname = 'a'\ncommand = ['no-such-program', 'x']\n"
    assert machine.do("run", machine.plan(text)).code == Exit.TASK_FAILED
    assert tasks_of(client, project)["a"] == (
        "failed",
        "the command could not be started: no-such-program: No such file or directory",
    )


def test_a_command_that_dies_of_a_signal_is_a_failure_that_names_the_signal(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    assert machine.do("run", machine.plan(plan(project, "kill -SEGV $$"))).code == Exit.TASK_FAILED
    assert tasks_of(client, project)["a"] == ("failed", "ended by SIGSEGV")


def test_a_timeout_ends_the_command_with_everything_that_it_has_started(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    family = "sh -c 'echo $$ >> pids; sleep 1000' & echo $$ >> pids; wait"
    run = machine.do("run", machine.plan(plan(project, family, more="timeout_seconds = 3\n")))
    assert run.code == Exit.TASK_FAILED
    assert tasks_of(client, project)["a"] == ("failed", "timed out after 3 s")
    pids = [int(pid) for pid in machine.effects("pids")]
    assert len(pids) == 2
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the family to be gone")


def test_sigint_is_passed_on_and_pauses_the_session_and_the_next_run_goes_on(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    waits = f"trap 'echo interrupted >> effects; exit 0' INT; {WAITS}"
    path = machine.plan(plan(project, "echo first >> effects", waits))
    run = machine.start("run", path)
    machine.await_effect("begins")
    run.signal(signal.SIGINT)
    assert run.finish().code == Exit.INTERRUPTED
    assert machine.effects() == ["first", "begins", "interrupted"]
    (session,) = client.list_sessions(project_id=project).items
    assert session.status == "paused"
    assert tasks_of(client, project)["b"][0] == "blocked", "exit status 0 after an interruption is no success"

    machine.work.joinpath("go").touch()
    assert machine.do("run", path).code == Exit.OK
    assert machine.effects() == ["first", "begins", "interrupted", "begins"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_passed_on_and_leave_a_failed_session_that_any_machine_may_resume(
    server: Server, client: Client, machines: Machines, project: str, number: signal.Signals
) -> None:
    machine, other = machines(server.url), machines(server.url)
    waits = f"trap 'echo ended >> effects; exit 1' TERM; {WAITS}"
    run = machine.start("run", machine.plan(plan(project, waits)))
    machine.await_effect("begins")
    run.signal(number)
    assert run.finish().code == Exit.TERMINATED
    assert machine.effects() == ["begins", "ended"]
    (session,) = client.list_sessions(project_id=project).items
    assert (session.status, session.metadata["error_message"]) == ("failed", f"stopped by {number.name}")
    assert tasks_of(client, project)["a"] == ("failed", f"interrupted by {number.name}")

    other.work.joinpath("go").touch()
    assert other.do("resume", session.session_id).code == Exit.OK


def test_a_run_under_nohup_goes_on_when_its_terminal_is_gone(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    hangs_up = "kill -HUP $(ps -o ppid= -p $(ps -o ppid= -p $$))"  # the guard's parent
    run = machine.start(
        "run", machine.plan(plan(project, hangs_up, "echo next >> effects")), hangup=signal.SIG_IGN
    )
    assert run.finish().code == Exit.OK
    assert machine.effects() == ["next"]


def test_nobody_needs_to_read_what_a_run_says(server: Server, machines: Machines, project: str) -> None:
    machine = machines(server.url)
    path = machine.plan(plan(project, "echo ü >> effects", "echo next >> effects").replace("'a'", "'ü'"))
    for reader in ("head -n 0", "cat > /dev/full"):
        shell = f"claude-projects run {path} 2>&1 | {reader}; echo ${{PIPESTATUS[0]}} > code"
        subprocess.run(
            ["bash", "-c", shell],
            cwd=machine.work,
            env={
                **machine.variables(),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONIOENCODING": "ascii",
            },
            check=False,
            capture_output=True,
        )
        assert machine.effects("code") == [str(int(Exit.OK))]
    assert machine.effects() == ["ü", "next"] * 2


def test_a_disk_that_is_full_does_not_stop_the_work(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    fill = "ln -sf /dev/full $(ls $CLAUDE_PROJECTS_STATE_DIR/*/*/journal.jsonl)"
    run = machine.do("run", machine.plan(plan(project, fill, "echo next >> effects")))
    assert run.code == Exit.OK, run.err
    assert run.err.count("The journal cannot be written ([Errno 28]") == 1
    assert machine.effects() == ["next"]
    assert {status for status, _ in tasks_of(client, project).values()} == {"completed"}


def test_a_command_for_which_there_is_no_room_is_a_failure(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    in_the_way = "mkdir $(dirname $CLAUDE_PROJECTS_STATE_DIR/*/*/journal.jsonl)/02-b.out.prompt"
    run = machine.do("run", machine.plan(plan(project, in_the_way, "cat", more="prompt = 'x'\n")))
    assert run.code == Exit.TASK_FAILED, run.err
    status, message = tasks_of(client, project)["b"]
    assert status == "failed"
    assert message is not None
    assert message.startswith("the command could not be started: [Errno 21] Is a directory")
    assert client.list_sessions(project_id=project).items[0].status == "failed"


def test_a_second_signal_kills_a_command_that_does_not_listen(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    deaf = "trap 'echo heard >> effects' INT; echo begins >> effects; while :; do sleep 0.05; done"
    run = machine.start("run", machine.plan(plan(project, deaf)))
    machine.await_effect("begins")
    children = run.children()
    run.signal(signal.SIGINT)
    machine.await_effect("heard")
    run.signal(signal.SIGINT)
    assert run.finish().code == Exit.INTERRUPTED
    until(lambda: not any(child.is_running() for child in children), "the command to be gone")


def test_a_run_that_is_interrupted_by_its_own_command_does_not_begin_the_next_task(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    interrupts = "kill -INT $(ps -o ppid= -p $(ps -o ppid= -p $$))"  # the guard's parent
    run = machine.do("run", machine.plan(plan(project, interrupts, "echo never >> effects")))
    assert run.code == Exit.INTERRUPTED, run.err
    assert machine.effects() == []
    assert client.list_sessions(project_id=project).items[0].status == "paused"


def test_what_had_ended_well_before_the_interruption_is_not_done_again(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    waits = "echo begins >> effects; until [ -e go ]; do sleep 0.05; done"
    run = machine.start("run", machine.plan(plan(project, waits, "echo never >> effects")))
    machine.await_effect("begins")
    children = run.children()
    run.signal(signal.SIGSTOP)
    machine.work.joinpath("go").touch()
    until(lambda: not any(map(lives, children)), "the command and its guard to have ended")
    run.signal(signal.SIGINT)
    run.signal(signal.SIGCONT)
    assert run.finish().code == Exit.INTERRUPTED
    assert machine.effects() == ["begins"]
    tasks = client.list_tasks(project_id=project).items
    assert {task.task_name: task.status for task in tasks} == {"a": "completed", "b": "blocked"}


def test_what_a_finished_command_leaves_running_is_ended_unless_it_left_the_group(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    leaves = "sleep 1000 & echo $! >> pids; setsid sh -c 'echo $$ >> daemons; exec sleep 999' & "
    leaves += "until [ -s daemons ]; do sleep 0.05; done"
    assert machine.do("run", machine.plan(plan(project, leaves))).code == Exit.OK
    until(lambda: not psutil.pid_exists(int(machine.effects("pids")[0])), "the background process to be gone")
    (daemon,) = map(int, machine.effects("daemons"))
    assert psutil.pid_exists(daemon)
    psutil.Process(daemon).kill()


def test_everything_that_a_command_has_started_dies_with_a_killed_run_even_what_left_the_group(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    escapes = "setsid sh -c 'echo $$ >> pids; exec sleep 1000' & echo $$ >> pids; sleep 1000"
    run = machine.start("run", machine.plan(plan(project, escapes)))
    until(lambda: len(machine.effects("pids")) == 2, "both to be there")
    pids = [int(pid) for pid in machine.effects("pids")]
    run.signal(signal.SIGKILL)
    run.finish()
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the family to be gone")


def test_a_command_whose_guard_is_killed_does_not_live_on(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    run = machine.start("run", machine.plan(plan(project, "echo $$ >> pids; exec sleep 1000")))
    (pid,) = until(lambda: [int(pid) for pid in machine.effects("pids")], "the command")
    psutil.Process(pid).parent().kill()  # pyright: ignore[reportOptionalMemberAccess]
    assert run.finish().code == Exit.TASK_FAILED
    until(lambda: not psutil.pid_exists(pid), "the command to be gone")
    assert tasks_of(client, project)["a"] == ("failed", "the guard of the command was killed")


def test_prompts_reach_the_command_by_placeholder_by_environment_and_on_standard_input(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    text = f"""
        project_id = "{project}"
        command = ["sh", "-c", "cat > 1; echo \\"$CLAUDE_PROJECTS_PROMPT\\" > 2; env | grep ^CLAUDE > 3"]
        [[tasks]]
        name = "stdin"
        prompt = "say \\"hello\\"; $(touch bad)"
        [[tasks]]
        name = "word"
        prompt = "-n; $(touch bad) ü"
        command = ["sh", "-c", 'printf "%s" "$1" > 4', "sh", "--{{prompt}}--"]
        [[tasks]]
        name = "shell"
        prompt = "it's; $(touch bad)"
        command = "printf '%s' {{prompt}} > 5; echo x{{prompt}} > /dev/null"
    """
    run = machine.do("run", machine.plan(text))
    assert run.code == Exit.OK, run.err
    read = {path.name: path.read_text() for path in machine.work.iterdir()}
    assert read["1"] == 'say "hello"; $(touch bad)'
    assert read["2"] == 'say "hello"; $(touch bad)\n'
    assert "CLAUDE_PROJECTS_SESSION_ID=" in read["3"]
    assert "CLAUDE_PROJECTS_TASK_NAME=stdin" in read["3"]
    assert read["4"] == "---n; $(touch bad) ü--"
    assert read["5"] == "it's; $(touch bad)"
    assert "bad" not in read


def test_a_command_does_not_find_the_api_key_in_its_environment(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    text = f"""
        project_id = "{project}"
        [[tasks]]
        name = "curious"
        command = "env > environment"
    """
    run = machine.do("run", machine.plan(text))
    assert run.code == Exit.OK, run.err
    found = (machine.work / "environment").read_text()
    assert f"CLAUDE_PROJECTS_URL={server.url}" in found, "the environment was written down"
    assert machine.key not in found


def test_logs_and_journals_are_for_their_owner_alone(
    server: Server, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    text = f"""
        project_id = "{project}"
        [[tasks]]
        name = "write it"
        command = "echo secret"
    """
    run = machine.do("run", machine.plan(text))
    assert run.code == Exit.OK, run.err
    (log,) = machine.home.rglob("*.out.log")
    assert log.read_text() == "secret\n"
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert (log.parent / "journal.jsonl").exists()


@pytest.mark.parametrize("is_error", [False, True])
def test_the_default_command_is_claude_and_its_report_is_kept(
    server: Server, client: Client, machines: Machines, project: str, *, is_error: bool
) -> None:
    machine = machines(server.url)
    report = {
        "type": "result",
        "is_error": is_error,
        "result": "I could not" if is_error else "Done.",
        "session_id": "abc",
        "total_cost_usd": 0.25,
        "num_turns": 3,
    }
    # A stand-in for the claude program, which is not part of this project: it records how it was called.
    claude = machine.home / "bin" / "claude"
    claude.parent.mkdir()
    claude.write_text(
        f"#!/bin/sh\necho \"$@\" > arguments; cat > prompt; cat <<'EOF'\n{json.dumps(report)}\nEOF\n"
    )
    claude.chmod(0o755)
    machine.environment["PATH"] = f"{claude.parent}:{os.environ['PATH']}"
    text = f"project_id = '{project}'\n[[tasks]]\nname = 'a'\nprompt = 'Mend it'\n"
    run = machine.do("run", machine.plan(text))
    assert machine.work.joinpath("arguments").read_text() == "-p --output-format json\n"
    assert machine.work.joinpath("prompt").read_text() == "Mend it"
    (task,) = client.list_tasks(project_id=project).items
    assert task.metadata["result"]["claude"] == {"session_id": "abc", "num_turns": 3, "total_cost_usd": 0.25}
    if is_error:
        assert run.code == Exit.TASK_FAILED
        assert task.error_message == "claude reports an error\nI could not"
    else:
        assert (run.code, task.status) == (Exit.OK, "completed")


def test_every_task_has_its_log_files(server: Server, machines: Machines, project: str) -> None:
    machine = machines(server.url)
    run = machine.do("run", machine.plan(plan(project, "echo out; echo err >&2", "echo two")))
    (directory,) = re.findall(r"Logs in (.*)", run.out)
    logs = {path.name: path.read_text() for path in Path(directory).glob("*.log")}
    assert logs == {
        "01-a.out.log": "out\n",
        "01-a.err.log": "err\n",
        "02-b.out.log": "two\n",
        "02-b.err.log": "",
    }


def start_on(terminal: int, machine: Machine, path: str) -> "subprocess.Popen[bytes]":
    """Start running a plan on a terminal, given by its descriptor."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("claude-projects")), "run", path],
        cwd=machine.work,
        env={**machine.variables(), "TERM": "xterm", "COLUMNS": "100"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )


def on_a_terminal(machine: Machine, path: str) -> tuple[int, str]:
    """Run a plan on a terminal; its exit code and everything that was shown."""
    leader, follower = pty.openpty()
    process = start_on(follower, machine, path)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(leader)
    return process.wait(60), shown.decode()


def test_a_terminal_says_at_the_very_end_how_to_go_on(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    code, shown = on_a_terminal(machine, machine.plan(plan(project, "exit 1", "true")))
    assert code == Exit.TASK_FAILED
    (session,) = client.list_sessions(project_id=project).items
    assert shown.rstrip().endswith(f"claude-projects resume {session.session_id}")


def test_a_terminal_that_is_held_with_ctrl_s_does_not_hold_the_work(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    leader, follower = pty.openpty()
    termios.tcflow(follower, termios.TCOOFF)
    process = start_on(follower, machine, machine.plan(plan(project, "true", "true")))
    try:
        assert process.wait(60) == Exit.OK
    finally:
        process.kill()
        os.close(follower)
        os.close(leader)
    assert client.list_tasks(project_id=project, status="completed").total == 2


def test_a_terminal_shows_the_plan_and_its_progress(
    server: Server, client: Client, machines: Machines, project: str
) -> None:
    machine = machines(server.url)
    path = machine.plan(plan(project, "true", "sleep 0.6").replace("'b'", "'b [/x]'"))
    code, shown = on_a_terminal(machine, path)
    assert code == Exit.OK
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    (session,) = client.list_sessions(project_id=project).items
    assert f"plan  session {session.session_id}" in text
    assert re.search("✓ a +done, ", text)
    assert "✓ b [/x] done, " in text
    assert "\x1b[" in shown, "drawn in place"
