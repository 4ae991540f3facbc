"""`make verify-deployment`, rehearsed: the real server, and a stand-in for CloudFront in front of it."""

from __future__ import annotations

import json
import os
import re
import runpy
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from api_harness.server import Server
from api_harness.servers import Servers
from aws.lambda_harness import ROOT

HOST = "claude-projects.truapi.com"
Verify = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server_environment() -> dict[str, str]:
    """As in production: HSTS on."""
    return {"ENVIRONMENT": "production"}


def certificate(folder: Path, days: int, name: str = HOST) -> Path:
    """A self-signed certificate and its key, in one file; openssl's command line makes it."""
    folder.mkdir(parents=True)
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", str(days)]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Generator[int]:
    """Give every connection to a free port to `serve`; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def edge(port: int, pem: Path, answer_http: bytes, without: bytes = b"") -> Generator[str]:
    """A stand-in for CloudFront: TLS in front of the server, `answer_http` on the other port.

    `without` is a header line's beginning that it drops from answers. Yields what `--connect` takes.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pem)

    def https(connection: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
            request = secured.recv(65536)
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                upstream.sendall(request)
                answer = b"".join(iter(lambda: upstream.recv(65536), b""))
            lines = answer.split(b"\r\n")
            secured.sendall(
                b"\r\n".join(line for line in lines if not without or not line.startswith(without))
            )

    def http(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(answer_http)

    with listening(https) as https_port, listening(http) as http_port:
        yield f"127.0.0.1:{https_port}:{http_port}"


REDIRECT = (
    f"HTTP/1.1 301 Moved Permanently\r\nLocation: https://{HOST}/health\r\nContent-Length: 0\r\n\r\n".encode()
)


def script(address: str, trust: Path, key: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the script against an edge."""
    command = [sys.executable, "infra/verify.py", f"https://{HOST}", "--connect", address, "--ca", str(trust)]
    environment = {"PATH": os.environ["PATH"], "API_KEY": key, **more}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def verify(server: Server, tmp_path: Path) -> Iterator[Verify]:
    """`verify(…)` runs the script against the server behind an edge; arguments make the edge faulty."""
    with ExitStack() as stack:

        def run(
            *, days: int = 90, name: str = HOST, http: bytes = REDIRECT, without: bytes = b"", key: str = ""
        ) -> subprocess.CompletedProcess[str]:
            pem = certificate(tmp_path / "tls", days, name)
            address = stack.enter_context(edge(server.port, pem, http, without))
            return script(address, pem.with_name("cert.pem"), key or server.key)

        yield run


def test_a_sound_deployment_passes_every_check(verify: Verify) -> None:
    done = verify()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert "9 checks passed, 0 failed, 2 not asked" in done.stdout


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ({"days": 20}, "certificate", "it ends in"),
        ({"name": "elsewhere.example"}, "HTTPS", "Hostname mismatch"),
        (
            {"http": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
            "redirect from HTTP",
            "answered with 200",
        ),
        ({"without": b"strict-transport-security"}, "headers", "no Strict-Transport-Security"),
        ({"without": b"access-control-allow-origin"}, "CORS", "Access-Control-Allow-Origin is None"),
        ({"key": "00000000-0000-4000-8000-000000000000"}, "database", "GET /health/detailed is 401"),
    ],
)
def test_a_faulty_deployment_fails_the_check_that_is_for_it(
    verify: Verify, fault: dict[str, object], check: str, said: str
) -> None:
    done = verify(**fault)
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert any(check in line and said in line for line in failed), done.stdout


def test_a_database_that_is_away_fails_the_check_of_the_database(own: Servers, tmp_path: Path) -> None:
    away = own.start(
        MONGODB_URI="mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200", ENVIRONMENT="production"
    )
    with edge(away.port, certificate(tmp_path / "tls", 90), REDIRECT) as address:
        done = script(address, tmp_path / "tls" / "cert.pem", away.key)
    assert done.returncode == 1
    assert "FAILED  database" in done.stdout


def test_the_table_says_of_every_test_of_the_requirements_how_it_is_verified_here_and_there() -> None:
    rows = re.findall(
        r"^\| (\d\.\d\.[a-z]) [^|]+\| ([^|]+) \| ([^|]+) \|$",
        (ROOT / "docs/DEPLOYMENT.md").read_text(),
        re.MULTILINE,
    )
    assert [number for number, _, _ in rows] == [f"{s}.{t}" for s in ("1.4", "4.1", "4.2") for t in "abcdef"]
    script_has = {name.partition(" ")[0] for name in runpy.run_path(str(ROOT / "infra/verify.py"))["CHECKS"]}
    for number, here, there in rows:
        assert len(here) > 10 or re.fullmatch(r"as \d\.\d\.[a-f]", here), number
        assert "`" in there or "by hand" in there, number
        asked = re.findall(r"make verify-deployment` \(([^)]+)\)", there)
        assert {check.partition(" ")[0] for checks in asked for check in checks.split(", ")} <= script_has, (
            number
        )


def test_an_address_without_tls_is_refused() -> None:
    command = [sys.executable, "infra/verify.py", "http://claude-projects.truapi.com"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "an address such as https://" in done.stderr


# Stands in for AWS's command line: answers as it does, and keeps what it was called with and given in a file.
AWS = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
given = [pathlib.Path(a.removeprefix("file://")).read_text() for a in arguments if a.startswith("file://")]
with open("{calls}", "a") as calls:
    print(json.dumps([arguments, given]), file=calls)
if "get-function-configuration" in arguments:
    print(json.dumps({{"Environment": {{"Variables": {{"SST_KEY": "a-secret"}}}}}}))
if "describe-log-groups" in arguments:
    kept = {{"logGroupName": "/aws/lambda/state-tracking-api-prod", "retentionInDays": {days}}}
    print(json.dumps({{"logGroups": [{{"logGroupName": "/aws/lambda/state-tracking-api-prod2"}}, kept]}}))
if "filter-log-events" in arguments:
    print(json.dumps({{"events": [] if "{missing}" in arguments[-3] else [{{"message": "found"}}]}}))
"""


@pytest.mark.parametrize(
    ("days", "missing", "said"),
    [
        (30, "nothing", "10 checks passed, 0 failed, 1 not asked"),
        (31, "nothing", "is kept 31 days"),
        (30, "Database is set up", 'no start has logged "Database is set up"'),
    ],
)
def test_with_the_functions_name_a_cold_start_is_forced_and_the_logs_are_searched(
    server: Server, tmp_path: Path, days: int, missing: str, said: str
) -> None:
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(AWS.format(python=sys.executable, calls=calls, days=days, missing=missing))
    program.chmod(0o755)
    pem = certificate(tmp_path / "tls", 90)
    path = f"{program.parent}:{os.environ['PATH']}"
    with edge(server.port, pem, REDIRECT) as address:
        done = script(
            address, pem.with_name("cert.pem"), server.key, PATH=path, FUNCTION="state-tracking-api-prod"
        )
    assert said in done.stdout
    assert "a-secret" not in done.stdout + done.stderr
    asked = [json.loads(line) for line in calls.read_text().splitlines()]
    (update,) = [given for arguments, given in asked if "update-function-configuration" in arguments]
    assert json.loads(update[0])["Variables"].keys() == {"SST_KEY", "VERIFIED_AT"}
    assert all("a-secret" not in " ".join(arguments) for arguments, _ in asked)
