"""Puts the function's code together: locked dependencies for its platform, the server, all of it compiled.

SST could do this itself, and does it differently in three ways that matter here: it resolves the dependencies
anew at each deployment instead of taking the hashed lock, it names no target platform where the deploying
machine has the function's architecture (and then ships wheels for the local Python), and it knows no extras.
So SST is given the result as a bundle; it adds the encrypted secrets, makes the zip and uploads it.

    python infra/package.py build DIR [--python 3.13] [--platform aarch64-manylinux_2_28]
    python infra/package.py check DIR [--python 3.13] [--platform aarch64-manylinux_2_28]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "infra" / "requirements.lock"
SERVER = ROOT / "packages" / "state-tracking-api"

PYTHON = "3.13"
PLATFORM = "aarch64-manylinux_2_28"
# AWS's limit is 250 MB; far below it, because every megabyte is loaded at each cold start.
MAX_UNZIPPED = 60_000_000

# The machine field of an ELF header: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
ELF_MACHINES = {"aarch64": 183, "x86_64": 62}
# Directories that no request reads: tests of the dependencies, command-line scripts, C headers.
DROPPED_DIRECTORIES = {"tests", "test", "SelfTest", "bin", "include", "__pycache__"}
DROPPED_SUFFIXES = {".pyi", ".pyx", ".pxd", ".c", ".h"}
NEEDED = ("state_tracking_api/aws.py", "mangum/__init__.py", "pymongo/__init__.py", "sst/__init__.py")


def build(target: Path, python: str, platform: str) -> None:
    """Fill `target` (emptied first) with the function's code.

    Raises:
        SystemExit: No interpreter of that version is found to compile with, or an installation failed.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    install = [uv(), "pip", "install", "--quiet", "--target", str(target), "--no-deps", "--link-mode", "copy"]
    for_platform = ["--python-version", python, "--python-platform", platform]
    run([*install, *for_platform, "--only-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)])
    run([*install, *for_platform, str(SERVER)])
    prune(target)
    # Hashes instead of times: the zip has no times, and Python would compile anew at each cold start.
    compileall = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    run([interpreter(python), *compileall, "-s", str(target), "-p", "/var/task", str(target)])


def prune(target: Path) -> None:
    """Remove what no request reads, and what says where it was built."""
    # FastAPI imports it, for models that are not here; it does without (its _compat/shared.py).
    shutil.rmtree(target / "pydantic" / "v1")
    for directory, directories, files in os.walk(target, topdown=False):
        for name in directories:
            if name in DROPPED_DIRECTORIES:
                shutil.rmtree(Path(directory) / name)
        for name in files:
            path = Path(directory) / name
            record = directory.endswith(".dist-info") and name != "METADATA" and "LICENSE" not in name.upper()
            if record or path.suffix in DROPPED_SUFFIXES or name.startswith("test_") or name == ".lock":
                path.unlink()


def check(target: Path, python: str, platform: str) -> list[str]:
    """What is wrong with a package, a sentence each: platform, Python version, compilation, content, size."""
    machine = platform.partition("-")[0]
    tag = f"cpython-{python.replace('.', '')}"
    files = [path for path in target.rglob("*") if path.is_file()]
    problems = [problem for path in files for problem in check_file(path, target, tag, machine)]
    problems += [f"{needed} is missing" for needed in NEEDED if not (target / needed).is_file()]
    if not any(path.suffix == ".so" for path in files):
        problems.append("no compiled extension is in it: pydantic and PyMongo would not start")
    if (size := sum(path.stat().st_size for path in files)) > MAX_UNZIPPED:
        problems.append(f"{size} bytes unzipped are more than {MAX_UNZIPPED}")
    return problems


def check_file(path: Path, target: Path, tag: str, machine: str) -> list[str]:
    """What is wrong with one file, given the Python (`cpython-313`) and the machine (`aarch64`)."""
    relative = path.relative_to(target)
    problems: list[str] = []
    if path.suffix == ".so":
        header = path.read_bytes()[:20]
        if header[:4] != b"\x7fELF" or struct.unpack_from("<H", header, 18)[0] != ELF_MACHINES[machine]:
            problems.append(f"{relative} is not built for {machine}")
        found = re.search(r"cpython-\d+", path.name)
        if found and found.group() != tag:
            problems.append(f"{relative} is built for {found.group()} instead of {tag}")
    if path.suffix == ".pyc" and tag not in path.name:
        problems.append(f"{relative} is not compiled for {tag}")
    if path.suffix == ".py" and not (path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc").is_file():
        problems.append(f"{relative} is not compiled")
    if {"test", "tests", "SelfTest"} & set(relative.parts[:-1]) or path.name.startswith("test_"):
        problems.append(f"{relative} is a test")
    if path.name.startswith(".env"):
        problems.append(f"{relative} may hold secrets")
    return problems


def interpreter(python: str) -> str:
    """A Python of that version on this machine, else one that uv can fetch."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == python:
        return sys.executable
    installed = sorted(Path.home().glob(f".pyenv/versions/{python}*/bin/python"))
    probe = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{python}')"
    for candidate in (f"python{python}", *map(str, installed)):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", probe], capture_output=True, check=False).returncode == 0:
            return found
    fetched = subprocess.run([uv(), "python", "install", "--quiet", python], capture_output=True, check=False)
    if fetched.returncode == 0:
        return subprocess.check_output([uv(), "python", "find", python], text=True).strip()
    raise SystemExit(
        f"Python {python} is needed to compile the package, and is neither here nor to be fetched"
    )


def uv() -> str:
    """The one that UV names, the project's, or the one on PATH."""
    if given := os.environ.get("UV"):
        return given
    local = ROOT / ".venv" / "bin" / "uv"
    if local.is_file():
        return str(local)
    if found := shutil.which("uv"):
        return found
    raise SystemExit("uv is needed: `make .venv/bin/uv` installs it, or set UV to its path")


def run(command: list[str]) -> None:
    """Run a command; its failure is this program's."""
    # An environment that is active must not be taken for the target.
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if code := subprocess.run(command, env=environment, check=False).returncode:
        raise SystemExit(f"failed with {code}: {' '.join(command[:4])} …")


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description="Package the Lambda function")
    parser.add_argument("command", choices=["build", "check"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--python", default=PYTHON)
    parser.add_argument("--platform", default=PLATFORM)
    arguments = parser.parse_args()
    if arguments.command == "build":
        build(arguments.directory, arguments.python, arguments.platform)
    if problems := check(arguments.directory, arguments.python, arguments.platform):
        raise SystemExit("the package is not fit for Lambda:\n  " + "\n  ".join(problems))
    size = sum(path.stat().st_size for path in arguments.directory.rglob("*") if path.is_file())
    print(f"{arguments.directory}: {size / 1e6:.1f} MB, Python {arguments.python}, {arguments.platform}")


if __name__ == "__main__":
    main()
