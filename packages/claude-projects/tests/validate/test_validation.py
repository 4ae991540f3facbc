"""`claude-projects validate` is green against a healthy server, and red in the right place otherwise."""

import json
import re
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner
from validate_harness import FORGETFUL, IMPATIENT, SLOW, Deployment, Validated, command, environment

from claude_projects.cli import app
from claude_projects.validation.command import _BreakingOff
from claude_projects.validation.probe import Probe, percentile
from claude_projects.validation.run import Run, Times
from client_harness.server import KEY
from client_harness.waiting import until
from client_harness.wire import Fault, Wire

# Five whole validations come before the first test.
pytestmark = pytest.mark.timeout(600)

# What each defect breaks; everything else must hold.
RED = {
    "detection-off": "failure-detection",
    "many-successors": "recovery",
    SLOW: "performance",
    "authentication-off": "authentication",
}


def test_everything_holds_against_a_healthy_server(healthy: Validated) -> None:
    assert healthy.code == 0, healthy.out
    assert set(healthy.held.values()) == {True}
    assert len(healthy.held) == 10
    assert healthy.report["verdict"] == "All scenarios held."


@pytest.mark.prd("4.4.a")
def test_a_session_is_read_as_it_was_created(healthy: Validated) -> None:
    assert healthy.checks("lifecycle")["the session is read as it was created"]


@pytest.mark.prd("4.4.b")
def test_heartbeats_succeed_and_move_last_heartbeat(healthy: Validated) -> None:
    checks = healthy.checks("lifecycle")
    assert [what for what in checks if what.startswith("heartbeat ")] == [
        f"heartbeat {n} → 200" for n in (1, 2, 3)
    ]
    assert checks["last_heartbeat is within 60 seconds of the server's clock"]


@pytest.mark.prd("4.4.c")
def test_a_silent_session_is_marked_stalled_by_a_background_job(healthy: Validated) -> None:
    checks = healthy.checks("failure-detection")
    assert checks["the session is marked stalled within 20 s of silence"]
    assert checks["a background job has marked it"]


@pytest.mark.prd("4.4.d")
def test_a_recovery_makes_a_new_session_and_completes_the_original(healthy: Validated) -> None:
    checks = healthy.checks("recovery")
    assert checks["the new session has an id of its own"]
    assert checks["the original is completed"]


@pytest.mark.prd("4.4.e")
def test_ten_sessions_at_the_same_time_run_without_errors(healthy: Validated) -> None:
    checks = healthy.checks("load")
    assert checks["10 sessions were completed without an error"]
    load = next(one for one in healthy.report["latencies_ms"] if one["name"] == "any request under load")
    assert load["p95"] < 1000


@pytest.mark.prd("4.4.f")
def test_nothing_of_a_validation_is_left(healthy: Validated) -> None:
    project = healthy.report["project_id"]
    for kind in ("", "-second"):
        assert healthy.deployment.get(f"/api/sessions?project_id={project}{kind}")["total"] == 0
        assert healthy.deployment.get(f"/api/tasks?project_id={project}{kind}")["total"] == 0
    machines = healthy.deployment.get("/api/machines")["machines"]
    assert not [one for one in machines if one["machine_id"].startswith(project)]


@pytest.mark.parametrize(("defect", "scenario"), RED.items())
def test_a_broken_server_is_red_in_the_right_scenario(
    validations: dict[str, Validated], defect: str, scenario: str
) -> None:
    found = validations[defect]
    assert found.code == 1
    red = {name for name, held in found.held.items() if not held}
    also = {"load"} if defect == SLOW else set()  # what is slow may be too slow for the load as well
    assert scenario in red, found.out
    assert red <= {scenario} | also, found.out


def test_a_broken_server_is_cleaned_up_all_the_same(validations: dict[str, Validated]) -> None:
    for found in (validations[defect] for defect in RED):
        project = found.report["project_id"]
        assert found.held["clean-up"]
        assert found.deployment.get(f"/api/sessions?project_id={project}")["total"] == 0


def test_the_three_reports_tell_the_same(validations: dict[str, Validated]) -> None:
    for found in validations.values():
        assert found.report["verdict"] in found.out
        assert f"**{found.report['verdict']}**" in found.markdown
        for one in found.report["scenarios"]:
            assert one["name"] in found.out
            assert f"| {one['title']} (`{one['name']}`) |" in found.markdown
        for latency in found.report["latencies_ms"]:
            assert latency["p50"] <= latency["p95"] <= latency["p99"]
            assert latency["held"] == (latency["p95"] < latency["p95_limit"])


def test_a_rate_limit_is_waited_for_and_does_not_count_as_an_error(
    deployments: dict[str, Deployment], tmp_path: Path
) -> None:
    done = _validate(deployments[IMPATIENT], tmp_path, "--quick", "--scenario", "machines")
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0, done.stdout
    assert report["throttled"] >= 3
    assert report["waited_seconds"] >= 3


def test_a_load_that_fails_does_not_break_off_what_comes_after_it(
    deployments: dict[str, Deployment], tmp_path: Path
) -> None:
    chosen = ("--scenario", "load", "--scenario", "performance", "--load-seconds", "600")
    done = _validate(deployments[FORGETFUL], tmp_path, *chosen, "--samples", "3", "--network-ms", "5000")
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 1, done.stdout
    assert {one["name"]: one["held"] for one in report["scenarios"]} == {
        "load": False,
        "performance": True,
        "clean-up": True,
    }
    assert report["verdict"] == "Did not hold: load."


def test_what_was_not_chosen_is_named_and_what_was_measured_counts(
    deployments: dict[str, Deployment], tmp_path: Path
) -> None:
    chosen = ("--scenario", "lifecycle", "--heartbeats", "1")
    done = _validate(deployments[SLOW], tmp_path, *chosen, "--network-ms", "5000")
    assert done.returncode == 0, done.stdout
    assert "Held; not looked at: authentication, failure-detection, " in done.stdout
    done = _validate(deployments[SLOW], tmp_path, *chosen)
    assert done.returncode == 1
    assert "p95 of heartbeat" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_validation_that_is_broken_off_cleans_up(
    standing: Deployment, tmp_path: Path, number: signal.Signals
) -> None:
    process = _under_load(standing, tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, f"{out} {err}"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"]
    assert not report["held"]
    assert _left_behind(standing, report["project_id"]) == 0


def test_a_second_signal_leaves_the_rest_and_says_how_to_delete_it(
    standing: Deployment, tmp_path: Path
) -> None:
    process = _under_load(standing, tmp_path)
    # Two that differ: the same one twice may count once.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, f"{out} {err}"
    said = re.search(r"Not all was deleted; try: claude-projects (.*)", err)
    assert said, err
    line = said[1].split()
    assert _left_behind(standing, line[-1]) > 0
    assert _run(*line, "--api-key", KEY).returncode == 0
    assert _left_behind(standing, line[-1]) == 0


def test_a_signal_during_the_clean_up_does_not_end_it() -> None:
    with closing(Probe("http://127.0.0.1:1", None)) as probe:
        breaking = _BreakingOff(Run(probe, Times()))
        breaking.begin_to_clean()
        breaking(signal.SIGINT, None)
        assert breaking.asked
        assert not probe.halt.is_set()


def test_what_a_killed_validation_left_is_cleaned_up_by_its_project(
    standing: Deployment, tmp_path: Path
) -> None:
    process = _under_load(standing, tmp_path)
    process.kill()
    process.communicate(timeout=30)
    project = standing.get("/api/sessions?status=active")["sessions"][0]["project_id"]
    done = _run("validate", *_address(standing), "--clean-up", project)
    assert done.returncode == 0
    assert _left_behind(standing, project) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--clean-up", "my-project"), "is no project of a validation"),
        (("--clean-up", "validation-"), "is no project of a validation"),
        (("--clean-up", "validation-of-my-own"), "is no project of a validation"),
        (("--scenario", "nonsense"), "no nonsense; there are authentication, "),
        (("--json", "/nonexistent/report.json"), "cannot be written"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_done(arguments: tuple[str, str], said: str) -> None:
    done = CliRunner().invoke(app, ["validate", "--url", "http://127.0.0.1:1", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--url", "http://127.0.0.1:9"), 3),
        (("--api-key", "5f1a6f0e-8f3c-4a5d-9d52-3c7a1b2c4d5e"), 4),
        (("--watch", "sometimes"), 2),
    ],
)
def test_what_cannot_begin_says_why(standing: Deployment, arguments: tuple[str, str], code: int) -> None:
    done = _run("validate", *_address(standing), *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("claude-projects: ")


def test_the_uptime_watch_goes_on_where_it_was_broken_off(standing: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "watch.jsonl"
    flags = ("--watch-interval", "0.1", "--watch-file", str(file))
    process = subprocess.Popen(
        command("validate", *_address(standing), "--watch", "24h", *flags),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: file.exists() and len(file.read_text().splitlines()) >= 5, "some looks")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Uptime 100.000 %" in out
    before = len(file.read_text().splitlines())
    with file.open("a") as torn:
        torn.write('{"at": 17')  # as a kill in the middle of a write leaves it
    done = _run("validate", *_address(standing), "--watch", "2s", *flags)
    assert done.returncode == 0, done.stderr
    assert "Going on with" in done.stderr
    assert len(file.read_text().splitlines()) > before
    assert "Uptime 100.000 % (target 99.5 %): held." in done.stdout


def test_the_uptime_watch_is_red_after_an_outage(standing: Deployment, tmp_path: Path) -> None:
    wire = Wire(standing.port)
    lost: list[Fault | bytes] = ["lose request"] * 1000

    def cut(_: str) -> None:
        if len(wire.seen) == 3:
            wire.faults.extend(lost)

    wire.on_request = cut
    flags = ("--watch-interval", "0.2", "--watch-file", str(tmp_path / "watch.jsonl"))
    with closing(wire):
        done = _run("validate", "--url", wire.url, "--api-key", KEY, "--watch", "3s", *flags)
    assert done.returncode == 1, done.stdout
    assert "FAILED" in done.stdout
    assert "Down from" in done.stdout


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_percentiles_are_nearest_rank(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected


def _address(deployment: Deployment) -> tuple[str, ...]:
    return ("--url", deployment.url, "--api-key", KEY)


def _under_load(deployment: Deployment, directory: Path) -> "subprocess.Popen[str]":
    """A validation that has its ten sessions and would keep them for ten minutes."""
    process = subprocess.Popen(
        [
            *command("validate", *_address(deployment), "--scenario", "load", "--load-seconds", "600"),
            *("--json", str(directory / "report.json")),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: deployment.get("/api/sessions/health")["active_sessions"] == 10, "the load to be on")
    return process


def _left_behind(deployment: Deployment, project: str) -> int:
    return int(deployment.get(f"/api/sessions?project_id={project}")["total"])


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=90, check=False
    )


def _validate(deployment: Deployment, directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return _run("validate", *_address(deployment), *arguments, "--json", str(directory / "report.json"))
