"""`claude-projects doctor` finds what is wrong and says what to do about it."""

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from validate_harness import command, environment

from client_harness.server import KEY, Server, free_port


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and findings by name."""
    done = subprocess.run(
        command("doctor", "--json", *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)}


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Generator[str]:
    """An HTTP server of another kind; the value is its address."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Stranger(BaseHTTPRequestHandler):
    """Something else that listens there."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


class TimeTraveller(BaseHTTPRequestHandler):
    """The API's answer to /health, from an hour ago."""

    def do_GET(self) -> None:
        body = b'{"status": "ok", "uptime": 12.0, "timestamp": "2026-01-19T12:00:00.000Z"}'
        self.send_response_only(200)
        self.send_header("Date", "Mon, 19 Jan 2026 12:00:00 GMT")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


def test_nothing_is_wrong_with_a_server_that_works(server: Server) -> None:
    code, found = doctor("--url", server.url, "--api-key", KEY)
    assert code == 0
    assert [one["name"] for one in found.values()] == [
        *("address", "clock", "key", "version", "database", "background jobs", "consistency", "rate limit")
    ]
    assert {one["state"] for one in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://127.0.0.1:{port}", "make run"),
        ("http://no-such-host.invalid", "is not known here"),
        ("ftp://127.0.0.1", "must look like"),
    ],
)
def test_an_address_where_nothing_answers_is_told_apart(url: str, advice: str) -> None:
    code, found = doctor("--url", url.format(port=free_port()), "--api-key", KEY)
    assert code == 1
    assert list(found) == ["address"]
    assert advice in found["address"]["advice"]


def test_something_else_at_the_address_is_noticed() -> None:
    with answering(Stranger) as url:
        code, found = doctor("--url", url, "--api-key", KEY)
    assert code == 1
    assert found["address"]["state"] == "problem"


@pytest.mark.parametrize(
    ("key", "said"),
    [("short", "Malformed API key"), ("5f1a6f0e-8f3c-4a5d-9d52-3c7a1b2c4d5e", "Invalid API key")],
)
def test_a_wrong_key_is_told_with_what_to_do(server: Server, key: str, said: str) -> None:
    code, found = doctor("--url", server.url, "--api-key", key)
    assert code == 1
    assert found["key"]["found"] == said
    assert found["key"]["advice"]
    assert "version" not in found


def test_a_missing_key_is_told(server: Server) -> None:
    code, found = doctor("--url", server.url)
    assert code == 1
    assert found["key"]["found"] == "no key is set"


def test_a_clock_that_is_off_is_a_warning() -> None:
    with answering(TimeTraveller) as url:
        _, found = doctor("--url", url)
    assert found["clock"]["state"] == "warning"
    assert "ahead of the server's" in found["clock"]["found"]
