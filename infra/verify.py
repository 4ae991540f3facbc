"""Checks a deployed address from outside, by the requirements' own tests (PRD 1.4, 4.1, 4.2).

    python infra/verify.py https://claude-projects.truapi.com

    API_KEY=…    also checks what needs a key: that the database is connected
    FUNCTION=…   also asks AWS, through its command line, for the function's logs and their retention, and
                 forces a cold start by setting a variable of the function that means nothing

Without FUNCTION it changes nothing. For a rehearsal, --connect HOST:HTTPS_PORT:HTTP_PORT goes there instead
of where DNS says, and --ca FILE trusts that authority instead of the system's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

# A slow start is no fault of the deployment as such; PRD 4.1 gives the connection ten seconds.
COLD_START_SECONDS = 10.0
MIN_CERTIFICATE_DAYS = 30


class Failed(Exception):
    """A check did not find what it wants."""


class NotAsked(Exception):
    """A check lacks what it needs to be made."""


@dataclass(frozen=True)
class Target:
    """What is checked, and how it is reached."""

    host: str
    address: str
    https_port: int
    http_port: int
    rehearsal: bool
    trust: ssl.SSLContext
    key: str | None
    function: str | None

    @contextmanager
    def tls(self, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
        """A TLS connection to the host."""
        with (
            socket.create_connection((self.address, self.https_port), timeout=35) as plain,
            (context or self.trust).wrap_socket(plain, server_hostname=self.host) as secured,
        ):
            yield secured

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by lower-case name, body."""
        with self.tls() as connection:
            return exchange(connection, self.host, method, path, headers or {})


def exchange(
    connection: socket.socket, host: str, method: str, path: str, headers: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """One request over a connection that is already open."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    found = {name.lower(): value for name, value in response.getheaders()}
    return response.status, found, response.read()


def want(condition: object, message: str) -> None:
    """Fail with `message` unless the condition holds."""
    if not condition:
        raise Failed(message)


def health(target: Target) -> str:
    """1.4.b, 4.1.b, 4.2.b: GET /health over HTTPS is 200."""
    status, _, body = target.request("GET", "/health")
    want(status == 200, f"GET /health is {status}")
    want(json.loads(body)["status"] == "ok", f"GET /health says {body!r}")
    return "200, ok"


def certificate(target: Target) -> str:
    """4.2.c: the certificate is trusted, is for this name, and is good for more than 30 days."""
    with target.tls() as connection:
        shown = connection.getpeercert() or {}
    left = (ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()) / 86400
    want(left > MIN_CERTIFICATE_DAYS, f"it ends in {left:.0f} days")
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    want(target.host in names, f"it is for {', '.join(names)}")
    return f"for {target.host}, {left:.0f} days left"


def tls(target: Target) -> str:
    """4.2: TLS 1.2 is the least that is spoken."""
    with target.tls() as connection:
        spoken = connection.version()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    try:
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
    except (ValueError, ssl.SSLError):
        return f"{spoken}; this machine cannot ask for TLS 1.1"
    try:
        with target.tls(old):
            pass
    except (ssl.SSLError, OSError):
        return f"{spoken}; TLS 1.1 is refused"
    raise Failed("TLS 1.1 is accepted")


def redirect(target: Target) -> str:
    """4.2.d: HTTP is redirected to HTTPS."""
    with socket.create_connection((target.address, target.http_port), timeout=10) as connection:
        status, headers, _ = exchange(connection, target.host, "GET", "/health", {})
    want(status in {301, 307}, f"HTTP is answered with {status}")
    location = headers.get("location", "")
    want(location.startswith(f"https://{target.host}"), f"it leads to {location!r}")
    return f"{status} to {location}"


def dns(target: Target) -> str:
    """4.2.e: the name has an address record."""
    if target.rehearsal:
        raise NotAsked("this is a rehearsal")
    found = {str(info[4][0]) for info in socket.getaddrinfo(target.host, 443, socket.AF_INET)}
    want(found, "there is no A record")
    return ", ".join(sorted(found))


def cors(target: Target) -> str:
    """1.4.d: a preflight is answered with the headers that let another origin in."""
    asked = {"Origin": "vscode-webview://extension", "Access-Control-Request-Method": "POST"}
    status, headers, _ = target.request("OPTIONS", "/api/sessions", asked)
    want(status in {200, 204}, f"the preflight is answered with {status}")
    allowed = headers.get("access-control-allow-origin")
    want(allowed in {"*", asked["Origin"]}, f"Access-Control-Allow-Origin is {allowed}")
    want("POST" in headers.get("access-control-allow-methods", ""), "POST is not allowed")
    return f"Access-Control-Allow-Origin: {allowed}"


def headers(target: Target) -> str:
    """4.2, 5.1.e: HSTS and a request id on every answer, errors included."""
    for path in ("/health", "/nowhere"):
        _, found, _ = target.request("GET", path)
        hsts = found.get("strict-transport-security", "")
        want("max-age=" in hsts, f"{path} has no Strict-Transport-Security")
        want(
            UUID(found.get("x-request-id", str(UUID(int=0)))).version == 4,
            f"{path} has no UUID v4 as X-Request-Id",
        )
    return f"Strict-Transport-Security: {hsts}"


def authentication(target: Target) -> str:
    """1.3.b: nothing but /health and the documentation is open."""
    for path in ("/api/sessions", "/health/detailed", "/metrics"):
        status, _, _ = target.request("GET", path)
        want(status == 401, f"GET {path} without a key is {status}")
    return "401 without a key"


def database(target: Target) -> str:
    """1.4.c, 4.1.c: the function is connected to the database."""
    if target.key is None:
        raise NotAsked("set API_KEY")
    status, _, body = target.request("GET", "/health/detailed", {"X-API-Key": target.key})
    want(status == 200, f"GET /health/detailed is {status}: {body.decode(errors='replace')[:200]}")
    found, jobs = (json.loads(body)["dependencies"][name] for name in ("database", "background_jobs"))
    want(found["connected"] is True, f"the database is not connected: {found}")
    return f"connected, {found['response_time_ms']} ms; jobs last ran {jobs['last_run']}"


def cold_start(target: Target) -> str:
    """1.4.c, 4.1.c: a fresh instance answers, database included, in time."""
    forced = target.function is not None
    if target.function is not None:
        restart(target.function)
    began = time.monotonic()
    path, sent = ("/health/detailed", {"X-API-Key": target.key}) if target.key else ("/health", {})
    status, _, _ = target.request("GET", path, sent)
    taken = time.monotonic() - began
    want(status == 200, f"GET {path} is {status}")
    want(taken < COLD_START_SECONDS, f"it took {taken:.1f} s")
    return f"{taken * 1000:.0f} ms{'' if forced else ' (perhaps warm: set FUNCTION to force a cold start)'}"


def restart(function: str) -> None:
    """Have the next request answered by a fresh instance: Lambda drops those of an older configuration."""
    named = ("--function-name", function)
    variables = aws("lambda", "get-function-configuration", *named)["Environment"]["Variables"]
    variables["VERIFIED_AT"] = str(int(time.time()))
    # By a file that only we can read: the key of the secrets is among them, and everybody sees arguments.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"Variables": variables}, file)
        file.flush()
        aws("lambda", "update-function-configuration", *named, "--environment", f"file://{file.name}")
    aws("lambda", "wait", "function-updated", *named)


def logs(target: Target) -> str:
    """1.4.e, 4.1.c, 4.1.e, 5.1.a: the log group keeps 30 days, has the start and, within 60 s, a request."""
    if target.function is None:
        raise NotAsked("set FUNCTION")
    group = f"/aws/lambda/{target.function}"
    groups = aws("logs", "describe-log-groups", "--log-group-name-prefix", group)["logGroups"]
    days = {item["logGroupName"]: item.get("retentionInDays") for item in groups}
    want(group in days, f"there is no {group}")
    want(days[group] == 30, f"{group} is kept {days[group]} days")
    # The cold start that has just been forced is within that; a month of lines takes long to search.
    since = str(int((time.time() - 600) * 1000))
    search = (
        "logs",
        "filter-log-events",
        "--log-group-name",
        group,
        "--start-time",
        since,
        "--filter-pattern",
    )
    _, sent, _ = target.request("GET", "/health")
    deadline = time.monotonic() + 60
    while not aws(*search, f'"{sent["x-request-id"]}"')["events"]:
        want(time.monotonic() < deadline, f"{sent['x-request-id']} is not in {group} after 60 s")
        time.sleep(3)
    for line in ("ENVIRONMENT=production", "Database is set up"):
        want(aws(*search, f'"{line}"')["events"], f'no start has logged "{line}" within ten minutes')
    return f"{group}, 30 days; the request and the start were found"


def aws(*arguments: str) -> Any:
    """What AWS's command line answers."""
    if shutil.which("aws") is None:
        raise Failed("FUNCTION is set, but AWS's command line is not installed")
    done = subprocess.run(
        ["aws", *arguments, "--output", "json"], capture_output=True, text=True, check=False
    )
    want(done.returncode == 0, f"aws {' '.join(arguments[:2])}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout or "null")


CHECKS: dict[str, Callable[[Target], str]] = {
    "DNS": dns,
    "HTTPS": health,
    "certificate": certificate,
    "TLS": tls,
    "redirect from HTTP": redirect,
    "headers": headers,
    "CORS": cors,
    "authentication": authentication,
    "database": database,
    "cold start": cold_start,
    "logs": logs,
}


def main() -> None:
    """Run every check, print a line for each; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description="Check a deployed address")
    parser.add_argument("url")
    parser.add_argument("--connect", metavar="HOST:HTTPS_PORT:HTTP_PORT")
    parser.add_argument("--ca", metavar="FILE")
    arguments = parser.parse_args()
    parts = urlsplit(arguments.url)
    if parts.scheme != "https" or not parts.hostname:
        raise SystemExit(
            "an address such as https://claude-projects.truapi.com is needed (make verify-deployment URL=…)"
        )
    address, https_port, http_port = (arguments.connect or f"{parts.hostname}:{parts.port or 443}:80").rsplit(
        ":", 2
    )
    target = Target(
        host=parts.hostname,
        address=address,
        https_port=int(https_port),
        http_port=int(http_port),
        rehearsal=arguments.connect is not None,
        trust=ssl.create_default_context(cafile=arguments.ca),
        key=os.environ.get("API_KEY") or None,
        function=os.environ.get("FUNCTION") or None,
    )
    count = {"ok": 0, "FAILED": 0, "-": 0}
    for name, check in CHECKS.items():
        try:
            outcome, said = "ok", check(target)
        except NotAsked as error:
            outcome, said = "-", f"not asked: {error}"
        except Failed as error:
            outcome, said = "FAILED", str(error)
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            outcome, said = "FAILED", f"{type(error).__name__}: {error}"
        count[outcome] += 1
        print(f"{outcome:<7} {name:<19} {said}", flush=True)
    print(f"{count['ok']} checks passed, {count['FAILED']} failed, {count['-']} not asked")
    sys.exit(1 if count["FAILED"] else 0)


if __name__ == "__main__":
    main()
