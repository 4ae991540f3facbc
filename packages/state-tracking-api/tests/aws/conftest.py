"""The function as SST zips it, for this machine, on a database of the tests'."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

from aws.lambda_harness import KEY, ROOT, Function, Package, Start
from state_tracking_api.embedded import Mongod


def load_packaging() -> ModuleType:
    """infra/package.py, which is a script and no module of a package."""
    spec = importlib.util.spec_from_file_location("packaging_script", ROOT / "infra" / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def packaging() -> ModuleType:
    """The script that puts the function's code together."""
    return load_packaging()


@pytest.fixture(scope="session")
def zip_with_sst(packaging: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Package]:
    """Build a bundle and let SST's own component zip it: `zip_with_sst(python, platform, mongodb_uri)`."""
    subprocess.run(["make", "--silent", ".sst/platform/.installed"], cwd=ROOT, check=True)

    def make(python: str, platform: str, mongodb_uri: str, stage: str = "prod") -> Package:
        work = tmp_path_factory.mktemp("package")
        packaging.build(work / "bundle", python, platform)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "MONGODB_URI": mongodb_uri,
            "API_KEYS": f"tests={KEY}",
            "ALARM_EMAIL": "operator@example.com",
            "LAMBDA_BUNDLE": str(work / "bundle"),
            "RELEASE": "0123abc",
        }
        command = ["node", "infra/testing/evaluate.mjs", stage, "--work", str(work)]
        graph = subprocess.check_output(command, cwd=ROOT, env=environment)
        return Package(work / "artifacts" / "Server" / "code.zip", json.loads(graph))

    return make


@pytest.fixture(scope="session")
def python(packaging: ModuleType) -> tuple[str, str]:
    """The function's own Python, or the one that runs the tests where that is not here: version and path."""
    for version in (packaging.PYTHON, f"{sys.version_info[0]}.{sys.version_info[1]}"):
        try:
            return version, packaging.interpreter(version)
        except SystemExit:
            continue
    raise AssertionError("this very interpreter is always found")


@pytest.fixture(scope="session")
def package(zip_with_sst: Callable[..., Package], python: tuple[str, str], mongod: Mongod) -> Package:
    """The function for this machine, with the tests' database among its secrets."""
    return zip_with_sst(python[0], f"{os.uname().machine}-manylinux_2_28", mongod.uri)


@pytest.fixture(scope="session")
def task_root(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked."""
    return package.extract(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def runtime(packaging: ModuleType, python: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AWS's runtime client, as Lambda has it beside the function."""
    target = tmp_path_factory.mktemp("runtime")
    lock = ROOT / "infra" / "requirements-runtime.lock"
    install = [
        packaging.uv(),
        "pip",
        "install",
        "--quiet",
        "--target",
        str(target),
        "--python-version",
        python[0],
    ]
    packaging.run([*install, "--only-binary", ":all:", "--require-hashes", "--requirement", str(lock)])
    return target


@pytest.fixture(scope="session")
def instances(package: Package, task_root: Path, runtime: Path, python: tuple[str, str]) -> Iterator[Start]:
    """Start instances of the function: `instances(**environment)`; they end with the tests.

    Each has a database of its own unless MONGODB_DATABASE is given, and the configuration that SST gives it.
    """
    configured: Mapping[str, str] = package.function["environment"]["variables"]
    with ExitStack() as stack:

        def start(**environment: str) -> Function:
            own = {"MONGODB_DATABASE": f"lambda-{uuid4().hex[:12]}", "RATE_LIMIT_PER_MINUTE": "100000"}
            everything = {**configured, **own, **environment}
            handler = package.function["handler"]
            return stack.enter_context(Function(python[1], task_root, runtime, handler, everything))

        yield start
