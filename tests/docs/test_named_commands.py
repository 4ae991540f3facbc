"""A command that the documents name, run by the tests or not, exists with the flags that they give it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from docs_harness import ROOT
from typer.core import TyperGroup

from claude_projects.cli import app
from state_tracking_api.jobs import JOBS

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("packages/*/README.md"),
]
_FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def named(program: str) -> Iterator[tuple[str, list[str]]]:
    """Where the documents name a program: the page, and the words behind it."""
    found = re.compile(rf"(?:^|[\s(!])(?:\.venv/bin/)?{program} ([^&;<>#()`\n]*)")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [block.replace("\\\n", " ") for block in _FENCE.findall(text)]
        spans = [span for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)) if program in span]
        for code in blocks + spans:
            for words in found.findall(code):
                # A pipe ends the command; "list|show" without spaces is a choice.
                if words.strip():
                    yield page.name, shlex.split(re.split(r"\s\|(?:\s|$)", words)[0].replace("'", ""))


def unknown(words: list[str]) -> str | None:
    """What of a command line of `claude-projects` does not exist."""
    command: Any = typer.main.get_command(app)
    flags = {"--help", "-h", *(flag for one in command.params for flag in one.opts)}
    for word in words:
        if word.startswith("-"):
            flag = word.strip("[]").partition("=")[0]
            if flag not in flags:
                return flag
        elif isinstance(command, TyperGroup):
            chosen = [command.commands.get(name) for name in word.split("|")]
            if None in chosen:
                return word
            command = chosen[0]
            flags |= {flag for one in command.params for flag in one.opts}
    return None


def test_every_command_of_the_client_exists() -> None:
    lines = [(page, words) for page, words in named("claude-projects") if words[0] != "…"]
    assert len(lines) > 40
    assert [(page, words) for page, words in lines if unknown(words) is not None] == []


def test_every_command_of_the_server_exists() -> None:
    lines = [(page, words) for page, words in named("state-tracking-api") if re.match("[a-zA-Z]", words[0])]
    assert len(lines) > 8
    for page, words in lines:
        if words[0] == "job":
            assert words[1] in {"NAME", *JOBS}, page
            assert set(words[2:]) <= {"--repair"}, page
        else:
            assert words[0] in {"serve", "dev", "openapi"}, f"{page}: {words}"


def test_every_target_of_make_exists() -> None:
    makefiles = [ROOT / "Makefile", *ROOT.glob("*/targets.mk"), *ROOT.glob("packages/*/targets.mk")]
    made = re.findall(r"^([a-z][\w./-]*):", "\n".join(one.read_text() for one in makefiles), re.MULTILINE)
    lines = [(page, words[0]) for page, words in named("make") if re.match(r"[a-z]", words[0])]
    assert len(lines) > 10
    assert [(page, target) for page, target in lines if target not in made] == []


@pytest.mark.parametrize("program", ["pnpm", "pnpm run"])
def test_every_script_of_pnpm_exists(program: str) -> None:
    scripts = json.loads((ROOT / "package.json").read_text())["scripts"]
    lines = [(page, words[0]) for page, words in named(program) if words and ":" in words[0]]
    assert lines
    assert [(page, script) for page, script in lines if script not in scripts] == []
