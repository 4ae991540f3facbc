"""One orchestration from start to end, as somebody sees it who never reloads the page.

The real command line runs a real plan; its process is killed, the stall is detected by the server itself, the
work is handed over by the button and finished by another process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect as seen

from api_harness.api import Api, unique
from api_harness.server import Server, wait_until
from api_harness.servers import Servers
from dashboard.visitors import Visitors

CLIENT = Path(sys.executable).with_name("claude-projects")
WAIT = "until [ -e {gate} ]; do sleep 0.1; done"

Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def vigilant(own: Servers) -> Server:
    """A server that looks for silent sessions by itself, after three seconds."""
    return own.start(SCHEDULER="on", STALL_THRESHOLD_MS="3000", STALL_SCAN_INTERVAL_SECONDS="1")


@pytest.fixture
def run(vigilant: Server, tmp_path: Path) -> Iterator[Run]:
    """Starts the client's command line; ends what a test has left running."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CLAUDE_PROJECTS_")
    } | {
        "CLAUDE_PROJECTS_URL": vigilant.base_url,
        "CLAUDE_PROJECTS_API_KEY": vigilant.key,
        "CLAUDE_PROJECTS_STATE_DIR": str(tmp_path / "state"),
        "CLAUDE_PROJECTS_CONFIG": str(tmp_path / "config.toml"),
    }

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"output-{len(started)}").open("wb") as output:
            process = subprocess.Popen(
                [CLIENT, *arguments, "--heartbeat", "1"],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
async def test_an_orchestration_is_seen_starting_killed_stalled_recovered_and_ending(
    vigilant: Server, visitors: Visitors, run: Run, tmp_path: Path
) -> None:
    # The page goes before its server does, as it would complain that nobody answers any more.
    project, first_machine, second_machine = unique("project"), unique("machine"), unique("machine")
    gates = {name: tmp_path / name for name in ("first", "second", "third")}
    tasks = "".join(
        f'[[tasks]]\nname = "the {name} task"\ncommand = "{WAIT.format(gate=gate)}"\n'
        for name, gate in gates.items()
    )
    plan = tmp_path / "plan.toml"
    plan.write_text(f'project_id = "{project}"\nname = "story"\n{tasks}')

    visitor = await (await visitors.to(vigilant)).open()
    page = visitor.page
    await page.evaluate("window.opened = 'once'")
    # Where there is nothing at all, it says what to do.
    nothing = page.locator(".empty").filter(has=page.get_by_role("heading", name="No sessions yet"))
    await seen(nothing).to_contain_text("claude-projects")

    # It starts, and goes on.
    process = run("run", str(plan), "--machine-id", first_machine)
    row = page.locator("[data-session]").filter(has_text=first_machine)
    await seen(row).to_contain_text("Active")
    await seen(row).to_contain_text("the first task")
    gates["first"].touch()
    await seen(row).to_contain_text("the second task")
    await seen(row).to_contain_text("1 of 3")

    # Its process is killed, and nobody tells the server.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    await seen(row).to_contain_text("Stalled")
    with Api(vigilant.base_url, vigilant.key) as api:
        [session] = api.get("/api/sessions", params={"project_id": project}).json()["sessions"]
        wait_until(
            lambda: api.read_session(session)["status"] == "stalled", "the server has marked it itself"
        )

        # It is recovered by the button.
        await row.get_by_role("link").click()
        await page.get_by_role("button", name="Recover…").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("On which machine?").fill(second_machine)
        await dialog.get_by_role("button", name="Recover", exact=True).click()
        result = page.locator(".result")
        await seen(result).to_contain_text(second_machine)
        await seen(page.locator(".flag-recovery")).to_have_count(1)
        successor = api.read_session(session)["recovered_by"]

        # Nobody has picked the successor up yet. The client takes nothing over that may be alive, so it comes
        # when that one has been silent for too long as well; and it goes on to the end.
        await result.get_by_role("link").click()
        await seen(page.locator(".head .pill")).to_have_text("Stalled")
        for gate in gates.values():
            gate.touch()
        process = run("resume", successor, "--machine-id", second_machine)
        assert process.wait(60) == 0, (tmp_path / "output-1").read_text()
        last = api.read_session(successor)["recovered_by"] or successor
    links = page.get_by_role("navigation", name="Predecessors and successors").get_by_role("link")
    await seen(links.last).to_contain_text(last[:8])
    await links.last.click()
    await seen(page.locator(".head .pill")).to_have_text("Completed")
    lanes = page.get_by_role("list", name="Tasks").get_by_role("listitem")
    await seen(lanes).to_contain_text(["the second task", "the third task"])
    await seen(page.locator(".task.is-completed")).to_have_count(2)
    assert await page.evaluate("window.opened") == "once"
