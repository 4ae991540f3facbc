"""Answers of the API as tables for people."""

from collections.abc import Iterable
from datetime import datetime

from rich.table import Table
from rich.text import Text

from claude_projects.models import Machine, Session, SessionHealth, StalledSessions, Task
from claude_projects.text import printable
from claude_projects.view import duration

_COLOURS = {
    "active": "green",
    "online": "green",
    "completed": "dim green",
    "in_progress": "cyan",
    "pending": "dim",
    "paused": "yellow",
    "blocked": "yellow",
    "maintenance": "yellow",
    "stalled": "bold red",
    "failed": "red",
    "offline": "red",
}


def sessions(items: Iterable[Session], now: datetime | None) -> Table:
    """Sessions, one a row; ``now`` is the server's time."""
    table = _table("SESSION", "PROJECT", "MACHINE", "STATUS", "HEARTBEAT", "STARTED")
    for one in items:
        table.add_row(
            one.session_id,
            Text(printable(one.project_id)),
            Text(printable(one.machine_id)),
            status(one.status) + Text(f" → {one.recovered_by[:8]}" if one.recovered_by else "", "dim"),
            _ago(one.last_heartbeat, now),
            _ago(one.started_at, now),
        )
    return table


def stalled(answer: StalledSessions) -> Table:
    """Silent sessions, one a row."""
    table = _table("SESSION", "PROJECT", "MACHINE", "SILENT FOR")
    for one in answer.stalled_sessions:
        silence = duration(one.time_since_heartbeat_ms / 1000)
        table.add_row(
            one.session_id,
            Text(printable(one.project_id)),
            Text(printable(one.machine_id)),
            Text(silence, "bold red"),
        )
    return table


def tasks(items: Iterable[Task], now: datetime | None) -> Table:
    """Tasks, one a row."""
    table = _table("TASK", "NAME", "STATUS", "ISSUE", "STARTED", "TOOK", "WHY")
    for one in items:
        took = (
            (one.completed_at - one.started_at).total_seconds()
            if one.completed_at and one.started_at
            else None
        )
        table.add_row(
            one.task_id,
            Text(printable(one.task_name)),
            status(one.status),
            Text(printable(one.github_issue_id or "")),
            _ago(one.started_at, now),
            "" if took is None else duration(took),
            Text(printable((one.error_message or "").split("\n", 1)[0])),
        )
    return table


def machines(items: Iterable[Machine], now: datetime | None) -> Table:
    """Machines, one a row."""
    table = _table("MACHINE", "HOST", "STATUS", "SESSIONS", "SLOTS", "HEARTBEAT")
    for one in items:
        table.add_row(
            Text(printable(one.machine_id)),
            Text(printable(one.hostname)),
            status(one.status),
            str(len(one.active_sessions)),
            ", ".join(map(str, one.docker_slots)),
            _ago(one.last_heartbeat, now),
        )
    return table


def session(one: Session, health: SessionHealth) -> Table:
    """A session, one field a row."""
    silence = f"{duration(health.time_since_heartbeat_ms / 1000)} ago"
    if health.is_stalled:
        silence += f" (stalled: the threshold is {duration(health.stall_threshold_ms / 1000)})"
    rows: list[tuple[str, Text | str]] = [
        ("session", one.session_id),
        ("project", Text(printable(one.project_id))),
        (
            "machine",
            Text(
                printable(one.machine_id) + ("" if one.docker_slot is None else f", slot {one.docker_slot}")
            ),
        ),
        ("status", status(one.status)),
        ("heartbeat", Text(silence, "bold red" if health.is_stalled else "")),
        ("started", _time(one.started_at)),
        ("ended", _time(one.completed_at)),
        ("why", Text(printable(str(one.metadata.get("error_message", ""))), "red")),
        ("continues", one.recovered_from or ""),
        ("went on as", one.recovered_by or ""),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value:
            table.add_row(Text(name, "dim"), value)
    return table


def status(text: str) -> Text:
    """A status in its colour."""
    return Text(text, _COLOURS.get(text, ""))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        # Ids are there to be copied: they are never broken. What people have named gives way first.
        named = column in {"PROJECT", "MACHINE", "NAME", "HOST", "WHY", "ISSUE"} and number > 0
        table.add_column(column, no_wrap=not named, overflow="fold")
    return table


def _ago(moment: datetime | None, now: datetime | None) -> str:
    """How long ago by the server's clock, whose answers tell the time to the second."""
    if moment is None:
        return ""
    if now is None:
        return _time(moment)
    seconds = max(0.0, (now - moment).total_seconds())
    return f"{duration(round(seconds)).replace('.0 s', ' s')} ago" if seconds < 86400 else _time(moment)


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
