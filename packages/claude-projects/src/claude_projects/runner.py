"""Carrying out a plan: one task after another, under the API's eyes where it can be reached.

The rule that everything here serves: a task's work is done by one process at a time, and once. So before a
task begins it is claimed, and its end is on the disk before the next one begins. Whoever learns that the
session is no longer his kills the command first and talks afterwards. And whoever finds that he was asleep
asks before he does anything else.
"""

import contextlib
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from claude_projects import calls
from claude_projects.child import Child, Ended, claude_result, environment_of, figures, tail
from claude_projects.client import Client
from claude_projects.errors import ClaudeProjectsError, SessionLostError, UnreachableError
from claude_projects.exchange import Call, Steps
from claude_projects.exits import Exit
from claude_projects.handover import Handover, run_of
from claude_projects.journal import Journal, Journals, log_paths
from claude_projects.models import Metadata, Session, Task
from claude_projects.outline import Item
from claude_projects.text import printable
from claude_projects.tracked import TrackedSession
from claude_projects.tracking import Listener, Report, TrackedTask, clock
from claude_projects.view import View

_TICK = 0.25
_NAP = 5.0
_SOON = 3.0
_ENDED: Metadata = {"process": {"ended": True}}


@dataclass(frozen=True)
class Pace:
    """How patient a run is, in seconds."""

    heartbeat: float = 60.0
    """Between two heartbeats."""
    freeze_after: float = 10.0
    """A command is suspended when its run has been suspended for so long."""
    grace: float = 10.0
    """From asking a command to end to killing it."""
    at_start: float = 60.0
    """Until a run begins without an API that is there and slow; one that is away is not waited for."""
    at_claim: float = 120.0
    """Until a task begins although its claim has not been answered, by an API that is there and slow."""
    at_end: float = 5.0
    """For what is unsent when everything is done."""


class _StoppedError(Exception):
    """A signal asked the run to stop; ``work`` is the task at hand, if any."""

    def __init__(self, handle: TrackedTask | None = None) -> None:
        super().__init__()
        self.handle = handle


class Runner:
    """One ``run`` or ``resume``. ``needs_api``: without it, it is not even known what is to be done."""

    def __init__(
        self,
        client: Client,
        handover: Handover,
        opening: Callable[[], Steps[Session]],
        journals: Journals,
        view: View,
        *,
        pace: Pace,
        needs_api: bool,
        fresh: bool = False,
    ) -> None:
        self._fresh = fresh
        self._handover, self._journals, self._view, self._pace = handover, journals, view, pace
        self._needs_api = needs_api
        self._signals: list[int] = []
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._messages: deque[tuple[str, bool]] = deque()
        self._trouble: ClaudeProjectsError | None = None
        self._progress: Metadata | None = None
        self._joined = False
        self._forgetful = False
        self._journal: Journal | None = None
        self._awake = clock()
        self._session = TrackedSession(
            client,
            opening,
            heartbeat_interval=pace.heartbeat,
            listener=Listener(self._lost, self._away, self._back, lambda text: self._say(text, warning=True)),
            pulse=lambda: self._progress,
            # The loops below show progress several times a second. When they hang, the heartbeats stop.
            stalled_after=max(60.0, 2 * pace.heartbeat),
        )

    def run(self) -> Exit:
        """Carry out what is left of the plan. Raises what the API has against it before anything was done."""
        with self._catching_signals():
            try:
                return self._run()
            except _StoppedError as stopped:
                return self._stop(stopped.handle)
            except SessionLostError as error:
                self._view.note(f"Stopped: {error}", warning=True)
                return Exit.REPLACED
            finally:
                self._session.finish(0.0)
                self._view.end()

    # The plan

    def _run(self) -> Exit:
        tracked = self._open()
        outline = self._handover.outline
        if not tracked:
            self._handover.run_id = self._run_without_api()
        journal = self._journals.open(
            outline.project_id, self._handover.run_id, outline.name, self._handover.worker.machine_id
        )
        self._journal = journal
        self._introduce(journal)
        self._view.begin(outline.items, outline.done | journal.done)
        handles = {item.digest: self._announce(item) for item in outline.left()}
        for digest in journal.done & handles.keys():
            handles[digest].complete({"reported_late": True})
        for item in outline.items:
            # Where the API comes late, it may know of more that is done.
            if item.digest not in outline.done | journal.done and not self._carry_out(
                item, handles[item.digest], journal
            ):
                failure = f"task {item.index + 1} of {len(outline.items)} ({item.name!r}) has failed"
                self._session.fail(failure, _ENDED)
                return self._close(Exit.TASK_FAILED)
        self._session.complete(_ENDED)
        return self._close(Exit.OK)

    def _open(self) -> bool:
        opened = self._session.start()
        tracked = self._wait(opened, _SOON)
        if not opened.done():
            self._view.note("Waiting for the state tracking API")
            tracked = self._wait(opened, self._pace.at_claim if self._needs_api else self._pace.at_start)
        if not tracked and self._needs_api:
            raise self._trouble or UnreachableError("the state tracking API did not answer in time")
        return tracked

    def _run_without_api(self) -> str:
        """The run that goes on while the API is away: the one that was broken off here, or a new one."""
        if self._fresh:
            return self._handover.run_id
        outline = self._handover.outline
        journal = self._journals.unfinished(
            outline.project_id, outline.name, self._handover.worker.machine_id
        )
        return self._handover.run_id if journal is None or journal.ended else journal.run_ids[0]

    def _introduce(self, journal: Journal) -> None:
        self._drain()
        recovered, session = self._handover.recovered, self._session.session
        if recovered is not None and session is not None:
            self._view.note(
                f"Going on with session {recovered.session_id} ({recovered.status}) "
                f"as session {session.session_id}"
            )
        elif session is not None:
            self._view.note(f"Session {session.session_id}")
        self._view.note(f"Logs in {journal.directory}")
        self._follow(journal)

    def _announce(self, item: Item) -> TrackedTask:
        """Queue the creation of the task that stands for ``item``, unless the session has one already."""
        handle, outline = self._session.handle(item.name), self._handover.outline

        def call() -> Call[Task] | None:
            handle.task_id = outline.open_tasks.get(item.digest)
            session = self._session.session
            if handle.task_id is not None or item.digest in outline.done or session is None:
                return None
            return calls.create_task(
                session_id=session.session_id,
                project_id=session.project_id,
                task_name=item.name,
                github_issue_id=item.definition.github_issue_id if item.definition else None,
                metadata=outline.task_metadata(item),
            )

        def answered(task: Task) -> None:
            handle.task_id = task.task_id

        self._session.report(Report(f"new task {item.name!r}", call, answered))
        return handle

    # One task

    def _carry_out(self, item: Item, handle: TrackedTask, journal: Journal) -> bool:
        if item.definition is None:
            raise RuntimeError(f"{item.name} has no definition")
        self._wait(self._session.begin(handle), self._pace.at_claim, handle=handle)
        self._follow(journal)
        out, err = log_paths(journal, item.index, item.name)
        out_start, err_start = _size(out), _size(err)
        session = self._session.session
        self._look_around()
        if self._signals:
            raise _StoppedError(handle)
        began = time.monotonic()
        self._view.task_begins(item, out)
        try:
            child = Child(
                item.definition,
                prompt_file=out.with_suffix(".prompt"),
                out=out,
                err=err,
                environment=environment_of(
                    item.definition, session.session_id if session else None, handle.task_id
                ),
                freeze_after=self._pace.freeze_after,
            )
        except OSError as error:  # no process or no disk space is to be had
            ended, timed_out = Ended(None, f"the command could not be started: {error}"), None
        else:
            try:
                ended, timed_out = self._watch(child, item, handle, (out, err))
            except BaseException:
                child.kill()
                raise
            finally:
                self._progress = None
        seconds = round(time.monotonic() - began, 3)
        claude = claude_result(out, out_start)
        result: Metadata = {"exit_code": ended.status, "seconds": seconds, "log": str(out)}
        if claude is not None:
            result["claude"] = figures(claude)
        if ended.well and not timed_out and not (claude and claude.get("is_error")):
            self._remember(lambda: journal.completed(item.digest))
            handle.complete({"result": result})
            self._view.task_ends(item, "done", well=True, seconds=seconds)
            return True
        outcome = timed_out or (str(ended) if not ended.well else "claude reports an error")
        said = (
            printable(str((claude or {}).get("result") or "")) or tail(err, err_start) or tail(out, out_start)
        )
        handle.fail(f"{outcome}\n{said[-4000:]}".strip(), {"result": result})
        self._view.task_ends(
            item, outcome, well=False, seconds=seconds, tail="\n".join(said.splitlines()[-20:])
        )
        return False

    def _watch(
        self, child: Child, item: Item, handle: TrackedTask, logs: tuple[Path, Path]
    ) -> tuple[Ended, str | None]:
        """Wait for the command; also why it was ended, where its time had run out."""
        began: float | None = None  # the guard may need its time to start the command
        limit = item.definition.timeout_seconds if item.definition else None
        kill_at: float | None = None
        timed_out: str | None = None
        silence = _Silence(logs)
        while True:
            self._sleep(child.answers)
            self._look_around()
            # Those that came before the look at the command: what had ended by then, had ended before them.
            asked = [*self._signals]
            ended = child.ended()
            if ended is not None:
                if self._signals and not (ended.well and kill_at is None):
                    raise _StoppedError(handle)
                return ended, timed_out  # what had ended well before the signal is done
            child.tick()
            now = time.monotonic()
            if began is None and child.pid is not None:
                began = now
            seconds = 0.0 if began is None else now - began
            self._alive(item, seconds, silence.seconds())
            if kill_at is None and asked:
                (child.interrupt if asked[0] == signal.SIGINT else child.terminate)()
                kill_at = now + self._pace.grace
            elif kill_at is None and limit is not None and seconds > limit:
                timed_out = f"timed out after {limit:g} s"
                child.terminate()
                kill_at = now + self._pace.grace
            elif kill_at is not None and (now > kill_at or len(asked) > 1):
                child.kill()

    # How it ends

    def _stop(self, handle: TrackedTask | None) -> Exit:
        """A signal: SIGINT pauses, since a person at the keyboard means to come back; others are a failure.

        SIGTERM and SIGHUP come from a machine that shuts down or a supervisor that ends its services.
        Nobody there is going to come back, so the session must be open to whoever looks for work to
        recover, and that is what failed means.
        """
        name = signal.Signals(self._signals[0]).name
        self._view.note(f"Stopped by {name}", warning=True)
        try:
            if name == "SIGINT":
                if handle is not None:
                    handle.block("interrupted by SIGINT")
                self._session.pause(_ENDED)
                return self._close(Exit.INTERRUPTED)
            if handle is not None:
                handle.fail(f"interrupted by {name}")
            self._session.fail(f"stopped by {name}", _ENDED)
            return self._close(Exit.TERMINATED)
        except SessionLostError as error:
            self._view.note(str(error), warning=True)
            return Exit.REPLACED

    def _close(self, code: Exit) -> Exit:
        signals = len(self._signals)
        self._session.finish(self._pace.at_end)
        deadline = time.monotonic() + self._pace.at_end + self._pace.grace  # an answer may be on its way
        while (
            not self._session.ended(_TICK) and len(self._signals) == signals and time.monotonic() < deadline
        ):
            self._drain()
        self._drain()
        if self._journal is not None:
            self._follow(self._journal)
        self._view.end()  # what there is to do now stands below the picture, not above it
        session = self._session.session
        told = self._session.unsent == 0 and session is not None
        if self._session.lost is not None:
            self._view.note(str(self._session.lost), warning=True)
            return Exit.REPLACED
        if code is Exit.OK:
            if (journal := self._journal) is not None:
                self._remember(lambda: journal.end(told=told))
        elif session is not None:
            self._view.note(
                "To go on with what is left, start it again, or on any machine:\n"
                f"  claude-projects resume {session.session_id}"
            )
        if not told and self._journal is not None:
            self._view.note(
                f"The API does not know of this yet (unsent reports: {self._session.unsent}). "
                "The next run of this plan on this machine will tell it.",
                warning=True,
            )
        return code

    # The loop's small change

    def _wait(
        self,
        told: "Future[bool]",
        patience: float,
        *,
        stoppable: bool = True,
        handle: TrackedTask | None = None,
    ) -> bool:
        """Wait for the tracking thread; False where the API is away or time runs out."""
        deadline = time.monotonic() + patience
        while True:
            if clock() - self._awake <= _NAP:  # a nap is for ``_look_around`` to find
                self._awake = clock()
            try:
                return told.result(_TICK)
            except TimeoutError:
                self._session.progress()
                self._drain()
                if stoppable and self._signals:
                    raise _StoppedError(handle) from None
                if time.monotonic() > deadline:
                    return False

    def _look_around(self) -> None:
        """Make sure that the session is ours; ask, where this process or the machine was suspended."""
        if clock() - self._awake > _NAP:
            self._wait(self._session.ask(), self._pace.at_start, stoppable=False)
        self._session.check()
        self._awake = clock()

    def _sleep(self, news: int | None) -> None:
        watched = [self._woken] if news is None else [self._woken, news]
        if self._woken in select.select(watched, [], [], 0.0 if news is None else _TICK)[0]:
            os.read(self._woken, 4096)

    def _alive(self, item: Item, seconds: float, silent_for: float) -> None:
        self._session.progress()
        self._progress = {
            "progress": {
                "task": item.name,
                "index": item.index,
                "of": len(self._handover.outline.items),
                "seconds": round(seconds),
                "silent_seconds": round(silent_for),
            }
        }
        self._drain()
        self._view.moves(silent_for)

    def _follow(self, journal: Journal) -> None:
        """Note, once it is so, that the API knows the run; show how the run stands with the API."""
        session = self._session.session
        if session is None:
            self._view.tracked("the API is away: what happens is reported when it comes")
        elif not self._joined:
            run_id = run_of(session) or self._handover.run_id
            self._remember(lambda: journal.joined(session.session_id, run_id))
            self._joined = True
            self._view.tracked(f"session {session.session_id}")

    def _remember(self, write: Callable[[], None]) -> None:
        """Write to the journal. Where that cannot be (a full disk), the work goes on: the API knows too."""
        try:
            write()
        except OSError as error:
            if not self._forgetful:
                self._view.note(
                    f"The journal cannot be written ({error}): what is done while the API is away may be "
                    "done again after a crash",
                    warning=True,
                )
            self._forgetful = True

    def _drain(self) -> None:
        while self._messages:
            text, warning = self._messages.popleft()
            self._view.note(text, warning=warning)

    def _say(self, text: str, *, warning: bool) -> None:
        self._messages.append((text, warning))

    def _lost(self, _: SessionLostError) -> None:
        self._wake_up()

    def _away(self, error: ClaudeProjectsError) -> None:
        self._trouble = error
        self._say(f"{error}; the work goes on", warning=True)

    def _back(self, waiting: int) -> None:
        self._say(f"The API is back (reports on their way: {waiting})", warning=False)

    def _wake_up(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._wake, b"!")

    @contextlib.contextmanager
    def _catching_signals(self) -> Generator[None, None, None]:
        def note(number: int, _: object) -> None:
            self._signals.append(number)
            self._wake_up()

        numbers = [signal.SIGINT, signal.SIGTERM]
        if (
            signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        ):  # as `nohup` sets it, so that the work goes on
            numbers.append(signal.SIGHUP)
        before = [signal.signal(number, note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            os.close(self._woken)


class _Silence:
    """For how long a command has written nothing to its logs."""

    def __init__(self, logs: tuple[Path, Path]) -> None:
        self._logs = logs
        self._size = -1
        self._since = time.monotonic()

    def seconds(self) -> float:
        """Since the logs last grew."""
        size = sum(_size(log) for log in self._logs)
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
