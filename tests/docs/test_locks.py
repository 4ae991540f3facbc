"""What is refused of a lock, and what an audit of the locks says and finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from docs_harness import ROOT


def run(program: Path | str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the programs."""
    command = [sys.executable, program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("lock", "fault"),
    [
        ("httpx>=0.28 --hash=sha256:00", "httpx>=0.28 is not pinned with =="),
        ("httpx==0.28.1", "httpx==0.28.1 has no hash"),
        ("httpx==0.28.1 @ https://example.org/httpx.whl --hash=sha256:00", "httpx==0.28.1 names an address"),
    ],
)
def test_a_lock_that_does_not_pin_what_it_brings_is_refused(tmp_path: Path, lock: str, fault: str) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "requirements.lock").write_text(lock + "\n", encoding="utf-8")
    (tmp_path / "pnpm-lock.yaml").write_text("    resolution: {integrity: sha512-00}\n", encoding="utf-8")
    found = run(shutil.copy(ROOT / ".ci/check-locks", tmp_path / ".ci"))
    assert found.returncode == 1
    assert found.stderr == f"requirements.lock: {fault}\n"


PNPM_LOCK = """lockfileVersion: '9.0'

packages:

  '@scope/left@2.0.0-beta.1':
    resolution: {integrity: sha512-00}

  right@1.10.0:
    resolution: {integrity: sha512-00}

snapshots:

  outside@1.0.0: {}
"""


def advisory(number: int, ecosystem: str, name: str, **affected: Any) -> dict[str, Any]:
    """An advisory as OSV exports it."""
    about = {"package": {"ecosystem": ecosystem, "name": name}, **affected}
    return {"id": f"TEST-{number}", "affected": [about]}


def between(*events: tuple[str, str]) -> list[dict[str, Any]]:
    """A range of versions, by its events."""
    return [{"type": "ECOSYSTEM", "events": [{kind: version} for kind, version in events]}]


def audit(folder: Path, lock: str, *advisories: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Hold a lock of Python packages, and the one above, against advisories."""
    (folder / ".ci").mkdir()
    (folder / "requirements.lock").write_text(lock + "\n", encoding="utf-8")
    (folder / "pnpm-lock.yaml").write_text(PNPM_LOCK, encoding="utf-8")
    # Each ecosystem has one that is about nothing here.
    filled = [*advisories, advisory(0, "PyPI", "other"), advisory(1, "npm", "other")]
    for ecosystem in ("PyPI", "npm"):
        (folder / ecosystem).mkdir()
        with zipfile.ZipFile(folder / ecosystem / "all.zip", "w") as archive:
            for one in filled:
                if one["affected"][0]["package"]["ecosystem"] == ecosystem:
                    archive.writestr(f"{one['id']}.json", json.dumps(one))
    return run(shutil.copy(ROOT / ".ci/audit-locks", folder / ".ci"), folder)


FIXED = (("introduced", "1.0"), ("fixed", "1.10"))
LAST = (("introduced", "1.2"), ("last_affected", "1.2"))
TWICE = (("introduced", "0"), ("fixed", "1.1"), ("introduced", "1.4"), ("fixed", "1.5"))


@pytest.mark.parametrize(
    ("version", "affected", "is_found"),
    [
        ("1.9", {"ranges": between(*FIXED)}, True),  # by its numbers, not by its letters
        ("1.10", {"ranges": between(*FIXED)}, False),
        ("1.10rc1", {"ranges": between(*FIXED)}, True),  # a candidate comes before its release
        ("0.9", {"ranges": between(*FIXED)}, False),
        ("1.2", {"ranges": between(*LAST)}, True),
        ("1.2.1", {"ranges": between(*LAST)}, False),
        ("0.1", {"ranges": between(*TWICE)}, True),
        ("1.2", {"ranges": between(*TWICE)}, False),
        ("1.4.2", {"ranges": between(*TWICE)}, True),
        ("1.2", {"ranges": between(("introduced", "0"))}, True),
        ("1.2", {"ranges": between(("introduced", "what?"), ("fixed", "2.0"))}, True),  # not missed
        ("1.2", {"versions": ["1.1", "1.2"]}, True),
        ("1.3", {"versions": ["1.1", "1.2"]}, False),
        ("1.2", {"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
    ],
)
def test_an_audit_finds_the_versions_that_an_advisory_names(
    tmp_path: Path, version: str, affected: dict[str, Any], *, is_found: bool
) -> None:
    lock = f"some-package=={version} \\\n    --hash=sha256:00"
    found = audit(tmp_path, lock, advisory(7, "PyPI", "Some_Package", **affected))
    assert found.returncode == is_found, found.stderr
    assert f"3 locked versions, 3 advisories, {int(is_found)} findings" in found.stdout
    if is_found:
        assert f"requirements.lock: some-package {version} is affected by TEST-7" in found.stderr


def test_an_audit_reads_npms_lock_and_leaves_out_what_was_withdrawn(tmp_path: Path) -> None:
    left = advisory(7, "npm", "@scope/left", ranges=between(("introduced", "1.0.0"), ("fixed", "2.0.0")))
    right = advisory(8, "npm", "right", ranges=between(("introduced", "0"))) | {"withdrawn": "2026-01-01"}
    outside = advisory(9, "npm", "outside", ranges=between(("introduced", "0")))
    found = audit(tmp_path, "other==1.0", left, right, outside)
    assert found.returncode == 1
    assert found.stderr == (
        "pnpm-lock.yaml: @scope/left 2.0.0-beta.1 is affected by TEST-7, mended in 2.0.0\n"
    )


def test_an_audit_that_has_nothing_to_ask_does_not_pass(tmp_path: Path) -> None:
    found = run(ROOT / ".ci/audit-locks", tmp_path)
    assert found.returncode == 2
    assert found.stderr.startswith("No advisories can be read: ")
    for ecosystem in ("PyPI", "npm"):
        (tmp_path / ecosystem).mkdir()
        zipfile.ZipFile(tmp_path / ecosystem / "all.zip", "w").close()
    found = run(ROOT / ".ci/audit-locks", tmp_path)
    assert (found.returncode, found.stderr) == (2, f"No advisories about PyPI in {tmp_path}\n")


def test_every_locked_version_of_this_project_is_held_against_the_advisories(tmp_path: Path) -> None:
    for ecosystem in ("PyPI", "npm"):
        (tmp_path / ecosystem).mkdir()
        name = {"PyPI": "starlette", "npm": "sst"}[ecosystem]
        with zipfile.ZipFile(tmp_path / ecosystem / "all.zip", "w") as archive:
            known = advisory(7, ecosystem, name, ranges=between(("introduced", "0")))
            archive.writestr("TEST-7.json", json.dumps(known))
    found = run(ROOT / ".ci/audit-locks", tmp_path)
    affected = {line.split()[0] for line in found.stderr.splitlines()}
    assert affected == {
        "requirements.lock:",
        "infra/requirements.lock:",
        "infra/requirements-container.lock:",
        "pnpm-lock.yaml:",
    }
    assert int(found.stdout.split()[0]) > 500
