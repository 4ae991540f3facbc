"""A tracked session as a context manager, for threads and for asyncio."""

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, Unpack, overload

from claude_projects import calls
from claude_projects.client import AsyncClient, Client
from claude_projects.errors import ClaudeProjectsError, SessionLostError
from claude_projects.exchange import Call, Pause, Retry, Steps, perform, perhaps_done
from claude_projects.models import Metadata, Session, SessionStatus, Task
from claude_projects.tracking import Listener, Report, TrackedTask, Tracking, snapshot

DEFAULT_INTERVAL = 60.0
_OPENING = Retry(attempts=3)  # "if session creation fails: retry up to 3 times" (PRD 4.3)
_PATIENCE_AT_START = 15.0
_PATIENCE_AT_END = 10.0


def new_session(
    *, project_id: str, machine_id: str, docker_slot: int | None = None, metadata: Metadata | None = None
) -> Callable[[], Steps[Session]]:
    """The usual way to open: a session is created. Its attempts share one token."""
    call = calls.create_session(
        project_id=project_id, machine_id=machine_id, docker_slot=docker_slot, metadata=metadata
    )
    lost = False

    def opening() -> Steps[Session]:
        nonlocal lost
        try:
            return (yield from perform(call, _OPENING, lost=lost))
        except ClaudeProjectsError as error:
            lost = lost or perhaps_done(error)
            raise

    return opening


_FACTS = {"project_id", "machine_id", "docker_slot", "metadata"}


class TrackOptions(TypedDict):
    """What ``track`` takes: the new session's fields, and how it is kept."""

    project_id: str
    machine_id: str
    docker_slot: NotRequired[int | None]
    metadata: NotRequired[Metadata | None]
    heartbeat_interval: NotRequired[float]
    listener: NotRequired[Listener | None]
    pulse: NotRequired[Callable[[], Metadata | None] | None]
    stalled_after: NotRequired[float | None]


class _Tracked:
    """What both kinds share: everything that does not wait."""

    def __init__(
        self,
        opening: Callable[[], Steps[Session]],
        *,
        heartbeat_interval: float = DEFAULT_INTERVAL,
        listener: Listener | None = None,
        pulse: Callable[[], Metadata | None] | None = None,
        stalled_after: float | None = None,
    ) -> None:
        self._tracking = Tracking(
            opening,
            interval=heartbeat_interval,
            listener=listener or Listener(),
            lost=self._has_lost,
            pulse=pulse or (lambda: None),
            stalled_after=stalled_after,
        )
        self._claimant = str(uuid.uuid4())
        self._ending: str | None = None

    def _has_lost(self) -> None:
        raise NotImplementedError

    @property
    def session(self) -> Session | None:
        """The session as the API last described it, None while the API has not been reached."""
        return self._tracking.session

    @property
    def lost(self) -> SessionLostError | None:
        """Why the session is no longer ours, None while it is."""
        return self._tracking.lost

    @property
    def away(self) -> bool:
        """Whether the API could not be reached when it was last needed."""
        return self._tracking.away

    @property
    def unsent(self) -> int:
        """How many reports wait for the API."""
        return self._tracking.unsent

    def check(self) -> None:
        """Raise SessionLostError where the session is lost, as every method that reports does too."""
        self._tracking.check()

    def progress(self) -> None:
        """Note that the work moves on; needed only with ``stalled_after``."""
        self._tracking.progress()

    def handle(self, name: str) -> TrackedTask:
        """A task that the caller announces by himself, see ``report``."""
        return TrackedTask(self._tracking, name)

    def add_task(
        self, name: str, *, github_issue_id: str | None = None, metadata: Metadata | None = None
    ) -> TrackedTask:
        """Create a pending task; it gets its ``task_id`` when the API has it."""
        task = self.handle(name)
        metadata = snapshot(metadata)

        def call() -> Call[Task]:
            session = self._session()
            return calls.create_task(
                session_id=session.session_id,
                project_id=session.project_id,
                task_name=name,
                github_issue_id=github_issue_id,
                metadata=metadata,
            )

        def answered(made: Task) -> None:
            task.task_id = made.task_id

        self._tracking.add(Report(f"new task {name!r}", call, answered))
        return task

    def report(self, report: Report) -> "Future[bool]":
        """Queue a report of the caller's own making."""
        return self._tracking.add(report).told

    def ask(self) -> "Future[bool]":
        """Ask the API now whether the session is ours; ``confirm`` without waiting."""
        return self._tracking.confirm()

    def begin(self, task: TrackedTask) -> "Future[bool]":
        """Claim a task; ``claim`` without waiting."""
        self._tracking.current = lambda: task.task_id
        return task.start({"claimed_by": self._claimant})

    def update(self, metadata: Metadata) -> "Future[bool]":
        """Merge ``metadata`` into the session's."""
        return self._patch("metadata", metadata=metadata)

    def pause(self, metadata: Metadata | None = None) -> None:
        """Leave the session paused when it is left; whoever goes on with it recovers it."""
        self._patch("paused", status="paused", metadata=metadata)
        self._ending = "paused"

    def complete(self, metadata: Metadata | None = None) -> None:
        """Mark the session as completed. Leaving the context without an error does this too."""
        self._patch("completed", ends=True, status="completed", metadata=metadata)
        self._ending = "completed"

    def fail(self, error_message: str, metadata: Metadata | None = None) -> None:
        """Mark the session as failed. Leaving the context with an error does this too."""
        metadata = snapshot(metadata)
        self._ending = "failed"

        def call() -> Call[Session]:
            return calls.mark_failed(
                self._session().session_id, error_message=error_message, metadata=metadata
            )

        self._tracking.add(Report("the session has failed", call, ends=True))

    def _patch(
        self,
        what: str,
        *,
        ends: bool = False,
        status: SessionStatus | None = None,
        metadata: Metadata | None = None,
    ) -> "Future[bool]":
        metadata = snapshot(metadata)

        def call() -> Call[Session]:
            return calls.update_session(self._session().session_id, status=status, metadata=metadata)

        return self._tracking.add(Report(f"session: {what}", call, ends=ends)).told

    def _session(self) -> Session:
        if self._tracking.session is None:
            raise RuntimeError("the session is not open")
        return self._tracking.session

    def _settle_task(self, task: TrackedTask, error: BaseException | None) -> None:
        """Report how a task ended: by itself, by an error, or because somebody wanted it to end."""
        self._tracking.current = lambda: None
        if self.lost is not None or isinstance(error, SessionLostError):
            return
        if _well(error):
            task.complete()
        elif _wanted(error):
            task.block(f"interrupted by {type(error).__name__}")
        else:
            task.fail(_words(error))

    def _settle(self, error: BaseException | None) -> None:
        if self._ending is not None or self.lost is not None or isinstance(error, SessionLostError):
            return
        if _well(error):
            self.complete()
        elif _wanted(error):
            self.pause()
        else:
            self.fail(_words(error))


class TrackedSession(_Tracked):
    """A session that a background thread keeps alive.

    ``opening`` makes the session (see ``new_session``; ``track`` puts both together),
    ``heartbeat_interval`` is in seconds, ``pulse`` may add metadata to each heartbeat, and with
    ``stalled_after`` the heartbeats stop when ``progress`` has not been called for so many seconds.
    Entering raises what the API has against the session; where the API is away, it returns and the session
    is created when it comes. Leaving marks the session completed, failed, or (KeyboardInterrupt) paused,
    and waits a few seconds for what is still unsent.
    """

    def __init__(self, client: Client, opening: Callable[[], Steps[Session]], **options: Any) -> None:
        self.lost_event = threading.Event()
        """Set as soon as the session is lost."""
        super().__init__(opening, **options)
        self._news = threading.Event()
        self._tracking.wake = self._news.set
        self._thread = threading.Thread(
            target=lambda: client.drive(self._tracking.work(), self._pause),
            name="claude-projects-tracking",
            daemon=True,
        )

    def __enter__(self) -> Self:
        try:
            self.settled(self.start(), _PATIENCE_AT_START)
        except BaseException:
            self._tracking.finish(0.0)  # nobody will leave what was never entered
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with contextlib.suppress(SessionLostError):
            self._settle(error)
        self.close()
        if error is None:
            self.check()

    def start(self) -> "Future[bool]":
        """Start the thread; the future becomes True with the session, False where the API is away."""
        self._thread.start()
        return self._tracking.opened

    def finish(self, patience: float) -> None:
        """Ask the thread to end once everything is delivered, or after ``patience`` seconds."""
        self._tracking.finish(patience)

    def ended(self, patience: float) -> bool:
        """Whether the thread has ended; waits for it up to ``patience`` seconds."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def close(self, patience: float = _PATIENCE_AT_END) -> int:
        """Stop once everything is delivered, or after ``patience`` seconds; the number of reports left."""
        self.finish(patience)
        self.ended(patience + 1.0)
        return self.unsent

    def confirm(self, patience: float = 10.0) -> bool:
        """Whether the API confirms now that the session is ours; SessionLostError where it is not."""
        return self.settled(self.ask(), patience)

    def settled(self, told: "Future[bool]", patience: float) -> bool:
        """Wait for a report; False where the API is away or too slow."""
        try:
            return told.result(patience)
        except TimeoutError:
            return False

    def claim(self, task: TrackedTask, patience: float = 10.0) -> bool:
        """Claim a task before working on it; raises SessionLostError where another has it."""
        return self.settled(self.begin(task), patience)

    @contextlib.contextmanager
    def task(
        self, name: str, *, github_issue_id: str | None = None, metadata: Metadata | None = None
    ) -> Generator[TrackedTask, None, None]:
        """Create a task, claim it, and report how the block ends: completed, or failed with the exception."""
        task = self.add_task(name, github_issue_id=github_issue_id, metadata=metadata)
        self.claim(task)
        try:
            yield task
        except BaseException as error:
            self._settle_task(task, error)
            raise
        self.check()
        self._settle_task(task, None)

    def _has_lost(self) -> None:
        self.lost_event.set()

    def _pause(self, pause: Pause) -> None:
        if not pause.wakeable:
            time.sleep(pause.seconds)
        elif self._news.wait(pause.seconds):
            self._news.clear()


class AsyncTrackedSession(_Tracked):
    """A session that an asyncio task keeps alive; otherwise as TrackedSession."""

    def __init__(self, client: AsyncClient, opening: Callable[[], Steps[Session]], **options: Any) -> None:
        self.lost_event = asyncio.Event()
        """Set as soon as the session is lost."""
        super().__init__(opening, **options)
        self._client = client
        self._news = asyncio.Event()
        self._tracking.wake = self._news.set
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._work = asyncio.create_task(self._client.drive(self._tracking.work(), self._pause))
        try:
            await self.settled(self._tracking.opened, _PATIENCE_AT_START)
        except BaseException:
            self._work.cancel()  # nobody will leave what was never entered
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with contextlib.suppress(SessionLostError):
            self._settle(error)
        self._tracking.finish(_PATIENCE_AT_END)
        if self._work is not None:
            try:
                await asyncio.wait([self._work], timeout=_PATIENCE_AT_END + 1.0)
            finally:
                self._work.cancel()
        if error is None:
            self.check()

    async def confirm(self, patience: float = 10.0) -> bool:
        """Whether the API confirms now that the session is ours; SessionLostError where it is not."""
        return await self.settled(self.ask(), patience)

    async def settled(self, told: "Future[bool]", patience: float) -> bool:
        """Wait for a report; False where the API is away or too slow."""
        waited = asyncio.wrap_future(told)
        waited.add_done_callback(_heard)  # also where nobody waits for it any more
        done, _ = await asyncio.wait([waited], timeout=patience)
        return waited.result() if done else False

    async def claim(self, task: TrackedTask, patience: float = 10.0) -> bool:
        """Claim a task before working on it; raises SessionLostError where another has it."""
        return await self.settled(self.begin(task), patience)

    @contextlib.asynccontextmanager
    async def task(
        self, name: str, *, github_issue_id: str | None = None, metadata: Metadata | None = None
    ) -> AsyncGenerator[TrackedTask, None]:
        """Create a task, claim it, and report how the block ends: completed, or failed with the exception."""
        task = self.add_task(name, github_issue_id=github_issue_id, metadata=metadata)
        await self.claim(task)
        try:
            yield task
        except BaseException as error:
            self._settle_task(task, error)
            raise
        self.check()
        self._settle_task(task, None)

    def _has_lost(self) -> None:
        self.lost_event.set()

    async def _pause(self, pause: Pause) -> None:
        if not pause.wakeable:
            await asyncio.sleep(pause.seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), pause.seconds)
            self._news.clear()


@overload
def track(client: Client, **options: Unpack[TrackOptions]) -> TrackedSession: ...
@overload
def track(client: AsyncClient, **options: Unpack[TrackOptions]) -> AsyncTrackedSession: ...
def track(
    client: Client | AsyncClient, **options: Unpack[TrackOptions]
) -> TrackedSession | AsyncTrackedSession:
    """Track a new session while the context lasts; see TrackedSession and AsyncTrackedSession."""
    given: dict[str, Any] = dict(options)
    facts = {name: given.pop(name) for name in list(given) if name in _FACTS}
    opening = new_session(**facts)
    if isinstance(client, Client):
        return TrackedSession(client, opening, **given)
    return AsyncTrackedSession(client, opening, **given)


def _heard(future: "asyncio.Future[bool]") -> None:
    if not future.cancelled():
        future.exception()


def _well(error: BaseException | None) -> bool:
    """No error, or a program that ends with exit code 0."""
    return error is None or (isinstance(error, SystemExit) and not error.code)


def _wanted(error: BaseException | None) -> bool:
    return isinstance(error, KeyboardInterrupt | asyncio.CancelledError | GeneratorExit)


def _words(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
