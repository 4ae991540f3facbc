"""Every command in the documents works: each page's, one after another, as a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest
from docs_harness import ROOT, FirstTerminal, blocks, environment, play, until

# More than the commands of a page have: they are the ones to say that they took too long.
pytestmark = pytest.mark.timeout(600)

PLAYED = ["API", "MONITORING", "TROUBLESHOOTING", "RUNBOOKS", "VALIDATION"]
TUTORIAL_FILES = Path("/tmp/claude-projects-tutorial")  # noqa: S108 - the page names it


@pytest.mark.parametrize("page", PLAYED)
def test_every_command_of_the_page_works(page: str, service: dict[str, str]) -> None:
    play("\n".join(blocks(f"docs/{page}.md")), service)


def test_the_tutorial_leads_to_a_recovered_orchestration(first_terminal: FirstTerminal) -> None:
    export = first_terminal.line("export CLAUDE_PROJECTS_URL=")
    first, *rest = blocks("docs/TUTORIAL.md")
    assert first == "make run\n"
    wrote = play("\n".join([export, *rest]), environment(first_terminal.directory), first_terminal.directory)
    assert "collected\nthought\nwritten\n" in wrote
    assert (TUTORIAL_FILES / "done.txt").read_text() == "collected\nthought\nwritten\n"


def test_the_two_commands_of_the_readme_run_the_example_plan(first_terminal: FirstTerminal) -> None:
    export = first_terminal.line("export CLAUDE_PROJECTS_URL=")
    first, second = blocks("README.md")
    assert first == "make run\n"
    found = re.fullmatch(r"export CLAUDE_PROJECTS_URL=(\S+) CLAUDE_PROJECTS_API_KEY=(\S+)", export)
    assert found
    url, key = found.groups()
    # A group of its own: Ctrl-C reaches whatever has been started.
    run = subprocess.Popen(
        ["bash", "-c", f"{export}\nexec {second}"],
        cwd=first_terminal.directory,
        env=environment(first_terminal.directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    query = "project_id=claude-projects&status=completed"

    def one_is_done() -> bool:
        assert run.poll() is None, run.communicate()[0]
        answer = httpx.get(f"{url}/api/tasks?{query}", headers={"X-API-Key": key}, timeout=30)
        return bool(answer.json()["total"])

    try:
        until(one_is_done, "the first task of the example plan to be completed")
    finally:
        os.killpg(run.pid, 15)
        wrote = run.communicate(timeout=60)[0]
    assert run.returncode in {0, 143}, wrote


def test_every_page_with_commands_is_played() -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md") if blocks(f"docs/{path.name}")}
    assert pages <= {*PLAYED, "TUTORIAL"}
