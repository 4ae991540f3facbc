"""What the command line says, to people and to programs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ports import free_port

from claude_projects import Client, calls
from claude_projects.exits import Exit
from claude_projects.settings import ENVIRONMENT
from client_harness.command import Machine
from client_harness.server import Server
from client_harness.wire import Wire, answer

Machines = Callable[..., Machine]
README = Path(__file__).parents[2] / "README.md"

EVERY_QUERY = [
    ("sessions", "list"),
    ("sessions", "show", "x"),
    ("sessions", "stalled"),
    ("sessions", "recover", "x"),
    ("sessions", "archive", "x"),
    ("machines", "list"),
    ("tasks", "list"),
    ("resume", "x"),
]


@pytest.mark.parametrize("command", EVERY_QUERY)
def test_an_api_that_is_away_gets_one_sentence(machines: Machines, command: tuple[str, ...]) -> None:
    port = free_port()
    done = machines(f"http://127.0.0.1:{port}").do(*command)
    assert done.code == Exit.UNREACHABLE
    assert done.err.startswith(
        f"claude-projects: the state tracking API at http://127.0.0.1:{port} cannot be reached"
    )
    assert done.err.count("\n") == 1
    assert done.out == ""


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:3000", "is not an address"),
        ("http://no-such-host.invalid", "cannot be reached"),
        ("http://127.0.0.1:1/ü", "cannot be reached"),
    ],
)
def test_a_wrong_address_gets_one_sentence(machines: Machines, url: str, said: str) -> None:
    done = machines(url).do("sessions", "list")
    assert (done.code, done.err.count("\n")) == (Exit.UNREACHABLE, 1)
    assert said in done.err


def test_a_server_that_is_not_the_api_gets_one_sentence(
    machines: Machines, server: Server, wire: Wire
) -> None:
    wire.faults.append(answer("200 OK", body="<html>"))
    done = machines(wire.url).do("sessions", "list")
    assert (done.code, done.err.count("\n")) == (Exit.UNREACHABLE, 1)
    assert "not JSON" in done.err


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "API key required"),
        ("hello", "Malformed API key"),
        ("9f1c2f2e-6b0c-4a3e-9f57-1d2c3b4a5e6f", "Invalid API key"),
    ],
)
@pytest.mark.parametrize("command", [("sessions", "list"), ("resume", "x")])
def test_a_wrong_key_gets_one_sentence(
    machines: Machines, server: Server, key: str, said: str, command: tuple[str, ...]
) -> None:
    done = machines(server.url, key=key).do(*command)
    assert (done.code, done.err.count("\n")) == (Exit.UNAUTHORIZED, 1)
    assert f"the API refuses the key: {said}" in done.err
    assert not key or key not in done.err


def test_a_key_that_cannot_be_one_and_a_state_directory_that_cannot_be_one_get_one_sentence(
    machines: Machines, server: Server, project: str
) -> None:
    machine = machines(server.url, key="schlüssel")
    done = machine.do("sessions", "list")
    assert (done.code, done.err.count("\n")) == (Exit.USAGE, 1)
    assert "CLAUDE_PROJECTS_API_KEY: api_key holds characters that no key has" in done.err
    machine = machines(server.url, environment={"CLAUDE_PROJECTS_STATE_DIR": "/dev/null/x"})
    path = machine.plan(f"project_id = '{project}'\n[[tasks]]\nname = 'a'\ncommand = 'true'\n")
    done = machine.do("run", path)
    assert (done.code, done.err.count("\n")) == (Exit.USAGE, 1)
    assert "Not a directory" in done.err
    assert "CLAUDE_PROJECTS_STATE_DIR" in done.err


def test_programs_that_do_not_read_to_the_end_and_locales_without_umlauts_do_no_harm(
    machines: Machines, server: Server, client: Client, project: str
) -> None:
    machine = machines(server.url, environment={"PYTHONIOENCODING": "ascii"})
    client.create_session(project_id=project, machine_id="mäschine")
    listed = machine.do("sessions", "list", "--project", project, "--json")
    assert [one["machine_id"] for one in listed.json()["sessions"]] == ["mäschine"]
    listed = machine.do("sessions", "list", "--project", project)
    assert listed.code == Exit.OK
    assert r"m\xe4schine" in listed.out


def test_what_does_not_exist_gets_one_sentence(machines: Machines, server: Server) -> None:
    for command in (("sessions", "show", "x"), ("resume", "x"), ("sessions", "recover", "..")):
        done = machines(server.url).do(*command)
        assert (done.code, done.err.count("\n")) == (Exit.REFUSED, 1), done.err
        assert "does not exist" in done.err


def test_a_bad_plan_is_told_line_by_line(machines: Machines, server: Server) -> None:
    machine = machines(server.url)
    path = machine.plan("project_id = ''\n[[tasks]]\nname = 'a'\n")
    done = machine.do("run", path)
    assert done.code == Exit.USAGE
    assert done.err == (
        f"claude-projects: {path}:1: `project_id` must not be empty\n"
        f"{path}:2: task 1 ('a'): a task needs a `prompt` or a `command`\n"
    )


def test_bad_settings_and_options_get_one_sentence(machines: Machines, server: Server) -> None:
    machine = machines(server.url)
    done = machine.do("sessions", "list", "--status", "dead")
    assert (done.code, done.err.count("\n")) == (Exit.USAGE, 1)
    assert "none of active, paused, completed, failed, stalled" in done.err
    machine.home.joinpath("config.toml").write_text("key = 'x'\n")
    done = machine.do("sessions", "list")
    assert (done.code, done.err.count("\n")) == (Exit.USAGE, 1)
    assert "`key`: no such setting" in done.err


def test_people_get_tables_and_programs_get_the_apis_own_words(
    machines: Machines, server: Server, client: Client, project: str
) -> None:
    machine = machines(server.url)
    client.register_machine(hostname="h", machine_id=project, docker_slots=[1, 2])
    session = client.create_session(project_id=project, machine_id=project, metadata={"[red]": "x"})
    task = client.create_task(
        session_id=session.session_id, project_id=project, task_name="[bold]t[/bold]\x1b]0;x\x07"
    )
    client.update_task(task.task_id, status="failed", error_message="why\nand more")

    listed = machine.do("sessions", "list", "--project", project)
    assert session.session_id in listed.out
    assert "active" in listed.out
    assert machine.do("sessions", "list", "--project", project, "--json").json() == {
        "sessions": client.send(calls.list_sessions(project_id=project).raw())["sessions"]
    }
    shown = machine.do("sessions", "show", session.session_id)
    assert shown.code == Exit.OK
    assert "[bold]t[/bold]" in shown.out, "what the API says is shown as it is"
    assert "\x1b" not in shown.out, "and commands nobody's terminal"
    assert "\x07" not in shown.out
    assert "why" in shown.out
    assert "and more" not in shown.out
    as_json = machine.do("sessions", "show", session.session_id, "--json").json()
    assert as_json["session"]["metadata"]["[red]"] == "x"
    assert as_json["health"]["is_healthy"] is True
    assert [one["error_message"] for one in as_json["tasks"]] == ["why\nand more"]
    assert (
        task.task_id in machine.do("tasks", "list", "--session", session.session_id, "--status", "failed").out
    )
    assert project in machine.do("machines", "list", "--limit", "1000").out
    assert machine.do("sessions", "list", "--project", "nobody").out == "No sessions.\n"

    client.mark_stalled(session.session_id)
    assert session.session_id in machine.do("sessions", "stalled").out
    recovered = machine.do("sessions", "recover", session.session_id, "--machine-id", f"{project}-2")
    assert recovered.code == Exit.OK
    assert "has been taken over by" in recovered.out
    again = machine.do("sessions", "recover", session.session_id, "--json").json()
    assert again["recovered_from"] == session.session_id
    archived = machine.do("sessions", "archive", session.session_id)
    assert archived.out == f"{session.session_id} is archived\n"
    assert session.session_id in machine.do("sessions", "list", "--archived", "--limit", "1000").out
    refused = machine.do("sessions", "archive", again["session_id"])
    assert (refused.code, refused.err.count("\n")) == (Exit.REFUSED, 1)


def test_config_tells_each_setting_and_its_source_and_not_the_key(machines: Machines, server: Server) -> None:
    machine = machines(server.url)
    done = machine.do("--url", "http://flag", "config", "--json")
    told = done.json()
    assert told["url"] == {"value": "http://flag", "source": "the command line"}
    assert told["api_key"]["source"] == "CLAUDE_PROJECTS_API_KEY"
    assert machine.key not in done.out
    assert set(told) == set(ENVIRONMENT)


def test_every_exit_code_and_every_setting_is_documented_and_every_documented_one_exists() -> None:
    text = README.read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == {
        int(code) for code in Exit
    }
    named = set(re.findall(r"CLAUDE_PROJECTS_[A-Z_]+", text))
    assert named == {*ENVIRONMENT.values(), "CLAUDE_PROJECTS_CONFIG", "CLAUDE_PROJECTS_STATE_DIR"}
    assert set(re.findall(r"`(\w+)` \|", text)) >= set(ENVIRONMENT)


def test_every_command_is_documented(machines: Machines) -> None:
    text = README.read_text(encoding="utf-8")
    machine = machines("http://127.0.0.1:1")
    for group in ((), ("sessions",), ("machines",), ("tasks",)):
        shown = machine.do(*group, "--help").out
        commands = re.findall(r"^│ ([a-z]+) ", shown, re.MULTILINE)
        assert commands
        assert all(re.search(rf"\b{command}\b", text) for command in commands)
