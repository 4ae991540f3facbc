"""The container, as far as it goes without an engine: the Dockerfile's own steps, run as a script.

Each COPY, RUN and ENV is carried out in order in an empty folder that stands for the image's root, with a
Python of this machine where the base image has its own; then its CMD serves and its HEALTHCHECK is asked. Not
tried: the base images, the layers, the ports and volumes of an engine, `docker compose` itself.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from ports import free_port

from api_harness.server import wait_until
from aws.lambda_harness import ROOT
from state_tracking_api.embedded import Mongod
from state_tracking_api.settings import Settings

# The first test waits for the package: dependencies are fetched, everything is compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# The folders that the Dockerfile writes to; in its text they become folders below the stand-in for the root.
PLACES = ("/opt/app", "/src")


def instructions(text: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, as name and rest."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in lines)]


def allowed(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository through; the last rule that matches decides."""
    through = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)]
        names = path.split("/") if anywhere != pattern else []
        if any(fnmatch.fnmatch(p, pattern) and p.count("/") == pattern.count("/") for p in parents) or any(
            fnmatch.fnmatch(name, anywhere) for name in names
        ):
            through = rule.startswith("!")
    return through


def context_files(source: str) -> list[str]:
    """The files that `COPY source` takes: what is in the repository, less what .dockerignore keeps back."""
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--", source], cwd=ROOT, text=True
    )
    return [path for path in listed.splitlines() if allowed(path) and (ROOT / path).is_file()]


def reaching_the_index() -> dict[str, str]:
    """How this machine reaches the package index: certificates, proxies, mirrors. An image has its own."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SSL_", "PIP_", "UV_")) or name.lower().endswith("_proxy")
    }


@dataclass
class Image:
    """What building has made so far."""

    root: Path
    python: str
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str = "/"
    user: str = "root"
    command: list[str] = field(default_factory=list[str])
    health: list[str] = field(default_factory=list[str])

    def place(self, text: str) -> str:
        """The text with the image's folders moved below the stand-in for its root."""
        for folder in PLACES:
            text = re.sub(rf"(?<![\w./]){folder}\b", f"{self.root}{folder}", text)
        return text

    def begin_stage(self) -> None:
        """A stage begins with a base image: a Python with pip, nothing else."""
        self.env, self.workdir, self.user = {}, "/", "root"
        base = self.root / "usr" / "local"
        if not base.exists():
            subprocess.run([self.python, "-m", "venv", str(base)], check=True)

    def environment(self) -> dict[str, str]:
        """As a process of the image has it."""
        path = f"{self.root}/usr/local/bin:/usr/bin:/bin"
        return {**reaching_the_index(), "PATH": path, "HOME": str(self.root / "home"), **self.env}

    def run(self, command: str) -> None:
        """RUN."""
        folder = self.root / self.workdir.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["sh", "-ec", self.place(command)], cwd=folder, env=self.environment(), check=True)

    def copy(self, rest: str) -> None:
        """COPY from the repository; from an earlier stage there is nothing to do, all share the folder."""
        if rest.startswith("--from="):
            return
        source, target = shlex.split(rest)
        for path in context_files(source):
            destination = self.root / self.workdir.lstrip("/") / path.replace(source, target, 1)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, destination)

    def follow(self, name: str, rest: str) -> None:
        """Carry out one instruction."""
        match name:
            case "FROM":
                self.begin_stage()
            case "RUN":
                self.run(rest)
            case "COPY":
                self.copy(rest)
            case "ENV":
                self.env |= {
                    key: self.place(value)
                    for key, value in (pair.split("=", 1) for pair in shlex.split(rest))
                }
            case "WORKDIR":
                self.workdir = rest
            case "USER":
                self.user = rest
            case "CMD":
                self.command = json.loads(rest)
            case "HEALTHCHECK":
                self.health = json.loads(rest[rest.index("CMD ") + 4 :])
            case "ARG" | "EXPOSE":
                pass
            case _:
                raise AssertionError(f"the test does not know {name}")


def visible_to_all(python: str) -> bool:
    """Whether another user may run this interpreter: nothing on its way is closed to others."""
    real = Path(python).resolve()
    return all(folder.stat().st_mode & 0o001 for folder in real.parents) and bool(real.stat().st_mode & 0o001)


@pytest.fixture(scope="module")
def image(packaging: ModuleType) -> Iterator[Image]:
    """The image, built."""
    version = re.search(r"ARG PYTHON_VERSION=(\S+)", (ROOT / "Dockerfile").read_text())
    assert version is not None
    candidates = [packaging.interpreter(version[1]) if has(packaging, version[1]) else "", "/usr/bin/python3"]
    pythons = [path for path in candidates if path and Path(path).exists() and visible_to_all(path)]
    root = Path(tempfile.mkdtemp(prefix="image-"))
    root.chmod(0o755)
    try:
        built = Image(root, (pythons or [sys.executable])[0])
        for name, rest in instructions((ROOT / "Dockerfile").read_text()):
            built.follow(name, rest)
        yield built
    finally:
        shutil.rmtree(root)


def has(packaging: ModuleType, version: str) -> bool:
    """Whether that Python is to be had."""
    try:
        packaging.interpreter(version)
    except SystemExit:
        return False
    return True


def pins(lock: str) -> set[str]:
    """The `name==version` of a lock; one name may have several, for different Pythons."""
    return set(re.findall(r"^[a-z0-9-]+==[^\s;]+", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_image_serves_as_somebody_who_is_not_root(image: Image, mongod: Mongod) -> None:
    user, group = map(int, image.user.split(":"))
    assert user != 0
    # Only root may become somebody else, and only where that one may read this machine's Python.
    becomes = os.geteuid() == 0 and visible_to_all(image.python)
    port = free_port()
    key = str(uuid4())
    database = f"container-{uuid4().hex[:8]}"
    given = {"MONGODB_URI": mongod.uri, "MONGODB_DATABASE": database, "API_KEYS": key, "PORT": str(port)}
    environment = {**image.environment(), **given}
    served = shutil.which(image.command[0], path=environment["PATH"])
    assert served is not None
    assert served == f"{image.root}/opt/app/bin/state-tracking-api"
    process = subprocess.Popen(
        [served, *image.command[1:]],
        env=environment,
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        user=user if becomes else None,
        group=group if becomes else None,
        extra_groups=[] if becomes else None,
    )
    try:
        asked: list[subprocess.CompletedProcess[bytes]] = []

        def healthy() -> bool:
            assert process.poll() is None
            check = shutil.which(image.health[0], path=environment["PATH"])
            assert check is not None
            asked.append(
                subprocess.run([check, *image.health[1:]], env=environment, check=False, capture_output=True)
            )
            return asked[-1].returncode == 0

        wait_until(healthy, "the health check of the image passes", 60)
        headers = {"X-API-Key": key}
        body = {"project_id": "p", "machine_id": "m"}
        made = httpx.post(
            f"http://127.0.0.1:{port}/api/sessions", json=body, headers=headers, trust_env=False
        )
        assert made.status_code == 201
        assert "strict-transport-security" in made.headers
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "ENVIRONMENT=production" in output


def test_the_health_check_fails_where_nothing_answers(image: Image) -> None:
    environment = {**image.environment(), "PORT": str(free_port())}
    check = shutil.which(image.health[0], path=environment["PATH"])
    assert check is not None
    failed = subprocess.run([check, *image.health[1:]], env=environment, check=False, capture_output=True)
    assert failed.returncode != 0


def test_the_image_holds_the_locked_versions_and_neither_tests_nor_a_database(image: Image) -> None:
    site = next((image.root / "opt/app/lib").glob("python*/site-packages"))
    found = {
        f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
        for name, version in (info.stem.split("-", 1) for info in site.glob("*.dist-info"))
    }
    assert found - pins("infra/requirements-container.lock") == {"state-tracking-api==0.1.0"}
    assert len(found) > 20
    assert not list(site.glob("fiftyone*"))
    assert not list((image.root / "src").rglob("tests"))


def test_the_containers_lock_holds_the_versions_of_the_projects_lock() -> None:
    assert pins("infra/requirements-container.lock") <= pins("requirements.lock"), "run `make lock-infra`"


def test_the_builder_gets_neither_secrets_nor_local_state() -> None:
    for path in (
        ".env",
        ".git/config",
        ".data/mongodb",
        "packages/state-tracking-api/.env",
        "docs/DEPLOYMENT.md",
    ):
        assert not allowed(path), path
    assert allowed("packages/state-tracking-api/src/state_tracking_api/app.py")
    assert not allowed("packages/state-tracking-api/tests/conftest.py")


def test_the_image_takes_the_uv_that_the_makefile_takes() -> None:
    (pinned,) = re.findall(r"uv==([\d.]+)", (ROOT / "Dockerfile").read_text())
    assert f"UV_VERSION := {pinned}" in (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """compose.yaml."""
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_compose_gives_the_api_only_variables_that_it_has(compose: dict[str, Any]) -> None:
    given = compose["services"]["api"]["environment"]
    assert {name.lower() for name in given} <= set(Settings.model_fields)
    for name, value in given.items():
        default = Settings.model_fields[name.lower()].default
        written = re.fullmatch(r"\$\{\w+:-(.*)\}", str(value))
        if written and name != "ENVIRONMENT":
            assert written[1] == str(default), name


def test_compose_starts_the_api_after_a_replica_set_that_takes_writes(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["api"]["depends_on"] == {"mongo": {"condition": "service_healthy"}}
    assert services["mongo"]["command"][1:3] == ["--replSet", "rs0"]
    assert services["api"]["environment"]["MONGODB_URI"].endswith("replicaSet=rs0")
    assert "isWritablePrimary" in services["mongo"]["healthcheck"]["test"][-1]
    assert services["api"]["ports"] == ["127.0.0.1:${PORT:-3000}:3000"]
