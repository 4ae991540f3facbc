"""The heart of a tracked session: what is told to the API, in which order, and what its answers mean.

``Tracking.work`` is a generator like those of ``exchange``: it does no input or output, and the two clients
drive it in a thread or in a task. Its rules:

- Reports are delivered one at a time in the order in which they were made, each until the API has it. While
  the API is away they wait; the work that they speak of does not.
- A heartbeat goes before any report once it is due: the first thing that a process says after it was
  frozen, or after the API was away, is a question: "is this session still mine?"
- A 409 means no. It ends everything at once: nothing is sent any more, whoever waits is told.
- Being alive is not making progress. Where ``stalled_after`` is set, the heartbeats stop when the owner has
  shown no progress for so long, and the API can see what is the case.
- What the owner's functions raise is logged and goes no further: it must not end the heartbeats.

Only local, monotonic time is used; no timestamp of this machine is ever sent.
"""

import contextlib
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from claude_projects import calls
from claude_projects.errors import (
    ApiError,
    BadRequestError,
    ClaudeProjectsError,
    ConflictError,
    NotFoundError,
    NotTheApiError,
    RateLimitedError,
    ServerError,
    SessionLostError,
    UnauthorizedError,
    UnreachableError,
)
from claude_projects.exchange import ONCE, Call, Pause, Retry, Steps, perform, perhaps_done
from claude_projects.models import Metadata, Session, Task

_PASSING = (UnreachableError, RateLimitedError, ServerError, NotTheApiError)
_BACKOFF = Retry(base=0.5, cap=15.0)
_MACHINE_INTERVAL = 30.0
_GIVE_UP_AFTER = 5  # 500s for one report: it must not hold up all others for ever
_log = logging.getLogger("claude_projects")


def clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system has such a clock."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        if hasattr(time, name):
            return time.clock_gettime(getattr(time, name))
    return time.monotonic()


def snapshot(metadata: Metadata | None) -> Metadata | None:
    """A copy of ``metadata`` as it is now; raises TypeError or ValueError where it is not JSON.

    It is sent later and by another thread, where nobody could be told, and the caller may change his own.
    """
    return None if metadata is None else json.loads(json.dumps(metadata, allow_nan=False))


def _ignore(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Listener:
    """Who wants to know. The functions are called from the tracking thread and should return at once.

    ``lost``: the session is no longer ours. ``away``: the API cannot be reached, the work goes on.
    ``back``: it can again; the number is that of the reports which wait. ``problem``: the API refuses
    something; a sentence.
    """

    lost: Callable[[SessionLostError], object] = _ignore
    away: Callable[[ClaudeProjectsError], object] = _ignore
    back: Callable[[int], object] = _ignore
    problem: Callable[[str], object] = _ignore


@dataclass(eq=False)
class Report:
    """Something that the API is to be told.

    ``call`` is asked only when the report's turn has come, since ids that it needs may not be known before;
    None means that nothing needs to be said any more. ``told`` becomes True when the API has it, and False
    when it will not have it for the time being (it is away) or ever. ``exclusive``: a refusal means that
    another process is at work on the session. ``ends``: the session is over with it.
    """

    what: str
    call: Callable[[], Call[Any] | None]
    answered: Callable[[Any], object] = _ignore
    exclusive: bool = False
    ends: bool = False
    told: Future[bool] = field(default_factory=Future[bool])
    built: Call[Any] | None = None
    perhaps_done: bool = False
    failures: int = 0


class Tracking:
    """One session as its owner sees it. Methods may be called from any thread."""

    def __init__(
        self,
        opening: Callable[[], Steps[Session]],
        *,
        interval: float,
        listener: Listener,
        lost: Callable[[], object],
        pulse: Callable[[], Metadata | None],
        stalled_after: float | None,
    ) -> None:
        self._opening = opening
        self._interval = interval
        self._listener = listener
        self._has_lost = lost
        self._pulse = pulse
        self._stalled_after = stalled_after
        self._lock = threading.Lock()
        self._outbox: deque[Report] = deque()
        self._confirmations: list[Future[bool]] = []
        self._failures = 0
        self._not_before = 0.0
        self._beat_due = 0.0
        self._machine_due = 0.0
        self._progress_at = clock()
        self._deadline: float | None = None
        self._ended = False
        self._is_untracked = False
        self.wake: Callable[[], object] = _ignore
        self.session: Session | None = None
        self.current: Callable[[], str | None] = lambda: None
        self.lost: SessionLostError | None = None
        self.away = False
        self.opened: Future[bool] = Future()
        """True: the session is there. False: the API is away for now. An exception: why it refuses."""

    # What the owner calls

    def add(self, report: Report) -> Report:
        """Queue a report. Raises SessionLostError where the session is lost."""
        self.check()
        self._progress_at = clock()
        with self._lock:
            if self._ended:
                _resolve(report.told, value=False)
                return report
            self._outbox.append(report)
            if self.away or self._is_untracked:
                _resolve(report.told, value=False)
        self.wake()
        return report

    def check(self) -> None:
        """Raise SessionLostError where the session is lost."""
        if self.lost is not None:
            raise self.lost

    def progress(self) -> None:
        """Note that the work moves on."""
        stood_still = self._stands_still()
        self._progress_at = clock()
        if stood_still:
            self.wake()

    def confirm(self) -> "Future[bool]":
        """Ask now whether the session is ours: True, False where the API is away, or SessionLostError."""
        asked: Future[bool] = Future()
        with self._lock:
            if self.lost is not None:
                asked.set_exception(self.lost)
                return asked
            if self._ended or self.session is None:
                asked.set_result(False)
                return asked
            self._confirmations.append(asked)
            self._beat_due = 0.0
            self._not_before = 0.0
        self.wake()
        return asked

    def finish(self, patience: float) -> None:
        """Let ``work`` return once everything is delivered, or after ``patience`` seconds."""
        self._deadline = clock() + patience
        self.wake()

    @property
    def unsent(self) -> int:
        """How many reports the API has not got."""
        return len(self._outbox)

    # What the driver runs

    def work(self) -> Steps[None]:
        """Deliver until finished, lost or gone."""
        try:
            if (yield from self._open()):
                yield from self._serve()
        except SessionLostError as error:
            self._lose(error)
        finally:
            self._end()

    def _open(self) -> Steps[bool]:
        while not self._expired():
            if (wait := self._not_before - clock()) > 0:
                yield Pause(self._within_deadline(wait), wakeable=True)
                continue
            try:
                self.session = yield from self._opening()
            except _PASSING as error:
                if isinstance(error, NotTheApiError) and not self.opened.done():
                    _fail(self.opened, error)
                    return False
                self._is_away(error)
            except UnauthorizedError as error:
                if not self.opened.done():
                    _fail(self.opened, error)
                    return False
                self._goes_on_untracked(error)
            except Exception as error:
                if not self.opened.done():
                    _fail(self.opened, error)
                    return False
                if isinstance(error, SessionLostError) or not isinstance(error, ClaudeProjectsError):
                    raise
                existing = error.existing_session_id if isinstance(error, ApiError) else None
                if isinstance(error, ApiError) and existing is None and error.recovered_by is None:
                    self._goes_on_untracked(error)  # nobody else works on it
                    continue
                raise SessionLostError(None, existing, str(error)) from error
            else:
                self._beat_due = clock() + self._interval
                self._is_back()
                _resolve(self.opened, value=True)
                return True
        return False

    def _serve(self) -> Steps[None]:
        while True:
            now = clock()
            if self._expired() or (self._deadline is not None and not self._outbox):
                return
            if now < self._not_before:
                yield Pause(self._within_deadline(self._not_before - now), wakeable=True)
            elif (now >= self._beat_due or self._confirmations) and self._may_beat():
                if not (yield from self._beat()):
                    return
            elif self._outbox:
                yield from self._deliver(self._outbox[0])
            else:
                idle = self._interval if self._stands_still() else self._beat_due - now
                yield Pause(self._within_deadline(idle), wakeable=True)

    def _beat(self) -> Steps[bool]:
        session_id = self._session_id()
        metadata = self._news()
        call = calls.heartbeat(session_id, current_task_id=self.current(), metadata=metadata)
        # An answer speaks of the moment at which it was asked for: this process may be frozen in between.
        asked, sent = self._take_confirmations(), clock()
        contact = False
        try:
            self.session = yield from perform(call, ONCE)
        except ConflictError as error:
            self._confirmations += asked
            raise _lost(session_id, error) from error
        except NotFoundError:
            self._tell(
                self._listener.problem,
                f"session {session_id} has been deleted: the work goes on, but nobody follows it any more",
            )
            self._answer(asked, contact=False)
            return False
        except UnauthorizedError as error:
            self._goes_on_untracked(error)
        except _PASSING as error:
            self._is_away(error)
        except ApiError as error:
            self._tell(self._listener.problem, f"the API refuses the heartbeat: {error}")
            if metadata is None:
                self._beat_due = sent + self._interval
            else:  # to be known as alive is worth more than what it carries: at once again, without
                self._pulse = lambda: None
        else:
            contact = True
            self._is_back()
            self._beat_due = sent + self._interval
        self._answer(asked, contact=contact)
        if contact and sent >= self._machine_due:
            self._machine_due = sent + max(self._interval, _MACHINE_INTERVAL)
            yield from self._beat_for_machine()
        return True

    def _beat_for_machine(self) -> Steps[None]:
        """A machine whose sessions live is online; of one that is not registered nothing can be said."""
        if self.session is None:
            return
        try:
            yield from perform(calls.machine_heartbeat(self.session.machine_id), ONCE)
        except NotFoundError:
            self._machine_due = math.inf
        except ClaudeProjectsError:
            pass  # the next heartbeat of the session deals with it

    def _deliver(self, report: Report) -> Steps[None]:
        report.built = report.built or report.call()
        if report.built is None:
            self._done(report, told=True)
            return
        try:
            result = yield from perform(report.built, ONCE, lost=report.perhaps_done)
        except UnauthorizedError as error:
            self._goes_on_untracked(error)
        except _PASSING as error:
            report.perhaps_done = report.perhaps_done or perhaps_done(error)
            report.failures += isinstance(error, ServerError) and error.status == 500
            if report.failures >= _GIVE_UP_AFTER:
                self._refused(report, error)
            else:
                self._is_away(error)
        except ConflictError as error:
            raise _lost(self._session_id(), error) from error
        except BadRequestError as error:
            if report.exclusive:
                text = f"another process is at work on the same session ({report.what}: {error})"
                raise SessionLostError(self._session_id(), None, text) from error
            self._refused(report, error)
        except ClaudeProjectsError as error:
            self._refused(report, error)
        else:
            report.answered(result)
            self._is_back()
            self._done(report, told=True)

    # What happens along the way

    def _done(self, report: Report, *, told: bool) -> None:
        with self._lock:
            self._outbox.remove(report)
        _resolve(report.told, value=told)

    def _refused(self, report: Report, error: ClaudeProjectsError) -> None:
        self._tell(self._listener.problem, f"the API refuses a report ({report.what}): {error}")
        self._done(report, told=False)
        # A session that has ended refuses some reports as bad requests: the heartbeat tells which it is.
        self._beat_due = 0.0

    def _is_away(self, error: ClaudeProjectsError) -> None:
        asked = error.retry_after if isinstance(error, ApiError) else None
        delay = _BACKOFF.delay(self._failures, error)
        if asked is None and self._deadline is not None:
            delay = min(delay, 1.0)  # there is little time left: the next attempt should fall into it
        self._failures += 1
        self._not_before = clock() + delay
        if isinstance(error, RateLimitedError):
            return  # it is there, and asks for a little patience
        self._beat_due = 0.0
        with self._lock:
            first, self.away = not self.away, True
            waiting = list(self._outbox)
        for report in waiting:
            _resolve(report.told, value=False)
        self._answer(self._take_confirmations(), contact=False)
        if first:
            self._tell(self._listener.away, error)
        _resolve(self.opened, value=False)

    def _is_back(self) -> None:
        self._failures = 0
        self._is_untracked = False
        with self._lock:
            was_away, self.away = self.away, False
            waiting = len(self._outbox)
        if was_away:
            self._tell(self._listener.back, waiting)

    def _goes_on_untracked(self, error: ClaudeProjectsError) -> None:
        # The key may come back (a rotation gone wrong), a machine's maintenance may end, so nothing is thrown
        # away; but it is said only once.
        if not self._is_untracked:
            what = "the key" if isinstance(error, UnauthorizedError) else "the session"
            self._tell(self._listener.problem, f"the API refuses {what}: {error}. The work goes on untracked")
        self._is_untracked = True
        self._not_before = clock() + min(30.0, self._interval)
        with self._lock:
            waiting = list(self._outbox)
        for report in waiting:
            _resolve(report.told, value=False)
        self._answer(self._take_confirmations(), contact=False)

    def _tell(self, listen: Callable[[Any], object], what: object) -> None:
        try:
            listen(what)
        except Exception:  # noqa: BLE001 - whatever it is, the heartbeats go on
            _log.exception("a listener of the tracked session has failed")

    def _news(self) -> Metadata | None:
        try:
            return snapshot(self._pulse())
        except Exception:  # noqa: BLE001 - as above
            _log.exception("the pulse of the tracked session has failed")
            return None

    def _take_confirmations(self) -> "list[Future[bool]]":
        with self._lock:
            asked, self._confirmations = self._confirmations, []
        return asked

    def _answer(self, asked: "list[Future[bool]]", *, contact: bool) -> None:
        for one in asked:
            _resolve(one, value=contact)

    def _lose(self, error: SessionLostError) -> None:
        with self._lock:
            self.lost = error
            waiting, asked = list(self._outbox), self._confirmations
            self._outbox.clear()
            self._confirmations = []
        self._has_lost()  # before anybody who waits is told of it
        for future in [self.opened, *asked, *(report.told for report in waiting)]:
            _fail(future, error)
        self._tell(self._listener.lost, error)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            waiting = list(self._outbox)
        for report in waiting:
            _resolve(report.told, value=False)
        self._answer(self._take_confirmations(), contact=False)
        _resolve(self.opened, value=False)

    def _session_id(self) -> str:
        if self.session is None:
            raise RuntimeError("the session is not open")
        return self.session.session_id

    def _expired(self) -> bool:
        return self._deadline is not None and clock() >= self._deadline

    def _within_deadline(self, seconds: float) -> float:
        return seconds if self._deadline is None else max(0.0, min(seconds, self._deadline - clock()))

    def _may_beat(self) -> bool:
        if not self._outbox:
            return bool(self._confirmations) or not self._stands_still()
        # Nothing is reported before we have asked whether the session is ours. But we may have ended it
        # ourselves, when the answer to that was lost, and then a heartbeat would be refused.
        return not (self._outbox[0].ends and self._outbox[0].perhaps_done)

    def _stands_still(self) -> bool:
        return self._stalled_after is not None and clock() - self._progress_at > self._stalled_after


class TrackedTask:
    """A task of a tracked session. Its methods queue a report and return a future of its arrival."""

    def __init__(self, tracking: Tracking, name: str) -> None:
        self._tracking = tracking
        self.name = name
        self.task_id: str | None = None
        """The server's id, None until the API has the task."""

    def start(self, metadata: Metadata | None = None) -> "Future[bool]":
        """Claim the task: a task that somebody else has claimed means that the session is lost."""
        return self._report("in_progress", metadata, exclusive=True)

    def complete(self, metadata: Metadata | None = None) -> "Future[bool]":
        """The task is done."""
        return self._report("completed", metadata)

    def fail(self, error_message: str, metadata: Metadata | None = None) -> "Future[bool]":
        """The task has failed; ``error_message`` must not be empty."""
        return self._report("failed", metadata, error_message=error_message)

    def block(self, reason: str) -> "Future[bool]":
        """The task cannot go on for now; a successor of the session gets it as pending."""
        return self._report("blocked", {"blocked_reason": reason})

    def _report(
        self,
        status: Any,
        metadata: Metadata | None,
        *,
        exclusive: bool = False,
        error_message: str | None = None,
    ) -> "Future[bool]":
        metadata = snapshot(metadata)

        def call() -> Call[Task] | None:
            if self.task_id is None:  # its creation was refused, and that was said
                return None
            return calls.update_task(
                self.task_id, status=status, error_message=error_message, metadata=metadata
            )

        what = f"task {self.name!r} is {status.replace('_', ' ')}"
        return self._tracking.add(Report(what, call, exclusive=exclusive)).told


def _lost(session_id: str, error: ConflictError) -> SessionLostError:
    if error.recovered_by:
        text = f"session {session_id} has been taken over: its work goes on as session {error.recovered_by}"
    else:
        text = f"session {session_id} is no longer ours: {error}"
    return SessionLostError(session_id, error.recovered_by, text)


def _resolve(future: "Future[bool]", *, value: bool) -> None:
    with contextlib.suppress(InvalidStateError):  # the other thread was first
        future.set_result(value)


def _fail(future: "Future[bool]", error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
