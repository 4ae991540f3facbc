"""The zip that is deployed: right platform and Python, compiled, nothing in it that does not belong there."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from aws.lambda_harness import KEY, ROOT, Package

# The first test waits for the package: dependencies are fetched, everything is compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET_URI = "mongodb://somebody:a-password@db.example/"
DEPLOYED = ("3.13", "aarch64-manylinux_2_28")
Fault = Callable[[Path], None]


def _not_compiled(root: Path) -> None:
    next((root / "mangum").rglob("*.pyc")).unlink()


def _tests(root: Path) -> None:
    (root / "mangum" / "tests").mkdir()
    (root / "mangum" / "tests" / "data.json").write_text("{}")


def _environment_file(root: Path) -> None:
    (root / ".env").write_text("")


def _other_machine(root: Path) -> None:
    library = next(root.rglob("*.so"))
    content = bytearray(library.read_bytes())
    content[18] = 62  # x86-64
    library.write_bytes(content)


def _other_python(root: Path) -> None:
    library = next(root.rglob("*cpython-313*.so"))
    library.rename(library.with_name(library.name.replace("cpython-313", "cpython-311")))


def _missing(root: Path) -> None:
    shutil.rmtree(root / "sst")


def _too_large(root: Path) -> None:
    with (root / "filler").open("wb") as filler:
        filler.truncate(70_000_000)


FAULTS: dict[str, tuple[Fault, str]] = {
    "a module without bytecode": (_not_compiled, "is not compiled"),
    "tests": (_tests, "is a test"),
    "a file for secrets": (_environment_file, "may hold secrets"),
    "a library for x86-64": (_other_machine, "is not built for aarch64"),
    "a library for Python 3.11": (_other_python, "instead of cpython-313"),
    "no SDK to read the secrets with": (_missing, "sst/__init__.py is missing"),
    "70 MB too much": (_too_large, "are more than"),
}


@pytest.fixture(params=list(FAULTS.values()), ids=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> tuple[Fault, str]:
    """A fault, and a part of what must be said of it."""
    return request.param


@pytest.fixture(scope="module")
def deployed(zip_with_sst: Callable[..., Package], packaging: ModuleType) -> Package:
    """What would be deployed: arm64, Python 3.13."""
    assert (packaging.PYTHON, packaging.PLATFORM) == DEPLOYED
    try:
        packaging.interpreter(DEPLOYED[0])
    except SystemExit as error:
        pytest.skip(str(error))  # as `pnpm deploy:prod` would refuse here
    return zip_with_sst(*DEPLOYED, SECRET_URI)


@pytest.fixture(scope="module")
def content(deployed: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployed zip, unpacked."""
    return deployed.extract(tmp_path_factory.mktemp("deployed"))


def test_everything_in_the_zip_is_compiled_for_the_functions_platform_and_python(
    deployed: Package, content: Path, packaging: ModuleType
) -> None:
    assert deployed.function["runtime"] == f"python{DEPLOYED[0]}"
    assert deployed.function["architectures"] == ["arm64"]
    assert packaging.check(content, *DEPLOYED) == []
    assert list(content.rglob("*aarch64*.so"))


def test_the_zip_is_small_enough_to_start_fast(deployed: Package) -> None:
    with zipfile.ZipFile(deployed.archive) as archive:
        unzipped = sum(entry.file_size for entry in archive.infolist())
    assert deployed.archive.stat().st_size < 20_000_000
    assert unzipped < 60_000_000


def test_the_zip_names_neither_secrets_nor_the_machine_it_was_made_on(content: Path) -> None:
    forbidden = [SECRET_URI.encode(), b"a-password", KEY.encode(), str(ROOT).encode()]
    found = [
        (path.name, text)
        for path in content.rglob("*")
        if path.is_file()
        for text in forbidden
        if text in path.read_bytes()
    ]
    assert found == []
    assert (content / "resource.enc").stat().st_size > 100


def test_a_fault_seeded_into_the_package_is_noticed(
    content: Path, tmp_path: Path, packaging: ModuleType, fault: tuple[Fault, str]
) -> None:
    seed, complaint = fault
    faulty = Path(shutil.copytree(content, tmp_path / "faulty"))
    seed(faulty)
    assert any(complaint in problem for problem in packaging.check(faulty, *DEPLOYED))


def test_the_functions_lock_holds_the_versions_of_the_projects_lock() -> None:
    ours, projects = (_pins(ROOT / path) for path in ("infra/requirements.lock", "requirements.lock"))
    only_the_function_needs = {"sst-sdk", "pycryptodomex"}
    assert {name: projects.get(name) for name in ours if name not in only_the_function_needs} == {
        name: version for name, version in ours.items() if name not in only_the_function_needs
    }, "run `make lock-infra`"


def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))
