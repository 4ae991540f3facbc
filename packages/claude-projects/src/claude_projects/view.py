"""What a run shows: a live picture on a terminal, plain lines everywhere else.

The live picture is drawn by the run's own loop and by no thread of its own: when the run hangs, the spinner
stands still. Beside the time that a task has taken it shows for how long the task has been silent: being
alive is not making progress.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from claude_projects.outline import Item
from claude_projects.text import printable

_SILENCE_SHOWN_AFTER = 15.0
_ROWS_BESIDE_TASKS = 4  # the header, what is left out above and below, the cursor


class Expendable:
    """A stream that nobody has to read: output that cannot be written is dropped, once and for all.

    A run's work does not depend on anybody who watches it: not on ``| head``, not on a terminal that is gone,
    not on a disk that is full. A terminal that takes nothing for now, because of Ctrl+S or a connection that
    sleeps, is not waited for: it misses what it does not take.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = _own_way_to(stream)

    def write(self, text: str) -> int:
        """Write, or do not."""
        try:
            if self._terminal is None:
                return self._stream.write(text)
            left = text.encode(self._stream.encoding, "replace")
            with contextlib.suppress(BlockingIOError):
                while left:
                    left = left[os.write(self._terminal, left) :]
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, or do not."""
        if self._terminal is not None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        # The interpreter flushes what is left when it ends, and an error there would become the exit code.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            if self._terminal is not None:
                os.dup2(nowhere, self._terminal, inheritable=False)
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _own_way_to(stream: TextIO) -> int | None:
    """A descriptor that never blocks, where ``stream`` is a terminal.

    It is opened anew: the one that is there is shared with the shell, whose writes have to block.
    """
    try:
        if not stream.isatty():
            return None
        stream.flush()
        return os.open(os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None


class View(Protocol):
    """Who shows the run to people."""

    def begin(self, items: Sequence[Item], done: set[str]) -> None:
        """The plan, and what of it is done already."""

    def note(self, text: str, *, warning: bool = False) -> None:
        """A sentence."""

    def tracked(self, text: str) -> None:
        """How the run stands with the API."""

    def task_begins(self, item: Item, log: Path) -> None:
        """A task is being worked on."""

    def moves(self, silent_for: float) -> None:
        """The run is alive, and the task has written nothing for so many seconds."""

    def task_ends(self, item: Item, outcome: str, *, well: bool, seconds: float, tail: str = "") -> None:
        """A task has ended; ``tail`` is the end of what it complained about."""

    def end(self) -> None:
        """The run is over."""


class PlainView:
    """One line for each thing that happens."""

    def __init__(self, out: Console, err: Console) -> None:
        self._out, self._err = out, err
        self._total = 0

    def begin(self, items: Sequence[Item], done: set[str]) -> None:
        """The plan, and what of it is done already."""
        self._total = len(items)
        for item in items:
            if item.digest in done:
                self._say(item, "done before")

    def note(self, text: str, *, warning: bool = False) -> None:
        """A sentence."""
        (self._err if warning else self._out).print(
            printable(text), markup=False, highlight=False, soft_wrap=True
        )

    def tracked(self, text: str) -> None:
        """Said already."""

    def task_begins(self, item: Item, log: Path) -> None:
        """A task is being worked on."""
        self._say(item, f"begins, log in {log}")

    def moves(self, silent_for: float) -> None:
        """Nothing is said of it."""

    def task_ends(self, item: Item, outcome: str, *, well: bool, seconds: float, tail: str = "") -> None:
        """A task has ended."""
        self._say(item, f"{outcome} after {duration(seconds)}")
        if not well and tail:
            self.note(tail, warning=True)

    def end(self) -> None:
        """Nothing is left to be said."""

    def _say(self, item: Item, what: str) -> None:
        self.note(f"[{item.index + 1}/{self._total}] {item.name}: {what}")


class LiveView:
    """A picture of all tasks that is kept up to date in place; sentences scroll away above it."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._items: list[Item] = []
        self._states: dict[str, tuple[str, str]] = {}
        self._tracked = ""
        self._current: Item | None = None
        self._began = 0.0
        self._silent = 0.0
        self._over = False
        self._spinner = Spinner("dots")
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def begin(self, items: Sequence[Item], done: set[str]) -> None:
        """The plan, and what of it is done already."""
        self._items = list(items)
        self._states = {item.digest: ("[green]✓[/]", "done before") for item in items if item.digest in done}
        self._live.start()
        self._draw()

    def note(self, text: str, *, warning: bool = False) -> None:
        """A sentence."""
        text = escape(printable(text))
        marked = f"[yellow]![/] {text}" if warning else text
        self._console.print(marked, highlight=False, soft_wrap=True)

    def tracked(self, text: str) -> None:
        """How the run stands with the API."""
        self._tracked = text
        self._draw()

    def task_begins(self, item: Item, log: Path) -> None:
        """A task is being worked on."""
        self._current, self._began, self._silent = item, time.monotonic(), 0.0
        self._states[item.digest] = ("", str(log))
        self._draw()

    def moves(self, silent_for: float) -> None:
        """The run is alive."""
        self._silent = silent_for
        self._draw()

    def task_ends(self, item: Item, outcome: str, *, well: bool, seconds: float, tail: str = "") -> None:
        """A task has ended."""
        self._current = None
        mark = "[green]✓[/]" if well else "[red]✗[/]"
        self._states[item.digest] = (mark, f"{outcome}, {duration(seconds)}")
        self._draw()
        if not well and tail:
            self.note(tail)

    def end(self) -> None:
        """The picture stays as it is, with all tasks."""
        self._over = True
        if self._current is not None:
            self._states[self._current.digest] = ("[yellow]■[/]", "stopped")
            self._current = None
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        if not self._live.is_started:
            return
        table = Table.grid(padding=(0, 1))
        shown = self._shown()
        if shown.start:
            table.add_row("", Text(f"… {shown.start} before", "dim"), "")
        for item in self._items[shown]:
            mark, text = self._states.get(item.digest, ("[dim]·[/]", ""))
            if item is self._current:
                took = duration(time.monotonic() - self._began)
                silent = (
                    f", silent for {duration(self._silent)}" if self._silent > _SILENCE_SHOWN_AFTER else ""
                )
                table.add_row(
                    self._spinner, Text(printable(item.name), "bold"), Text(f"{took}{silent}  {text}", "cyan")
                )
            else:
                table.add_row(Text.from_markup(mark), Text(printable(item.name)), Text(text, "dim"))
        if (after := len(self._items) - shown.stop) > 0:
            table.add_row("", Text(f"… {after} after", "dim"), "")
        header = Text.assemble((self._title, "bold"), "  ", (self._tracked, "dim"))
        self._live.update(Group(header, table), refresh=True)

    def _shown(self) -> slice:
        """The tasks for which the terminal has room: those around the one at hand, at the end all of them."""
        room = max(1, self._console.height - _ROWS_BESIDE_TASKS)
        if self._over or len(self._items) <= room:
            return slice(0, len(self._items))
        at = next((n for n, item in enumerate(self._items) if item.digest not in self._states), 0)
        at = self._current.index if self._current else at
        start = min(max(0, at - room // 2), len(self._items) - room)
        return slice(start, start + room)


def duration(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
