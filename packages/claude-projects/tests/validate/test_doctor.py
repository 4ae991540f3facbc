"""`claude-projects doctor` finds what is wrong and says what to do about it."""

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from ports import free_port
from typer.testing import CliRunner

from claude_projects.cli import app
from client_harness.server import KEY, Server
from client_harness.waiting import until


def doctor(*arguments: str, **more: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and findings by name."""
    ours = {name: None for name in os.environ if name.startswith("CLAUDE_PROJECTS_")}
    own = {**ours, "CLAUDE_PROJECTS_CONFIG": "/nonexistent", **more}
    done = CliRunner().invoke(app, ["doctor", "--json", *arguments], env=own)
    return done.exit_code, {one["name"]: one for one in json.loads(done.stdout)}


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler], certificate: Path | None = None) -> Generator[str]:
    """An HTTP server of another kind; the value is its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}"
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
    """The API of another time and version, behind a proxy that removes the headers of the rate limit."""

    def do_GET(self) -> None:
        answers: dict[str, object] = {
            "/health": {"status": "ok", "uptime": 12.0, "timestamp": "2026-01-19T12:00:00.000Z"},
            "/health/detailed": {
                "version": "99.0.0",
                "dependencies": {
                    "database": {"status": "ok"},
                    "background_jobs": {"status": "degraded"},
                    "consistency": {"status": "ok"},
                },
            },
        }
        body = json.dumps(answers[self.path]).encode()
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
        *("address", "clock", "key", "rate limit", "version", "database", "background jobs", "consistency")
    ]
    assert {one["state"] for one in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://127.0.0.1:{port}", "make run"),
        ("http://no-such-host.invalid", "is not known here"),
        ("ftp://127.0.0.1", "must look like"),
        ("http://[::1", "must look like"),
        ("http://127.0.0.1:99999", "must look like"),
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


def test_a_clock_a_version_and_jobs_that_are_off_are_warnings() -> None:
    with answering(TimeTraveller) as url:
        code, found = doctor("--url", url, "--api-key", KEY)
    assert code == 0
    warnings = {name for name, one in found.items() if one["state"] == "warning"}
    assert warnings == {"clock", "version", "background jobs", "rate limit"}
    assert "ahead of the server's" in found["clock"]["found"]
    assert "server 99.0.0" in found["version"]["found"]
    assert "SCHEDULER" in found["background jobs"]["advice"]
    assert "proxy" in found["rate limit"]["advice"]


@pytest.fixture
def ailing(tmp_path: Path) -> Iterator[str]:
    """The address of a server whose database is away, and that takes two requests a minute."""
    with (tmp_path / "log").open("wb") as log:
        port = free_port()
        own = {
            "MONGODB_URI": f"mongodb://127.0.0.1:{free_port()}",
            "API_KEYS": KEY,
            "PORT": str(port),
            "RATE_LIMIT_PER_MINUTE": "2",
        }
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("state-tracking-api")), "serve"],
            env={**os.environ, **own},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"{url}/health").is_success
        except httpx.HTTPError:
            return False

    try:
        until(answers, "the server to answer")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def test_a_database_that_is_away_and_a_rate_limit_that_is_used_up_are_told(ailing: str) -> None:
    code, found = doctor("--url", ailing, "--api-key", KEY)
    assert code == 1
    assert found["database"]["state"] == "problem"
    assert "MongoDB" in found["database"]["advice"]
    assert found["rate limit"]["state"] == "ok"
    _, found = doctor("--url", ailing, "--api-key", KEY)
    assert found["rate limit"]["state"] == "warning"
    assert found["rate limit"]["found"].startswith("0 of 2 requests")
    # It does not wait until the limit is over, which would hide it.
    code, found = doctor("--url", ailing, "--api-key", KEY)
    assert code == 1
    assert found["rate limit"]["state"] == "problem"
    assert "used up" in found["rate limit"]["found"]
    assert "RATE_LIMIT_PER_MINUTE" in found["rate limit"]["advice"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed and that ends in 20 days, with its key."""
    path = tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "20"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", path, "-out", tmp_path / "only.pem"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + (tmp_path / "only.pem").read_text())
    return path


def test_a_certificate_is_looked_at(certificate: Path) -> None:
    with answering(TimeTraveller, certificate) as url:
        code, found = doctor("--url", url)
        assert code == 1
        assert list(found) == ["address"]
        assert "The certificate is no good" in found["address"]["advice"]
        _, found = doctor("--url", url, SSL_CERT_FILE=str(certificate))
    assert found["certificate"]["state"] == "warning"
    assert found["certificate"]["found"] in {"it ends in 19 days", "it ends in 20 days"}


def test_https_where_none_is_spoken_is_told(server: Server) -> None:
    _, found = doctor("--url", server.url.replace("http://", "https://"), "--api-key", KEY)
    assert "does not speak TLS" in found["address"]["advice"]
