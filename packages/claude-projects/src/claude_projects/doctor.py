"""``claude-projects doctor``: what stands between this machine and the API, and what to do about it."""

import json
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import typer
from rich.console import Console

from claude_projects import settings
from claude_projects.exchange import retry_after
from claude_projects.exits import Exit
from claude_projects.validation.probe import Probe, Reply, UnansweredError

OK, WARNING, PROBLEM = "ok", "warning", "problem"
NOT_WELL = 1

# A Date header is cut to the second, and the answer took its time.
CLOCK_TOLERANCE = 5.0
CERTIFICATE_DAYS = 60
_RENEW = "renew the certificate, or trust its issuer (SSL_CERT_FILE)."
_MALFORMED = "A key is a UUID of version 4 with 36 characters: was it copied as a whole, and nothing else?"
_SIGNS = {OK: "ok", WARNING: "!", PROBLEM: "X"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``advice`` says what to do where it is not in order."""

    name: str
    state: str
    found: str
    advice: str = ""


def examine(url: str, key: str | None, *, timeout: float = 15.0) -> Iterator[Finding]:
    """Look at address, certificate, clock, key, rate limit, version and service, in this order.

    Ends early where the rest cannot be known. It waits for no rate limit: that one is reached is a finding.
    """
    probe = Probe(url, key, timeout=timeout, patient=False)
    try:
        yield from _examine(probe)
    finally:
        probe.close()


def _examine(probe: Probe) -> Iterator[Finding]:
    alive, finding = _address(probe)
    yield finding
    if alive is None:
        return
    if urlsplit(probe.url).scheme == "https":
        yield _certificate(probe.url)
    yield _clock(alive)
    if probe.key is None:
        yield Finding(
            "key",
            PROBLEM,
            "no key is set",
            "Set CLAUDE_PROJECTS_API_KEY, or api_key in the configuration file. `make run` prints a key.",
        )
        return
    try:
        detailed = probe.send("GET", "/health/detailed")
    except UnansweredError as error:
        advice = "It answered a moment ago: is it overloaded, or being restarted? Look at its log."
        yield Finding("service", PROBLEM, str(error), advice)
        return
    yield _key(detailed)
    if detailed.status == 401:
        return
    yield _rate_limit(detailed)
    if detailed.status == 429:
        return
    yield _version(detailed)
    yield from _service(detailed)


def _address(probe: Probe) -> tuple[Reply | None, Finding]:
    try:
        alive = probe.send("GET", "/health", key=None)
    except UnansweredError as error:
        return None, Finding("address", PROBLEM, str(error), _why_unreachable(probe.url))
    if alive.status == 200 and alive.field("status") == "ok" and alive.field("uptime") is not None:
        uptime = alive.field("uptime")
        return alive, Finding("address", OK, f"{probe.url} answers, up for {uptime:.0f} s")
    return None, Finding(
        "address",
        PROBLEM,
        f"{probe.url} answers /health with {alive.said}, which the state tracking API does not",
        "Check the address: scheme, host, port, and no path behind it unless a proxy adds one.",
    )


def _why_unreachable(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        return "The address must look like http://127.0.0.1:3000 (--url, CLAUDE_PROJECTS_URL)."
    host = urlsplit(url).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"The name {host} is not known here: check its spelling, the DNS and the VPN."
    return _why_no_tls(url) or (
        "Nothing listens there: start the server with `make run`, or set CLAUDE_PROJECTS_URL."
        if host in {"127.0.0.1", "localhost", "::1"}
        else "The name is known, so look at the network: firewall, proxy, VPN, and whether the service runs."
    )


def _why_no_tls(url: str) -> str | None:
    if urlsplit(url).scheme != "https":
        return None
    try:
        _certificate_end(url)
    except ssl.SSLCertVerificationError as error:
        return f"The certificate is no good ({error.verify_message}): {_RENEW}"
    except ssl.SSLError:
        return "Something listens there, but does not speak TLS: is the address meant to be http://?"
    except OSError:
        pass
    return None


def _certificate_end(url: str) -> float:
    """When the certificate there ends, as Unix time. Raises OSError where none is shown or it is no good."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    with (
        socket.create_connection((host, port), timeout=10) as plain,
        ssl.create_default_context().wrap_socket(plain, server_hostname=host) as secure,
    ):
        ends: Any = (secure.getpeercert() or {}).get("notAfter")
    return ssl.cert_time_to_seconds(str(ends))


def _certificate(url: str) -> Finding:
    try:
        days = (_certificate_end(url) - time.time()) / 86_400
    except OSError as error:
        # Requests may go through a proxy, or trust another set of issuers than the system does.
        return Finding("certificate", WARNING, f"it cannot be looked at from here: {error}", _RENEW)
    if days < CERTIFICATE_DAYS:
        return Finding(
            "certificate",
            WARNING,
            f"it ends in {days:.0f} days",
            "Renew it, and find out why that has not happened by itself.",
        )
    return Finding("certificate", OK, f"it is good for {days:.0f} days")


def _clock(alive: Reply) -> Finding:
    if "date" not in alive.headers:
        return Finding("clock", WARNING, "the server does not tell its time", "A proxy may remove Date.")
    # The header was written while we waited; half of that time is the best guess.
    ahead = datetime.now(UTC).timestamp() - alive.seconds / 2 - alive.date.timestamp() - 0.5
    if abs(ahead) <= CLOCK_TOLERANCE + alive.seconds:
        return Finding("clock", OK, "it agrees with the server's to a few seconds")
    direction = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock",
        WARNING,
        f"this machine's clock is {abs(ahead):.0f} s {direction} the server's",
        "Set it by NTP. The API only believes its own clock, so nothing breaks, but logs do not line up.",
    )


def _key(detailed: Reply) -> Finding:
    if detailed.status != 401:
        return Finding("key", OK, "the API knows it")
    advice = {
        "Malformed API key": _MALFORMED,
        "Invalid API key": "The server does not know this key: compare it with API_KEYS there.",
    }
    said = str(detailed.field("message"))
    return Finding("key", PROBLEM, said, advice.get(said, "A proxy may remove the X-API-Key header."))


def _version(detailed: Reply) -> Finding:
    own, theirs = version("claude-projects"), str(detailed.field("version"))
    if own.split(".")[:2] == theirs.split(".")[:2]:
        return Finding("version", OK, f"client {own}, server {theirs}")
    return Finding(
        "version",
        WARNING,
        f"client {own}, server {theirs}",
        "Bring both to the same version: one knows things that the other does not.",
    )


def _service(detailed: Reply) -> Iterator[Finding]:
    dependencies: Any = detailed.field("dependencies")
    if not isinstance(dependencies, dict):
        yield Finding("service", PROBLEM, detailed.said, "See TROUBLESHOOTING in the documentation.")
        return
    advice = {
        "database": "The API cannot reach MongoDB: see the runbook for database connection failures.",
        "background_jobs": "No stall scan for 15 minutes: check SCHEDULER, or the outside schedule.",
        "consistency": "Run `state-tracking-api job check-consistency` and see the runbook for it.",
    }
    for name, sentence in advice.items():
        state = cast("dict[str, Any]", dependencies).get(name, {})
        status = state.get("status")
        label = name.replace("_", " ")
        if status == "ok":
            yield Finding(label, OK, "ok")
        else:
            yield Finding(label, PROBLEM if status == "error" else WARNING, str(status), sentence)


def _rate_limit(reply: Reply) -> Finding:
    try:
        limit, left = int(reply.headers["x-ratelimit-limit"]), int(reply.headers["x-ratelimit-remaining"])
    except (KeyError, ValueError):
        return Finding("rate limit", WARNING, "the API does not tell it", "A proxy may remove X-RateLimit-*.")
    found = f"{left} of {limit} requests are left in this minute"
    if reply.status != 429 and left >= limit / 5:
        return Finding("rate limit", OK, found)
    advice = "Somebody else uses this key: give every user a key of its own, or raise RATE_LIMIT_PER_MINUTE."
    if reply.status != 429:
        return Finding("rate limit", WARNING, found, advice)
    wait = retry_after(reply.headers) or 1
    return Finding("rate limit", PROBLEM, f"it is used up for {wait:.0f} s: {found}", advice)


def command(
    context: typer.Context,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="The API's address.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", metavar="KEY", help="The API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what keeps this machine from using the API, and say what to do about it.

    The exit code is 0 if nothing is wrong, 1 if there is a problem; a warning is no problem.
    """
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        chosen = context.obj.settings(**{k: v for k, v in {"url": url, "api_key": api_key}.items() if v})
        findings: list[Finding] = []
        for finding in examine(chosen.url.value, chosen.api_key.value):
            findings.append(finding)
            if not as_json:
                out.print(
                    f"{_SIGNS[finding.state]:>3}  {finding.name:<16} {finding.found}",
                    markup=False,
                    soft_wrap=True,
                )
                if finding.advice:
                    out.print(f"     {'':<16} {finding.advice}", markup=False, soft_wrap=True)
    except settings.ConfigurationError as error:
        err.print(f"claude-projects: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(Exit.USAGE) from None
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in findings], indent=2, ensure_ascii=False) + "\n")
    raise typer.Exit(NOT_WELL if any(one.state == PROBLEM for one in findings) else Exit.OK)
