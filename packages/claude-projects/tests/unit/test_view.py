"""What a run shows on a terminal."""

import io
from pathlib import Path

from rich.console import Console

from claude_projects.outline import Item
from claude_projects.plan import Definition
from claude_projects.view import LiveView

ITEMS = [Item(n, f"d{n}", Definition(name=f"task-{n:02d}", command="x")) for n in range(40)]


def drawn(console: Console) -> str:
    """What has been written since the last call."""
    file = console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    return text


def test_a_plan_that_is_longer_than_the_terminal_is_shown_around_the_task_at_hand() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=14)
    view = LiveView(console, "plan")
    done = {item.digest for item in ITEMS[:20]}
    view.begin(ITEMS, done)
    drawn(console)
    view.task_begins(ITEMS[20], Path("log"))
    text = drawn(console)
    assert "task-20" in text
    assert "task-19" in text
    assert "task-21" in text
    assert "… 15 before" in text
    assert "… 15 after" in text
    assert text.count("task-") == 10

    view.task_ends(ITEMS[20], "done", well=True, seconds=1)
    drawn(console)
    view.task_begins(ITEMS[39], Path("log"))
    text = drawn(console)
    assert "task-39" in text
    assert "after" not in text

    view.end()
    text = drawn(console)
    assert all(item.name in text for item in ITEMS), "all of it stays on the screen"
    assert "stopped" in text, "and nothing looks as if it still ran"
