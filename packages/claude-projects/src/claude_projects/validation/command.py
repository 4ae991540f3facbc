"""The command line of ``claude-projects validate``, its progress, and what Ctrl-C does to it."""

import _thread
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from claude_projects import settings
from claude_projects.exits import Exit
from claude_projects.validation.probe import HaltedError, Probe, UnansweredError
from claude_projects.validation.report import FAILED, HELD, Report, Result
from claude_projects.validation.run import PROJECT, Run, Times, scenario
from claude_projects.validation.scenarios import SCENARIOS, latencies
from claude_projects.validation.watch import Watch, span, watch

# The same code as the PRD's timings, in less than a minute where the rate limit allows it.
QUICK = Times(
    heartbeats=3, interval=1.0, stall_threshold=10.0, stall_timeout=150.0, load_seconds=5.0, load_interval=1.0
)
NOT_HELD = 1

_err = Console(stderr=True, highlight=False)


@dataclass
class _Narrator:
    """Tells on standard error what goes on: each result, and on a terminal what it is doing now."""

    status: Any = None
    _now: str = field(default="", init=False)

    @contextmanager
    def doing(self, what: str) -> Generator[None]:
        self._now = what
        if not _err.is_terminal:
            yield
            return
        with _err.status(what) as status:
            self.status = status
            try:
                yield
            finally:
                self.status = None

    def note(self, text: str) -> None:
        if self.status is not None:
            self.status.update(f"{self._now}: {text}")

    def say(self, text: str) -> None:
        with suppress(OSError):  # the terminal may be gone (SIGHUP); the clean-up must not end because of it
            _err.print(text, markup=False, soft_wrap=True)


@dataclass
class _BreakingOff:
    """What a signal does while there may be something to clean up.

    The first one ends the scenarios: nothing more is sent, and what is under way is waited for, so that
    nothing is created behind the clean-up's back. It does not end the clean-up; only a second one does that.
    """

    run: Run
    asked: bool = False
    halting: bool = False
    cleaning: bool = False

    def __call__(self, _signal: int, _frame: object) -> None:
        # It runs between any two steps of the main thread, so it must take no lock that this one may hold,
        # and raise nothing: hence the file descriptor, the thread, and the exit.
        if self.asked:
            self._say(f"Not all was deleted; try: {_clean_up_command(self.run)}")
            os._exit(Exit.INTERRUPTED)
        self.asked = True
        if not self.cleaning:
            self.halting = True
            _thread.start_new_thread(self.run.probe.halt.set, ())
        what = "Cleaning up" if self.cleaning else "Broken off; cleaning up"
        self._say(f"{what}. A second Ctrl-C leaves the rest behind.")

    def _say(self, text: str) -> None:
        show_cursor = "\x1b[?25h" if _err.is_terminal else ""
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{show_cursor}\n{text}\n".encode())

    def begin_to_clean(self) -> None:
        """From here on a first signal is one during the clean-up, which goes on."""
        self.cleaning = True
        if self.halting:
            self.run.probe.halt.wait()
        self.run.probe.halt.clear()


def command(
    context: typer.Context,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="The deployment's address.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", metavar="KEY", help="A key for tests.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short times instead of the full ones; every other flag wins.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--scenario", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    heartbeats: Annotated[int | None, typer.Option(min=1, help="Heartbeats of the lifecycle.")] = None,
    interval: Annotated[float | None, typer.Option(min=0.01, help="Seconds between two of them.")] = None,
    stall_threshold: Annotated[
        float | None,
        typer.Option(min=10, help="Silence in seconds that counts as stalled; the server's by default."),
    ] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds within which a silent session must be found.")
    ] = None,
    load_sessions: Annotated[
        int | None, typer.Option(min=1, max=50, help="Sessions at the same time.")
    ] = None,
    load_seconds: Annotated[float | None, typer.Option(min=0, help="How long the load lasts.")] = None,
    load_interval: Annotated[
        float | None, typer.Option(min=0.01, help="Seconds between two heartbeats of a session under load.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Measurements of each kind.")] = None,
    retention_days: Annotated[int | None, typer.Option(min=1, help="The server's RETENTION_DAYS.")] = None,
    network_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            envvar="CLAUDE_PROJECTS_NETWORK_MS",
            help="Added to each limit of a latency, for a network that is slow by itself.",
        ),
    ] = None,
    delete_ended: Annotated[
        bool,
        typer.Option(
            "--delete-ended", help="Delete ALL ended sessions of the deployment. Not in production."
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report here.")
    ] = None,
    watch_for: Annotated[
        str | None, typer.Option("--watch", metavar="24h", help="Watch the uptime for so long instead.")
    ] = None,
    watch_interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 30.0,
    watch_file: Annotated[
        Path | None, typer.Option(help="Where the watch is kept; run again, it goes on from there.")
    ] = None,
    clean_up: Annotated[
        str | None,
        typer.Option("--clean-up", metavar="PROJECT", help="Only delete what a killed validation has left."),
    ] = None,
) -> None:
    """Check a deployment from outside: seven scenarios, a small load, latencies; then clean up.

    It works in a project of its own and deletes it afterwards, also after Ctrl-C. The exit code is 0 only if
    everything held; 1 if something did not; 3 if the API cannot be reached; 4 if it refuses the key.
    """
    try:
        chosen = context.obj.settings(**{k: v for k, v in {"url": url, "api_key": api_key}.items() if v})
    except settings.ConfigurationError as error:
        _fail(str(error), Exit.USAGE)
    unknown = sorted(set(only or ()) - SCENARIOS.keys())
    if unknown:
        _fail(f"--scenario: no {', '.join(unknown)}; there are {', '.join(SCENARIOS)}", Exit.USAGE)
    if clean_up is not None and not PROJECT.fullmatch(clean_up):
        _fail(f"--clean-up: {clean_up!r} is no project of a validation", Exit.USAGE)
    for path in (json_file, markdown_file):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            _fail(f"{path} cannot be written: no such directory, or it is one", Exit.USAGE)
    given: dict[str, Any] = {
        "heartbeats": heartbeats,
        "interval": interval,
        "stall_threshold": stall_threshold,
        "stall_timeout": stall_timeout,
        "load_sessions": load_sessions,
        "load_seconds": load_seconds,
        "load_interval": load_interval,
        "samples": samples,
        "retention_days": retention_days,
        "network_ms": network_ms,
        "delete_ended": delete_ended or None,
    }
    base: dict[str, Any] = asdict(QUICK if quick else Times())
    times = Times(**(base | {name: value for name, value in given.items() if value is not None}))
    narrator = _Narrator()
    probe = Probe(chosen.url.value, chosen.api_key.value, narrator.note)
    _on_signals(_interrupt)
    try:
        if watch_for is not None:
            raise typer.Exit(_watch(probe, watch_for, watch_interval, watch_file, narrator))
        if clean_up is not None:
            raise typer.Exit(_clean_up_only(Run(probe, times, clean_up)))
        report = Report(probe.url, "", _now(), version("claude-projects"), times=asdict(times))
        _greet(probe, report)
        run = Run(probe, times, note=narrator.note)
        report.project_id = run.project_id
        report.left_out = [name for name in SCENARIOS if only and name not in only]
        narrator.say(f"Validating {probe.url} in the project {run.project_id}")
        _play(run, report, narrator)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    finally:
        probe.close()
    for path, text in ((json_file, report.as_json()), (markdown_file, report.as_markdown())):
        if path is not None:
            path.write_text(text, encoding="utf-8")
    sys.stdout.write(report.as_text())
    if report.interrupted:
        raise typer.Exit(Exit.INTERRUPTED)
    raise typer.Exit(Exit.OK if report.held else NOT_HELD)


def _play(run: Run, report: Report, narrator: _Narrator) -> None:
    breaking = _BreakingOff(run)
    _on_signals(breaking)
    names = [name for name in SCENARIOS if name not in report.left_out]
    try:
        for number, name in enumerate(names, 1):
            one = SCENARIOS[name]
            result = Result(name, one.title, one.prd)
            report.results.append(result)
            with narrator.doing(f"{number} of {len(names)}: {one.title}"), scenario(run, result):
                one.play(run)
            narrator.say(f"  {HELD if result.held else FAILED:<7} {name} ({result.seconds:.1f} s)")
    except HaltedError:
        pass
    finally:
        breaking.begin_to_clean()
        report.interrupted = breaking.halting
        report.results.append(_cleaned(run, narrator))
        report.latencies = latencies(run)
        probe = run.probe
        report.requests, report.throttled, report.waited_seconds = (
            probe.requests,
            probe.throttled,
            probe.waited,
        )
        report.ended_at = _now()


def _cleaned(run: Run, narrator: _Narrator) -> Result:
    result = Result("clean-up", "Nothing of the validation is left", "4.4.f")
    with narrator.doing("Cleaning up"), scenario(run, result):
        for kind, left in run.clean_up().items():
            run.tell(left == 0, f"no {kind} of the validation is left", left)
    if not result.held:
        narrator.say(f"Not all was deleted; try: {_clean_up_command(run)}")
    return result


def _clean_up_command(run: Run) -> str:
    return f"claude-projects validate --url {run.probe.url} --clean-up {run.project_id}"


def _clean_up_only(run: Run) -> int:
    try:
        left = run.clean_up()
    except UnansweredError as error:
        _fail(str(error), Exit.UNREACHABLE)
    counts = ", ".join(f"{count} {kind}s" for kind, count in left.items())
    sys.stdout.write(f"{run.project_id}: {counts} are left\n")
    return NOT_HELD if any(left.values()) else Exit.OK


def _greet(probe: Probe, report: Report) -> None:
    """Find out whether it makes sense to begin: is it the API, and does it know the key?"""
    try:
        alive = probe.send("GET", "/health", key=None)
        detailed = probe.send("GET", "/health/detailed")
    except UnansweredError as error:
        _fail(f"{error}. Try: claude-projects doctor", Exit.UNREACHABLE)
    if alive.status != 200 or alive.field("status") != "ok":
        _fail(f"{probe.url} is not the state tracking API, or it is not well: {alive.said}", Exit.UNREACHABLE)
    if detailed.status == 401:
        _fail(
            f"the API refuses the key: {detailed.said} (--api-key, CLAUDE_PROJECTS_API_KEY)",
            Exit.UNAUTHORIZED,
        )
    report.server_version = detailed.field("version")


def _watch(probe: Probe, text: str, interval: float, path: Path | None, narrator: _Narrator) -> int:
    try:
        seconds = span(text)
        where = path or Path("claude-projects-watch.jsonl")
        seen = Watch.of(where, probe.url, interval)
    except (ValueError, OSError) as error:
        _fail(f"--watch: {error}", Exit.USAGE)
    if seen.at:
        narrator.say(f"Going on with {where}: {seen.watched / 3600:.2f} hours are watched already.")
    code: int = Exit.OK
    try:
        with narrator.doing(f"Watching {probe.url}"):
            watch(seen, probe, seconds, narrator.note)
    except KeyboardInterrupt:
        narrator.say(f"Broken off. The same command goes on from {where}.")
        code = Exit.INTERRUPTED
    sys.stdout.write(seen.as_text())
    return code or (Exit.OK if seen.held else NOT_HELD)


def _on_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    # SIGINT also where a shell has started us in the background, which ignores it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def _fail(sentence: str, code: int) -> NoReturn:
    _err.print(f"claude-projects: {sentence}", markup=False, soft_wrap=True)
    raise typer.Exit(code)
