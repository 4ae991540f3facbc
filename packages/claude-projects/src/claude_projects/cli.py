"""The command line: what is asked for, and the one sentence for each way in which it can go wrong."""

import contextlib
import io
import json
import os
import sys
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, TypeVar, cast, get_args

import typer
from rich.console import Console

from claude_projects import calls, doctor, settings, tables
from claude_projects.client import Client
from claude_projects.errors import (
    ApiError,
    ClaudeProjectsError,
    HeldError,
    NoPlanError,
    NothingLeftError,
    NotTheApiError,
    RateLimitedError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
)
from claude_projects.exchange import Call, Retry
from claude_projects.exits import Exit
from claude_projects.models import MachineStatus, Page, SessionStatus, TaskStatus
from claude_projects.plan import PlanError, load
from claude_projects.validation import command as validation

T = TypeVar("T")

app = typer.Typer(
    name="claude-projects",
    help="Run plans of Claude tasks so that nothing is lost when they are killed, and see what runs where.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
sessions_app = typer.Typer(
    help="Sessions: what runs, what is silent, what to do about it.", no_args_is_help=True
)
machines_app = typer.Typer(help="Machines that sessions run on.", no_args_is_help=True)
tasks_app = typer.Typer(help="Tasks of sessions.", no_args_is_help=True)
app.add_typer(sessions_app, name="sessions")
app.add_typer(machines_app, name="machines")
app.add_typer(tasks_app, name="tasks")
app.command("validate")(validation.command)
app.command("doctor")(doctor.command)

# What goes into a pipe or a file is not cut to the width of a screen.
_out = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
_err = Console(stderr=True, highlight=False)
# A person waits: two repetitions take about a second.
_IMPATIENT = Retry(attempts=2, patience=15.0)

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")]
MachineId = Annotated[
    str | None,
    typer.Option("--machine-id", metavar="ID", help="This machine's id; its host name by default."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")]


@dataclass(frozen=True)
class _Context:
    flags: dict[str, Any]

    def settings(self, **more: Any) -> settings.Settings:
        return settings.read({**self.flags, **more})


def _version(wanted: bool) -> None:
    if wanted:
        _out.print(f"claude-projects {version('claude-projects')}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="The API's address, or CLAUDE_PROJECTS_URL.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="The API key. Other users can see it here: better CLAUDE_PROJECTS_API_KEY.",
        ),
    ] = None,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What all commands share."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without "…" must not stop anything
            stream.reconfigure(errors="backslashreplace")
    context.obj = _Context({"url": url, "api_key": api_key})


# Work


@app.command()
def run(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="The plan file (TOML).", show_default=False)],
    machine_id: MachineId = None,
    docker_slot: Annotated[
        int | None, typer.Option("--docker-slot", min=0, help="The slot we run in.")
    ] = None,
    heartbeat: Annotated[
        float | None,
        typer.Option("--heartbeat", metavar="SECONDS", help="Between two heartbeats; 60 by default."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew, whatever the last run of this plan has left undone.")
    ] = False,
) -> None:
    """Run a plan task by task; after a crash, go on with what is left.

    The commands run in the current directory. Started again, it finds the session that it left behind on
    this machine, makes sure that its process is dead, and goes on; tasks that are done are not done again.
    Where the API is away, the plan is run all the same, and reported when it comes.
    """
    with _sentences():
        program = load(plan)
        chosen = _context(context).settings(machine_id=machine_id, heartbeat_seconds=heartbeat)
        code = _work(chosen, program.project_id, docker_slot, program=program, fresh=fresh)
    raise typer.Exit(code)


@app.command()
def resume(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="The session.", show_default=False)],
    machine_id: MachineId = None,
    docker_slot: Annotated[
        int | None, typer.Option("--docker-slot", min=0, help="The slot we run in.")
    ] = None,
    heartbeat: Annotated[
        float | None,
        typer.Option("--heartbeat", metavar="SECONDS", help="Between two heartbeats; 60 by default."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="The plan file, where the session does not know its plan.")
    ] = None,
) -> None:
    """Go on with a session that was left behind, on this or any other machine.

    What is to be done stands in the session itself; the plan file is not needed. A session that is alive is
    refused.
    """
    with _sentences():
        program = load(plan) if plan else None
        chosen = _context(context).settings(machine_id=machine_id, heartbeat_seconds=heartbeat)
        with _client(chosen) as client:
            project_id = client.get_session(session_id).project_id
        code = _work(chosen, project_id, docker_slot, program=program, session_id=session_id)
    raise typer.Exit(code)


def _work(
    chosen: settings.Settings,
    project_id: str,
    docker_slot: int | None,
    *,
    program: Any,
    session_id: str | None = None,
    fresh: bool = False,
) -> Exit:
    if os.name != "posix":
        _fail(
            "running plans needs a POSIX system (Linux, macOS, WSL); the other commands work here", Exit.USAGE
        )
    from claude_projects.handover import Handover, Worker
    from claude_projects.journal import Journals, LockedError, lock
    from claude_projects.outline import Outline
    from claude_projects.process import Process
    from claude_projects.runner import Pace, Runner
    from claude_projects.view import Expendable, LiveView, PlainView

    machine = chosen.machine_id.value
    directory = settings.state_dir()
    journals = Journals(directory)
    outline = Outline.of_program(program) if program else None
    run_id = str(uuid.uuid4())
    if outline is not None and not fresh:
        left = journals.unfinished(project_id, outline.name, machine)
        if left is not None and not left.has_session and not left.ended:
            run_id = left.run_ids[0]  # begun and broken off while the API was away
    title = outline.name if outline else f"session {session_id}"
    out, err = (
        Console(file=cast("TextIO", Expendable(stream)), highlight=False)
        for stream in (sys.stdout, sys.stderr)
    )
    # Colours may be wanted in a file too (FORCE_COLOR), a picture that moves never is.
    live = sys.stdout.isatty() and not out.is_dumb_terminal
    view = LiveView(out, title) if live else PlainView(out, err)
    worker = Worker(Process.current(), machine, docker_slot)
    try:
        with lock(directory, project_id, machine), _client(chosen, Retry()) as client:
            handover = Handover(worker, outline, run_id=run_id, journals=journals, note=view.note)
            opening = (
                (lambda: handover.resume(session_id)) if session_id else (lambda: handover.run(fresh=fresh))
            )
            pace = Pace(
                heartbeat=chosen.heartbeat_seconds.value, freeze_after=chosen.freeze_after_seconds.value
            )
            runner = Runner(
                client,
                handover,
                opening,
                journals,
                view,
                pace=pace,
                needs_api=session_id is not None,
                fresh=fresh,
            )
            return runner.run()
    except LockedError as error:
        _fail(f"{error.holder} of this machine is at work on project {project_id!r} already", Exit.HELD)
    except NothingLeftError as error:
        _out.print(str(error), markup=False)
        return Exit.OK
    except OSError as error:
        _fail(
            f"{error.filename or directory}: {error.strerror or error}. Locks and logs are kept in "
            f"{directory}; CLAUDE_PROJECTS_STATE_DIR may name another directory",
            Exit.USAGE,
        )


# Sessions


@sessions_app.command("list")
def list_sessions(
    context: typer.Context,
    project: Annotated[
        str | None, typer.Option("--project", metavar="ID", help="Only of this project.")
    ] = None,
    machine: Annotated[
        str | None, typer.Option("--machine", metavar="ID", help="Only on this machine.")
    ] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only with this status.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Those that were archived.")] = False,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List sessions, newest first."""
    with _sentences(), _client(_context(context).settings()) as client:
        call = (
            calls.archived_sessions()
            if archived
            else calls.list_sessions(
                project_id=project, machine_id=machine, status=_one_of(status, SessionStatus)
            )
        )
        _list(client, call, "sessions", limit, as_json=as_json, table=tables.sessions)


@sessions_app.command()
def show(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="The session.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show a session, its health and its tasks."""
    with _sentences(), _client(_context(context).settings()) as client:
        if as_json:
            session = client.send(calls.get_session(session_id).raw())
            health = client.send(calls.session_health(session_id).raw())
            found = _as_sent(client, calls.list_tasks(session_id=session_id), "tasks", 1000)
            _json({"session": session, "health": health, "tasks": found})
            return
        _out.print(tables.session(client.get_session(session_id), client.session_health(session_id)))
        found = sorted(
            client.every(calls.list_tasks(session_id=session_id)), key=lambda task: task.created_at
        )
        if found:
            _out.print()
            _out.print(tables.tasks(found, client.server_time))


@sessions_app.command()
def stalled(context: typer.Context, as_json: Json = False) -> None:
    """List the sessions that have gone silent, longest silent first."""
    with _sentences(), _client(_context(context).settings()) as client:
        if as_json:
            _json(client.send(calls.stalled_sessions().raw()))
            return
        answer = client.stalled_sessions()
        if not answer.stalled_sessions:
            _out.print("No session is stalled.")
            return
        _out.print(tables.stalled(answer))
        _out.print("To go on with one: claude-projects resume SESSION", style="dim")


@sessions_app.command()
def recover(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="The session.", show_default=False)],
    machine_id: MachineId = None,
    docker_slot: Annotated[int | None, typer.Option("--docker-slot", min=0)] = None,
    keep_failed: Annotated[
        bool, typer.Option("--keep-failed", help="Do not try failed tasks again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Create the successor of a failed or stalled session, without working on it; `resume` does both."""
    with _sentences():
        chosen = _context(context).settings(machine_id=machine_id)
        with _client(chosen) as client:
            call = calls.recover(
                session_id,
                new_machine_id=chosen.machine_id.value,
                docker_slot=docker_slot,
                reset_failed_tasks=not keep_failed,
            )
            if as_json:
                _json(client.send(call.raw()))
                return
            recovery = client.send(call)
            made = "has been" if recovery.created else "had already been"
            successor = recovery.session
            _out.print(f"{session_id} {made} taken over by {successor.session_id} on {successor.machine_id}")


@sessions_app.command()
def archive(
    context: typer.Context,
    session_ids: Annotated[list[str], typer.Argument(help="The sessions.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Keep completed or failed sessions for good."""
    with _sentences(), _client(_context(context).settings()) as client:
        for session_id in session_ids:
            answer = client.send(calls.archive_session(session_id).raw())
            if as_json:
                _json(answer)
            else:
                _out.print(f"{session_id} is archived")


# Machines and tasks


@machines_app.command("list")
def list_machines(
    context: typer.Context,
    status: Annotated[str | None, typer.Option("--status", help="Only with this status.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List machines, newest first."""
    with _sentences(), _client(_context(context).settings()) as client:
        call = calls.list_machines(status=_one_of(status, MachineStatus))
        _list(client, call, "machines", limit, as_json=as_json, table=tables.machines)


@tasks_app.command("list")
def list_tasks(
    context: typer.Context,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Only of this session.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", metavar="ID", help="Only of this project.")
    ] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only with this status.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    with _sentences(), _client(_context(context).settings()) as client:
        call = calls.list_tasks(session_id=session, project_id=project, status=_one_of(status, TaskStatus))
        _list(client, call, "tasks", limit, as_json=as_json, table=tables.tasks)


@app.command()
def config(context: typer.Context, as_json: Json = False) -> None:
    """Show the settings and where each comes from."""
    with _sentences():
        chosen = _context(context).settings()
        key = chosen.api_key.value
        shown = {name: getattr(chosen, name) for name in settings.ENVIRONMENT}
        shown["api_key"] = settings.Setting(None if key is None else f"{key[:4]}…", chosen.api_key.source)
        if as_json:
            _json({name: {"value": one.value, "source": one.source} for name, one in shown.items()})
            return
        for name, one in shown.items():
            _out.print(f"{name} = {one.value!r}  ({one.source})", markup=False)
        _out.print(f"configuration file: {settings.config_path()}", markup=False, soft_wrap=True)


# The pieces


def _context(context: typer.Context) -> _Context:
    return cast("_Context", context.obj)


def _client(chosen: settings.Settings, retry: Retry = _IMPATIENT) -> Client:
    # Shorter than the server's own limit: no work waits for half a minute for an API that hangs. What is
    # lost in this way is found out afterwards.
    return Client(chosen.url.value, chosen.api_key.value, retry=retry, timeout=10.0)


def _one_of(given: str | None, statuses: Any) -> Any:
    known = get_args(statuses)
    if given is not None and given not in known:
        _fail(f"--status: {given!r} is none of {', '.join(known)}", Exit.USAGE)
    return given


def _list(
    client: Client, call: Call[Page[T]], key: str, limit: int, *, as_json: bool, table: Callable[..., Any]
) -> None:
    if as_json:
        _json({key: _as_sent(client, call, key, limit)})
        return
    items = list(islice(client.every(call), limit))
    if items:
        _out.print(table(items, client.server_time))
    else:
        _out.print(f"No {key}.")


def _as_sent(client: Client, call: Call[Page[T]], key: str, limit: int) -> list[Any]:
    """The items of a list as the server wrote them, fields that this version does not know included."""
    items: list[Any] = []
    while True:
        query = {**call.request.query, "limit": str(min(100, limit - len(items))), "offset": str(len(items))}
        page = client.send(replace(call, request=replace(call.request, query=query)).raw())
        items += page[key]
        if len(items) >= min(limit, page["total"]) or not page[key]:
            return items


def _json(what: Any) -> None:
    readable = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(what, indent=2, ensure_ascii=not readable) + "\n")
    sys.stdout.flush()  # here, and not when the interpreter ends: nobody hears of an error there


@contextlib.contextmanager
def _sentences() -> Generator[None, None, None]:
    """Turn every error that a user can meet into one sentence and an exit code."""
    try:
        yield
    except (PlanError, settings.ConfigurationError) as error:
        _fail(str(error), Exit.USAGE)
    except (UnreachableError, NotTheApiError) as error:
        _fail(
            f"{error}. Is the address right? (--url, CLAUDE_PROJECTS_URL, {settings.config_path()})",
            Exit.UNREACHABLE,
        )
    except UnauthorizedError as error:
        _fail(f"the API refuses the key: {error} (--api-key, CLAUDE_PROJECTS_API_KEY)", Exit.UNAUTHORIZED)
    except RateLimitedError as error:
        _fail(f"{error}; try again in {error.retry_after or 60:.0f} s", Exit.REFUSED)
    except ServerError as error:
        _fail(f"the API is in trouble: {error} (request {error.request_id})", Exit.UNREACHABLE)
    except ApiError as error:
        _fail(str(error), Exit.REFUSED)
    except HeldError as error:
        _fail(str(error), Exit.HELD)
    except NoPlanError as error:
        _fail(str(error), Exit.USAGE)
    except ClaudeProjectsError as error:
        _fail(str(error), Exit.REFUSED)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


def _fail(sentence: str, code: Exit) -> NoReturn:
    _err.print(f"claude-projects: {sentence}", markup=False, soft_wrap=True)
    raise typer.Exit(code)
