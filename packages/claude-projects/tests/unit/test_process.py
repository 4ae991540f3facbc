"""Who is behind a session, told by real processes."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from claude_projects import process
from claude_projects.handover import refusal
from claude_projects.models import Session, SessionHealth
from claude_projects.process import Presence, Process, presence_behind

NOW = datetime.now(UTC)
DESCRIBE = "from claude_projects.process import Process; import dataclasses, json; "
PRINT = "print(json.dumps(dataclasses.asdict(Process.current())), flush=True); input()"


def session(metadata: dict[str, Any], recovered_from: str | None = None, status: str = "active") -> Session:
    return Session(
        session_id="s1",
        project_id="p",
        machine_id="m",
        status=status,
        last_heartbeat=NOW,
        started_at=NOW,
        metadata=metadata,
        created_at=NOW,
        updated_at=NOW,
        recovered_from=recovered_from,
    )


def test_this_process_lives() -> None:
    assert Process.current().presence() is Presence.ALIVE


def test_a_process_is_alive_until_it_ends_and_a_zombie_is_dead() -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", DESCRIBE + PRINT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdin is not None
    described = Process(**json.loads(other.stdout.readline()))
    assert described.pid == other.pid
    assert described.presence() is Presence.ALIVE
    other.stdin.close()
    other.stdout.read()
    while described.presence() is Presence.ALIVE:  # it has closed its output and is about to end
        pass
    assert described.presence() is Presence.DEAD, "a zombie: nobody has waited for it"
    other.wait()
    other.stdout.close()
    assert described.presence() is Presence.DEAD


def test_a_process_id_that_is_used_again_is_told_apart_by_its_start() -> None:
    assert replace(Process.current(), started="tick 1").presence() is Presence.DEAD


def test_a_process_of_another_boot_or_container_cannot_be_seen() -> None:
    assert replace(Process.current(), place="elsewhere").presence() is Presence.UNSEEN


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_process_that_lives_but_is_not_shown_to_us_may_be_the_one_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = Process.current()
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(process, "_PROC", tmp_path)  # as a /proc mounted with hidepid looks to other users
    assert me.presence() is Presence.UNSEEN
    assert replace(me, pid=ended.pid).presence() is Presence.DEAD


def test_a_session_tells_who_is_behind_it() -> None:
    me = Process.current()
    assert Process.of(session({"process": me.describe(None)})) == me
    assert Process.of(session({"process": me.describe("s1")}, recovered_from="s0")) == me


@pytest.mark.parametrize("meant_for", [None, "s0"])
def test_a_description_that_a_successor_inherited_says_nothing_of_it(meant_for: str | None) -> None:
    inherited = session({"process": Process.current().describe(meant_for)}, recovered_from="s0")
    assert Process.of(inherited) is None
    assert presence_behind(inherited) is Presence.UNSEEN


@pytest.mark.parametrize(
    "nonsense", [None, 3, "x", [], {}, {"pid": "1"}, {"pid": True, "started": "x", "place": "y"}]
)
def test_nonsense_in_the_metadata_is_nobody(nonsense: object) -> None:
    assert presence_behind(session({"process": nonsense})) is Presence.UNSEEN


def test_a_process_that_said_that_it_stops_need_not_be_seen() -> None:
    gone = {**replace(Process.current(), place="elsewhere").describe(None), "ended": True}
    assert presence_behind(session({"process": gone})) is Presence.DEAD


ALIVE, DEAD, UNSEEN = Presence.ALIVE, Presence.DEAD, Presence.UNSEEN


@pytest.mark.parametrize(
    ("status", "silent", "presence", "run_may", "resume_may"),
    [
        ("active", False, ALIVE, False, False),
        ("active", False, DEAD, True, True),
        ("active", False, UNSEEN, False, False),
        ("active", True, ALIVE, False, True),
        ("active", True, DEAD, True, True),
        ("active", True, UNSEEN, True, True),
        ("paused", False, ALIVE, False, False),
        ("paused", False, DEAD, True, True),
        ("paused", False, UNSEEN, False, False),
        ("paused", True, UNSEEN, True, True),
        ("stalled", True, ALIVE, False, True),
        ("stalled", True, DEAD, True, True),
        ("stalled", True, UNSEEN, True, True),
        ("failed", False, DEAD, True, True),
        ("failed", False, UNSEEN, True, True),
        ("failed", False, ALIVE, False, True),
    ],
)
def test_who_may_be_taken_over(
    status: str, presence: Presence, *, silent: bool, run_may: bool, resume_may: bool
) -> None:
    health = SessionHealth(
        session_id="s1",
        is_healthy=status == "active" and not silent,
        status=status,
        last_heartbeat=NOW,
        time_since_heartbeat_ms=200_000 if silent else 1000,
        is_stalled=status == "stalled" or (status == "active" and silent),
        stall_threshold_ms=180_000,
    )
    one = session({"process": Process.current().describe(None)}, status=status)
    assert (refusal(one, health, presence, explicit=False) is None) is run_may
    assert (refusal(one, health, presence, explicit=True) is None) is resume_may
