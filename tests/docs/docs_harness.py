"""Reading the documents as the tests do: their commands, and a shell to run them in."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).parents[2]
KEY = "3b7e0c5a-64f1-4f0e-9a3c-8f3a5a1f9d21"
_BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    """The commands of a page that are to be run, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [textwrap.dedent(found[1]) for found in _BLOCK.findall(text)]


def until(look: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    """Wait until `look` is true."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for: {what}"
        time.sleep(0.05)


def play(script: str, environment: dict[str, str], cwd: Path = ROOT) -> str:
    """Run commands in one shell, as a reader does; the answer is what they wrote."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=500,  # minutes on a busy machine: a page has dozens of commands, each a new process
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{script}\n--- wrote ---\n{done.stdout}"
    return done.stdout


def environment(directory: Path, **more: str) -> dict[str, str]:
    """A reader's environment, apart from the developer's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLAUDE_PROJECTS_")}
    own = {
        "CLAUDE_PROJECTS_STATE_DIR": str(directory / "state"),
        "CLAUDE_PROJECTS_CONFIG": str(directory / "config.toml"),
        "CLAUDE_PROJECTS_NETWORK_MS": "5000",  # the machine that runs the tests may be busy
        "SECOND_PORT": str(free_port()),
    }
    return kept | own | more


@dataclass
class FirstTerminal:
    """`make run` in a directory that looks like the checkout and has no data yet."""

    directory: Path
    port: int
    lines: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        for entry in ROOT.iterdir():
            if entry.name not in {".data", ".git", "dist"}:
                (self.directory / entry.name).symlink_to(entry)
        fresh = subprocess.run(
            ["make", "--question", ".venv/.dev"], cwd=self.directory, capture_output=True, check=False
        )
        # It would install this directory, which vanishes, into the environment that the tests run in.
        assert fresh.returncode == 0, "the environment is not up to date: run `make .venv/.dev`"
        self.process = subprocess.Popen(
            ["bash", "-c", blocks("docs/TUTORIAL.md")[0]],
            cwd=self.directory,
            env=environment(self.directory, PORT=str(self.port), RATE_LIMIT_PER_MINUTE="100000"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def line(self, beginning: str) -> str:
        """The first line that begins so, when it has come."""

        def found() -> list[str]:
            return [line.strip() for line in list(self.lines) if line.strip().startswith(beginning)]

        until(lambda: bool(found()) or self.process.poll() is not None, f"a line {beginning!r} of `make run`")
        assert found(), "".join(self.lines)
        return found()[0]

    def stop(self) -> int:
        """Ctrl-C; the answer is the exit code."""
        os.killpg(self.process.pid, 2)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 15)
            code = self.process.wait(30)
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()
        return code
