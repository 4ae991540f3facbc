"""Locks, journals, settings, log files: what this machine keeps."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from claude_projects import settings
from claude_projects.child import claude_result, figures, tail
from claude_projects.journal import Journals, LockedError, lock, log_paths
from claude_projects.text import printable


def test_a_lock_is_held_by_one_process_and_given_back_when_that_is_killed(tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib; from claude_projects.journal import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 'p', 'm'): print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError) as error, lock(tmp_path, "p", "m"):
        pass
    assert error.value.holder == f"process {holder.pid}"
    with lock(tmp_path, "p", "another machine"), lock(tmp_path, "another project", "m"):
        pass
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with lock(tmp_path, "p", "m"):
        pass


def test_a_journal_remembers_what_was_done_and_survives_a_torn_line(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.open("p", "run-1", "plan", "m")
    journal.completed("d1")
    with (journal.directory / "journal.jsonl").open("a") as file:
        file.write('{"completed": "d')
    found = journals.unfinished("p", "plan", "m")
    assert found is not None
    assert (found.run_ids, found.done, found.has_session, found.ended) == (["run-1"], {"d1"}, False, False)
    assert journals.open("p", "run-1", "plan", "m").directory == journal.directory
    found.completed("d2")
    again = journals.find("p", "run-1")
    assert again is not None
    assert again.done == {"d1", "d2"}, "what is written after a torn line is not lost with it"


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 64, b"\xff\xfe", b"3", b"[]", b'{"completed": [1], "run_id": {}}', b'"completed"']
)
def test_a_journal_survives_what_a_broken_disk_makes_of_it(tmp_path: Path, garbage: bytes) -> None:
    journals = Journals(tmp_path)
    journal = journals.open("p", "run-1", "plan", "m")
    with (journal.directory / "journal.jsonl").open("ab") as file:
        file.write(garbage + b"\n")
    journal.completed("d1")
    found = journals.unfinished("p", "plan", "m")
    assert found is not None
    assert (found.run_ids, found.done) == (["run-1"], {"d1"})


@pytest.mark.parametrize("kept", [None, b"", b"\xff", b"half-a-"])
def test_a_machine_without_a_name_keeps_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes | None
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    monkeypatch.setenv("CLAUDE_PROJECTS_STATE_DIR", str(tmp_path / "state"))
    if kept is not None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state/machine-id").write_bytes(kept)
    made = settings.machine_id()
    assert uuid.UUID(made).version == 4
    assert settings.machine_id() == made
    monkeypatch.setenv("CLAUDE_PROJECTS_STATE_DIR", "/dev/null/nowhere")
    assert settings.machine_id() != made, "where nothing can be kept, the commands that only look still work"


def test_a_journal_is_known_by_every_name_of_its_run(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.open("p", "offline", "plan", "m").joined("s1", "the run that the API knows")
    found = journals.find("p", "the run that the API knows")
    assert found is not None
    assert found.has_session
    assert journals.find("another project", "offline") is None


def test_a_run_whose_end_the_api_knows_is_not_unfinished(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journal = journals.open("p", "run-1", "plan", "m")
    journal.end(told=False)
    unfinished = journals.unfinished("p", "plan", "m")
    assert unfinished is not None
    assert unfinished.ended
    journal.end(told=True)
    assert journals.unfinished("p", "plan", "m") is None
    assert journals.unfinished("p", "plan", "another machine") is None


@pytest.mark.parametrize("project", ["owner/repo", "../../etc", "ü", "x" * 300, ".", ""])
def test_whatever_a_project_is_called_its_files_stay_in_the_state_directory(
    tmp_path: Path, project: str
) -> None:
    journal = Journals(tmp_path).open(project, "run-1", "plan", "m")
    assert journal.directory.parent.parent == tmp_path
    assert journal.directory.stat().st_mode & 0o077 == 0, "nobody else reads prompts and output"
    out, err = log_paths(journal, 0, "../../" + "x" * 300)
    assert out.parent == err.parent == journal.directory
    out.touch()


def test_projects_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    assert (
        journals.open("a/b", "r", "plan", "m").directory.parent
        != journals.open("a:b", "r", "plan", "m").directory.parent
    )


def test_the_tail_of_a_log_is_text_without_colours_and_controls(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before" + b"\x1b[1;31mred\x1b[0m\x00\xff\r\nend\n")
    assert tail(log, 6) == "red\ufffd\nend"
    assert tail(tmp_path / "none", 0) == ""


def test_of_claudes_report_only_what_the_api_can_store_is_kept() -> None:
    said = {"session_id": "s\ud83d\0", "num_turns": "3", "total_cost_usd": float("nan"), "duration_ms": 5}
    assert figures(said) == {"session_id": "s", "duration_ms": 5}
    assert printable("half of \ud83d and\0 \x1b[31mred\x1b[0m") == "half of  and red"


@pytest.mark.parametrize("output", ["", "hello", "[1]", '{"type": "other"}'])
def test_output_that_is_not_claudes_is_left_alone(tmp_path: Path, output: str) -> None:
    log = tmp_path / "log"
    log.write_text(output)
    assert claude_result(log, 0) is None


def test_settings_come_from_flags_then_environment_then_file_then_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('url = "http://file"\napi_key = "file"\nmachine_id = "file"\nheartbeat_seconds = 5\n')
    monkeypatch.setenv("CLAUDE_PROJECTS_CONFIG", str(config))
    chosen = settings.read(
        {"url": "http://flag", "api_key": None},
        {
            "CLAUDE_PROJECTS_URL": "http://env",
            "CLAUDE_PROJECTS_API_KEY": "env",
            "CLAUDE_PROJECTS_MACHINE_ID": "",
        },
    )
    assert (chosen.url.value, chosen.url.source) == ("http://flag", "the command line")
    assert (chosen.api_key.value, chosen.api_key.source) == ("env", "CLAUDE_PROJECTS_API_KEY")
    assert (chosen.machine_id.value, chosen.machine_id.source) == ("file", str(config))
    assert chosen.heartbeat_seconds.value == 5
    assert (chosen.freeze_after_seconds.value, chosen.freeze_after_seconds.source) == (10, "default")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uri = 'x'", "`uri`: no such setting"),
        ("url = 3", "url must be a text"),
        ("url = ' '", "url must be a text"),
        ("heartbeat_seconds = 0", "heartbeat_seconds must be a number of seconds above 0"),
        ("heartbeat_seconds = nan", "heartbeat_seconds must be a number of seconds above 0"),
        ("heartbeat_seconds = true", "heartbeat_seconds must be a number of seconds above 0"),
        ("url = ", "Invalid value"),
    ],
)
def test_a_bad_configuration_file_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    monkeypatch.setenv("CLAUDE_PROJECTS_CONFIG", str(config))
    with pytest.raises(settings.ConfigurationError, match=says) as error:
        settings.read({}, {})
    assert str(config) in str(error.value)
