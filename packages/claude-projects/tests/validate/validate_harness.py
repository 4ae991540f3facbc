"""Deployments to be validated, healthy and broken, and what a validation of one leaves behind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ports import free_port

from client_harness.server import KEY
from client_harness.waiting import until

HEALTHY = "healthy"
IMPATIENT = "impatient"
FORGETFUL = "forgetful"
SLOW = "slow-heartbeats"
BROKEN = ("detection-off", "many-successors", SLOW, "authentication-off")
_QUICK = (*("--quick", "--stall-timeout", "20", "--samples", "10", "--interval", "0.5"),)


@dataclass
class Deployment:
    """A server, healthy or not, and the process that it lives in."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def await_answers(self) -> None:
        """Wait until it answers from its database."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                return asking.get(f"{self.url}/api/sessions").is_success
            except httpx.HTTPError:
                return False

        with httpx.Client(headers={"X-API-Key": KEY}, timeout=10) as asking:
            until(answers, f"an answer of {self.url}, {self.log}")

    def get(self, path: str) -> Any:
        """What it answers to a GET with the key."""
        return httpx.get(f"{self.url}{path}", headers={"X-API-Key": KEY}, timeout=30).json()


def environment(url: str | None = None) -> dict[str, str]:
    """The environment of the command line, free of whatever the developer has set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLAUDE_PROJECTS_")}
    return kept | {"CLAUDE_PROJECTS_CONFIG": "/nonexistent"} | ({"CLAUDE_PROJECTS_URL": url} if url else {})


def command(*arguments: str) -> list[str]:
    """The command line of `claude-projects` with these arguments."""
    return [str(Path(sys.executable).with_name("claude-projects")), *arguments]


def deploy(uri: str, directory: Path) -> dict[str, Deployment]:
    """Start a healthy server, and a process with all the others; they do not answer yet."""
    ports = {kind: free_port() for kind in (HEALTHY, IMPATIENT, FORGETFUL, *BROKEN)}
    own = {
        "MONGODB_URI": uri,
        "MONGODB_DATABASE": f"validate-{HEALTHY}",
        "API_KEYS": f"tests={KEY}",
        "PORT": str(ports[HEALTHY]),
        "RATE_LIMIT_PER_MINUTE": "100000",
    }
    serve = [str(Path(sys.executable).with_name("state-tracking-api")), "serve"]
    others = [f"{kind}={port}" for kind, port in ports.items() if kind != HEALTHY]
    broken = [sys.executable, str(Path(__file__).with_name("broken_server.py")), *others]
    processes: dict[bool, tuple[subprocess.Popen[bytes], Path]] = {}
    for is_healthy, line in ((True, serve), (False, broken)):
        log_path = directory / f"{'healthy' if is_healthy else 'broken'}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(line, env={**os.environ, **own}, stdout=log, stderr=log)
        processes[is_healthy] = process, log_path
    return {kind: Deployment(port, *processes[kind == HEALTHY]) for kind, port in ports.items()}


@dataclass
class Validated:
    """A validation that has ended: exit code, output, reports, and the deployment that it was about."""

    deployment: Deployment
    code: int
    out: str
    err: str
    report: dict[str, Any]
    markdown: str
    held: dict[str, bool] = field(default_factory=dict[str, bool])

    def checks(self, scenario: str) -> dict[str, bool]:
        """What was looked at in a scenario, and whether it held."""
        found = next(one for one in self.report["scenarios"] if one["name"] == scenario)
        return {check["what"]: check["held"] for check in found["checks"]}


def validate(deployments: dict[str, Deployment], directory: Path) -> dict[str, Validated]:
    """Run the quick validation against each of them: the healthy one alone, so that it is not slowed down."""
    found = _at_once({HEALTHY: deployments[HEALTHY]}, directory)
    return found | _at_once({kind: deployments[kind] for kind in BROKEN}, directory)


def _at_once(deployments: dict[str, Deployment], directory: Path) -> dict[str, Validated]:
    running: dict[str, subprocess.Popen[str]] = {}
    for kind, deployment in deployments.items():
        more = ["--load-sessions", "4", "--load-seconds", "2", "--load-interval", "0.5"]
        if kind == HEALTHY:
            more = [
                "--load-sessions",
                "10",
                "--load-seconds",
                "8",  # the ten connections and creations of the first moment are no twentieth of them all
                "--load-interval",
                "0.25",
                "--delete-ended",
            ]
        if kind != SLOW:  # this machine may be busy; how fast the server is on a free one is not asked here
            more += ["--network-ms", "5000"]
        files = ["--json", str(directory / f"{kind}.json"), "--markdown", str(directory / f"{kind}.md")]
        address = ["--url", deployment.url, "--api-key", KEY]
        running[kind] = subprocess.Popen(
            command("validate", *address, *_QUICK, *more, *files),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        return {
            kind: _ended(kind, process, deployments[kind], directory) for kind, process in running.items()
        }
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def _ended(kind: str, process: "subprocess.Popen[str]", deployment: Deployment, directory: Path) -> Validated:
    out, err = process.communicate(timeout=150)
    assert process.returncode in {0, 1}, f"{kind}: {process.returncode} {out} {err}"
    report = json.loads((directory / f"{kind}.json").read_text())
    markdown = (directory / f"{kind}.md").read_text()
    held = {one["name"]: one["held"] for one in report["scenarios"]}
    return Validated(deployment, process.returncode, out, err, report, markdown, held)
