"""What the log says and what it never says (PRD 5.1): format, key events, levels, secrets, sampling."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from ports import free_port
from pymongo import MongoClient

from api_harness.api import TIMESTAMP, Api, ago, expect, expect_error, uuid4
from api_harness.server import COMMAND, Server, clean_environment, wait_until
from api_harness.servers import Document, Documents, Servers
from operations.failpoints import failing
from operations.log_lines import lines_of, logged, written

SECRET = "hunter2"


def whole_life(api: Api) -> None:
    """Something of everything that the API does, with payloads that are easy to recognise."""
    payload = {f"key-{SECRET}": {"deep": [f"value-{SECRET}"]}}
    machine = api.machine(metadata=payload)
    session = api.session(machine_id=machine["machine_id"], docker_slot=1, metadata=payload)
    task = api.task(session, task_name=f"name-{SECRET}", metadata=payload)
    api.set_task(task, "in_progress")
    expect(api.act(session, "heartbeat", {"metadata": payload}), 200)
    expect(api.post(f"/api/machines/{machine['machine_id']}/heartbeat"), 200)
    failed = {"status": "failed", "error_message": f"task-{SECRET}"}
    expect(api.patch(f"/api/tasks/{task['task_id']}", json=failed), 200)
    expect(api.act(session, "mark-stalled"), 200)
    expect(api.act(session, "prepare-recovery", {"clear_machine_assignment": True}), 200)
    successor = expect(api.recover(session), 201)
    expect(api.patch(f"/api/sessions/{successor['session_id']}", json={"metadata": payload}), 200)
    api.set_session(successor, "completed")
    expect(api.act(successor, "archive"), 200)
    expect(api.post("/api/sessions/detect-failures"), 200)
    expect(api.post("/api/sessions/cleanup"), 200)
    expect(api.delete(f"/api/sessions/{session['session_id']}"), 204)


def refusals(api: Api) -> None:
    """Requests that are refused, the refused things easy to recognise."""
    session = api.session()
    heartbeat = f"/api/sessions/{session['session_id']}/heartbeat"
    expect_error(api.post("/api/sessions", json={f"field-{SECRET}": 1}), 400)
    expect_error(api.post("/api/sessions", json={"project_id": [SECRET], "machine_id": {"x": SECRET}}), 400)
    expect_error(api.post(heartbeat, json={"metadata": {f"k-{SECRET}": {"\0": SECRET}}}), 400)
    expect_error(api.post(heartbeat, content=f'{{"{SECRET}": '.encode()), 400)
    expect_error(api.post(heartbeat, content=SECRET, headers={"Content-Type": "text/plain"}), 415)
    expect_error(api.post("/api/sessions", json={"project_id": SECRET * 200_000}), 413)
    expect_error(api.get("/api/sessions", params={f"q-{SECRET}": SECRET}), 400)
    expect_error(api.get("/api/sessions", params={"status": SECRET}), 400)
    expect_error(api.get(f"/api/{SECRET}"), 404)
    expect_error(
        api.post("/api/tasks", json={"session_id": SECRET, "project_id": "p", "task_name": "t"}), 400
    )


def everything_said(server: Server) -> str:
    """All that a stopped server has written, on both streams."""
    return "\n".join([*map(str, server.lines), *server.other_output, *server.errors])


@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_payload_and_no_key_stands_in_the_log(
    own: Servers, mongo: MongoClient[Document], level: str
) -> None:
    key, wrong_key = uuid4(), uuid4()
    database = own.database()
    server = own.start(database, API_KEYS=f"ci={key}", LOG_LEVEL=level)
    with Api(server.base_url, key) as api, Api(server.base_url, wrong_key) as stranger:
        whole_life(api)
        refusals(api)
        expect_error(stranger.get("/api/sessions"), 401)
        expect_error(stranger.get("/api/sessions", headers={"X-API-Key": f"malformed-{SECRET}"}), 401)
        expect_error(stranger.get("/api/sessions", params={"X-API-Key": key}), 401)
        with failing(mongo, database, "sessions", "find", errorCode=8000):
            expect_error(api.get("/api/sessions", params={"project_id": SECRET}), 500)
    server.stop()
    assert len(server.lines) > 60
    said = everything_said(server)
    for secret in (key, key.upper(), wrong_key):
        assert secret not in said
    assert SECRET not in said


def test_the_connection_strings_password_never_stands_in_the_log() -> None:
    uri = f"mongodb://someone:{SECRET}@127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=200"
    redis = f"redis://:{SECRET}@127.0.0.1:{free_port()}"
    environment = {"MONGODB_URI": uri, "RATE_LIMIT_STORAGE_URI": redis, "LOG_LEVEL": "debug"}
    with Server.start(**environment) as server, Api(server.base_url, server.key) as api:
        expect_error(api.get("/api/sessions"), 503)
        written(server, "Database is not set up yet")
        written(server, "Rate limit storage is away; requests pass")
        server.stop()
    assert SECRET not in everything_said(server)


def test_the_reason_of_a_failure_stands_in_its_event_and_nowhere_else(api: Api, server: Server) -> None:
    reason = f"out of memory {uuid4()}"
    session = api.session()
    answer = api.act(session, "mark-failed", {"error_message": reason, "metadata": {"a": reason}})
    expect(answer, 200)
    lines = lines_of(server, answer)
    assert [line["message"] for line in lines if reason in str(line)] == ["Session marked failed"]


def test_every_line_has_the_prds_format(own: Servers) -> None:
    server = own.start(SCHEDULER="on", STALL_SCAN_INTERVAL_SECONDS="1")
    with Api(server.base_url, server.key) as api:
        whole_life(api)
        refusals(api)
        written(server, "Background job executed", job_name="detect-failures")
    server.stop()
    for line in server.lines:
        assert list(line) == ["timestamp", "level", "message", "context"]
        assert TIMESTAMP.fullmatch(line["timestamp"])
        assert line["level"] in {"ERROR", "WARN", "INFO", "DEBUG"}
        assert line["message"]
        assert isinstance(line["context"], dict)
    of_requests = [line for line in server.lines if "request_id" in line["context"]]
    for line in of_requests:
        assert uuid.UUID(line["context"]["request_id"]).version == 4
    assert not [line for line in of_requests if line["message"] == "Background job executed"]


def test_every_key_event_of_the_prd_is_logged(api: Api, server: Server, database: Documents) -> None:
    session = api.session()
    ids = {name: session[name] for name in ("session_id", "project_id", "machine_id")}
    written(server, "Session created", **ids)
    beat = api.act(session, "heartbeat")
    event = logged(server, beat, "Heartbeat received")["context"]
    assert event.items() >= (ids | {"last_heartbeat": expect(beat, 200)["last_heartbeat"]}).items()
    database.sessions.update_one(
        {"session_id": session["session_id"]}, {"$set": {"last_heartbeat": ago(minutes=4)}}
    )
    scan = api.post("/api/sessions/detect-failures")
    stalled = logged(server, scan, "Stalled session detected")
    assert stalled["level"] == "WARN"
    assert stalled["context"].items() >= ids.items()
    assert 240_000 <= stalled["context"]["time_since_heartbeat_ms"] < 300_000
    failed = api.act(session, "mark-failed", {"error_message": "no disk space"})
    event = logged(server, failed, "Session marked failed")["context"]
    assert event.items() >= (ids | {"error_message": "no disk space"}).items()
    recovered = api.recover(session)
    successor = expect(recovered, 201)["session_id"]
    event = logged(server, recovered, "Recovery session created")["context"]
    assert event["original_session_id"] == session["session_id"]
    assert event["new_session_id"] == successor


def test_a_background_job_is_logged_with_its_name_its_effect_and_its_duration(own: Servers) -> None:
    database = own.database()
    server = own.start(database, SCHEDULER="on", STALL_SCAN_INTERVAL_SECONDS="1")
    with Api(server.base_url, server.key) as api:
        session = api.session()
    written(server, "Background job executed", job_name="detect-failures", sessions_affected=0)
    database.sessions.update_one(
        {"session_id": session["session_id"]}, {"$set": {"last_heartbeat": ago(minutes=4)}}
    )
    line = written(server, "Background job executed", job_name="detect-failures", sessions_affected=1)
    assert line["level"] == "INFO"
    assert line["context"]["duration_ms"] > 0


@pytest.mark.parametrize(
    ("method", "path", "body", "level"),
    [
        ("POST", "/api/sessions", {}, "WARN"),
        ("POST", "/api/sessions/3f333df6-90a4-4fda-8dd3-9485d27cee36/heartbeat", None, "WARN"),
        ("GET", "/api/sessions/3f333df6-90a4-4fda-8dd3-9485d27cee36", None, None),
        ("GET", "/api/sessions", None, None),
    ],
)
def test_what_was_refused_is_a_warning_and_what_is_not_there_is_none(
    api: Api, server: Server, method: str, path: str, body: Document | None, level: str | None
) -> None:
    lines = lines_of(server, api.request(method, path, json=body))
    assert [line["level"] for line in lines if line["level"] != "INFO"] == ([level] if level else [])


def test_a_heartbeat_that_comes_too_late_is_a_warning(api: Api, server: Server) -> None:
    answer = api.act(api.session_in("completed"), "heartbeat")
    expect_error(answer, 409)
    assert logged(server, answer, "Heartbeat failed")["level"] == "WARN"


def test_successful_heartbeats_can_be_left_out_of_the_log(own: Servers) -> None:
    server = own.start(HEARTBEAT_LOG_SAMPLE_RATE="0")
    with Api(server.base_url, server.key) as api:
        session = api.session()
        for _ in range(20):
            expect(api.act(session, "heartbeat"), 200)
        api.set_session(session, "completed")
        refused = api.act(session, "heartbeat")
        expect_error(refused, 409)
    assert logged(server, refused, "Heartbeat failed")
    about_heartbeats = [line for line in server.lines if "heartbeat" in line["context"].get("endpoint", "")]
    assert {line["context"]["request_id"] for line in about_heartbeats} == {refused.headers["x-request-id"]}


def test_a_sampled_heartbeat_is_logged_whole_or_not_at_all(own: Servers) -> None:
    server = own.start(HEARTBEAT_LOG_SAMPLE_RATE="0.5")
    with Api(server.base_url, server.key) as api:
        session = api.session()
        answers = [api.act(session, "heartbeat") for _ in range(100)]
        lines_of(server, api.get("/api/sessions"))
    counts = [
        len([line for line in server.lines if line["context"].get("request_id") == identifier])
        for identifier in (answer.headers["x-request-id"] for answer in answers)
    ]
    assert set(counts) == {0, 3}
    # Of 100 fair coins fewer than 15 or more than 85 heads come once in 10^13 runs.
    assert 15 <= counts.count(3) <= 85


def test_lines_below_the_level_are_left_out(own: Servers) -> None:
    server = own.start(LOG_LEVEL="warning")
    with Api(server.base_url, server.key) as api:
        api.session()
        expect_error(api.post("/api/sessions", json={}), 400)
        server.line_where(lambda line: line["message"] == "Request refused", "the refusal")
    server.stop()
    assert {line["level"] for line in server.lines} == {"WARN"}


class Terminal:
    """A pseudo-terminal to which a process writes, and what it shows."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def opened_by(self, process: subprocess.Popen[bytes]) -> None:
        """Begin to read; the other end belongs to `process` alone from now on."""
        os.close(self.theirs)
        self._reader.start()
        self.process = process

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while True:
                self.shown += os.read(self._ours, 65536).decode()

    def shows(self, text: str) -> bool:
        assert self.process.poll() is None, self.shown
        return text in self.shown

    def close(self) -> None:
        self._reader.join(10)
        os.close(self._ours)


@pytest.mark.slow
def test_dev_writes_lines_for_people_on_a_terminal(tmp_path: Path) -> None:
    terminal, port = Terminal(), free_port()
    dev = subprocess.Popen(
        [COMMAND, "dev", "--data-dir", tmp_path],
        env=clean_environment({"PORT": str(port), "TERM": "xterm"}),
        stdin=subprocess.DEVNULL,
        stdout=terminal.theirs,
        stderr=terminal.theirs,
    )
    terminal.opened_by(dev)
    try:
        wait_until(lambda: terminal.shows("Claude Projects is running"), "the greeting", 60)
        key = (tmp_path / "api-key").read_text().strip()
        with Api(f"http://127.0.0.1:{port}", key) as api:
            session = api.session()
        wait_until(lambda: terminal.shows(session["session_id"]), "the session's line")
        [line] = [text for text in terminal.shown.splitlines() if "Session created" in text]
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(line)
        assert "\x1b[" in line, "colours"
        assert session["project_id"] in line
        assert re.search(r"\d\d:\d\d:\d\d", line)
    finally:
        dev.send_signal(signal.SIGTERM)
        code = dev.wait(20)
        terminal.close()
    assert code == 0
