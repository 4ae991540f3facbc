"""How a run comes by its session: it creates one, or takes over one that was left behind.

The openings here are generators for ``tracking``: they can be broken off by an API that goes away at any
point and begun again later, in this process or another, and never end in two processes that do the same
work:

- A session whose process can be seen to live is left alone; one whose process cannot be seen is left alone
  until the API calls it stalled.
- Recovery gives a session one successor, whoever asks and how often. Only who created it goes on with it.
- Where an answer was lost, so that nobody knows who created it, the first task decides: it can be claimed
  once.
"""

import platform
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from claude_projects import calls
from claude_projects.errors import (
    BadRequestError,
    ClaudeProjectsError,
    ConflictError,
    HeldError,
    NoPlanError,
    NotFoundError,
    NothingLeftError,
)
from claude_projects.exchange import Call, Retry, Steps, perform, perhaps_done
from claude_projects.journal import Journals
from claude_projects.models import Metadata, Page, Session, SessionHealth, Task
from claude_projects.outline import (
    Item,
    Outline,
    assign,
    digests_of,
    done_by_plan,
    done_by_tasks,
    outline_of,
    plan_is_for,
    plan_of,
)
from claude_projects.process import Presence, Process, presence_behind

T = TypeVar("T")

_RETRY = Retry(attempts=3)
_ROUNDS = 6  # each one means that somebody else changed something while we looked


@dataclass(frozen=True)
class Worker:
    """Who is about to work, and where."""

    process: Process
    machine_id: str
    docker_slot: int | None = None


def refusal(session: Session, health: SessionHealth, presence: Presence, *, explicit: bool) -> str | None:
    """Why ``session`` must not be taken over now; None where it may be.

    ``explicit`` is a person's or a program's request for this very session (resume), as against a run that
    looks for what it left behind. A suspended process that the API calls stalled yields to the former only:
    it will learn of it from the API when it wakes, and stop.
    """
    if session.status == "failed" and presence is not Presence.ALIVE:
        return None
    recent = health.is_healthy or (
        session.status in {"active", "paused"} and health.time_since_heartbeat_ms <= health.stall_threshold_ms
    )
    ago = f"last heartbeat {health.time_since_heartbeat_ms / 1000:.0f} s ago"
    who = Process.of(session)
    if presence is Presence.ALIVE and (recent or not explicit):
        hint = (
            "" if recent else f"; to take it over all the same: claude-projects resume {session.session_id}"
        )
        return f"session {session.session_id} is being worked on by {who} ({session.status}, {ago}){hint}"
    if presence is Presence.UNSEEN and recent:
        wait = max(0.0, health.stall_threshold_ms - health.time_since_heartbeat_ms) / 1000
        return (
            f"session {session.session_id} on machine {session.machine_id!r} is {session.status} ({ago}). "
            f"Its process cannot be seen from here and may be alive; if it is not, try again in {wait:.0f} s"
        )
    return None


class Handover:
    """The way to a session for ``worker``. ``outline`` is complete once an opening has returned.

    ``run_id`` names the run through all its sessions: a new one's, until a session is taken over. The
    ``journals`` know what was done on this machine, whatever the API knows. ``note`` gets sentences for
    people.
    """

    def __init__(
        self,
        worker: Worker,
        outline: Outline | None,
        *,
        run_id: str,
        journals: Journals,
        note: Callable[[str], object],
    ) -> None:
        self.worker = worker
        self._outline = outline
        self.run_id = run_id
        self._journals = journals
        self.recovered: Session | None = None
        """The session that was taken over; None: a new one."""
        self._note = note
        self._attempted: str | None = None
        self._creation: Call[Session] | None = None
        self._creation_lost = False

    @property
    def outline(self) -> Outline:
        """The plan and its state."""
        if self._outline is None:
            raise RuntimeError("no plan is known yet")
        return self._outline

    # The openings

    def run(self, *, fresh: bool = False) -> Steps[Session]:
        """Go on with what the last run of this plan left behind on this machine, else begin anew."""
        yield from self._register()
        for _ in range(_ROUNDS):
            earlier = yield from self._earlier()
            if earlier is not None and Process.of(earlier) == self.worker.process:
                # Ours: the answer to its creation was lost. Where the API was away for longer than that, it
                # has been taken for silent.
                if earlier.status == "active":
                    return earlier
                if earlier.status == "stalled":
                    try:
                        return (yield from perform(calls.heartbeat(earlier.session_id), _RETRY))
                    except ConflictError:
                        continue  # taken over since
            if earlier is not None and earlier.machine_id != self.worker.machine_id:
                if not fresh:
                    raise HeldError(
                        f"this plan goes on as session {earlier.session_id} on machine "
                        f"{earlier.machine_id!r} ({earlier.status}); to bring it here: "
                        f"claude-projects resume {earlier.session_id}; to begin anew: --fresh"
                    )
                earlier = None  # it stays with the machine that has it
            try:
                if earlier is not None and not fresh:
                    session = yield from self._take_over(earlier, explicit=False)
                    if self.outline.left() or not self._had_ended():
                        return session
                    yield from self._close_the_books(session)
                    continue
                if earlier is not None:
                    yield from self._give_up(earlier)
                return (yield from self._create())
            except _OvertakenError:
                continue
        raise HeldError("other processes keep changing the sessions of this plan; try again")

    def resume(self, session_id: str) -> Steps[Session]:
        """Take over the given session, or the last of its successors."""
        yield from self._register()
        for _ in range(_ROUNDS):
            session = yield from self._last_of(session_id)
            if session.status == "completed":
                raise NothingLeftError(f"session {session.session_id} is completed: nothing is left to do")
            if plan_of(session) is None and self._outline is None:
                raise NoPlanError(
                    f"session {session.session_id} does not say what there is to do: it was not started by "
                    "`claude-projects run`; to hand over only its record: claude-projects sessions recover"
                )
            try:
                return (yield from self._take_over(session, explicit=True))
            except _OvertakenError:
                continue
        raise HeldError(f"other processes keep changing session {session_id}; try again")

    # Their steps

    def _register(self) -> Steps[None]:
        worker = self.worker
        try:
            machine = yield from perform(calls.machine_heartbeat(worker.machine_id), _RETRY)
        except NotFoundError:
            slots = [] if worker.docker_slot is None else [worker.docker_slot]
            try:
                yield from perform(
                    calls.register_machine(
                        hostname=worker.process.hostname,
                        docker_slots=slots,
                        machine_id=worker.machine_id,
                        metadata={"os": platform.platform(), "architecture": platform.machine()},
                    ),
                    _RETRY,
                )
            except ConflictError as error:
                self._note(str(error))
            return
        if machine.hostname != worker.process.hostname:
            self._note(
                f"machine {worker.machine_id!r} is registered as {machine.hostname!r}, and this is "
                f"{worker.process.hostname!r}: two machines should not share an id"
            )
        elif worker.docker_slot is not None and worker.docker_slot not in machine.docker_slots:
            # The first run has registered the machine with its own slot, and knew of no other.
            slots = sorted({*machine.docker_slots, worker.docker_slot})
            yield from perform(calls.update_machine(worker.machine_id, docker_slots=slots), _RETRY)

    def _earlier(self) -> Steps[Session | None]:
        """The session of this plan that is to be gone on with: the newest one, or its last successor."""

        def of_plan(session: Session) -> bool:
            return (plan_of(session) or {}).get("name") == self.outline.name

        call = calls.list_sessions(
            project_id=self.outline.project_id, machine_id=self.worker.machine_id, limit=100
        )
        newest = next(filter(of_plan, (yield from _all(call, enough=of_plan))), None)
        if newest is None:
            return None
        last = yield from self._last_of(newest.session_id)
        return None if last.status == "completed" else last

    def _last_of(self, session_id: str) -> Steps[Session]:
        session = yield from perform(calls.get_session(session_id), _RETRY)
        while session.recovered_by is not None:
            try:
                session = yield from perform(calls.get_session(session.recovered_by), _RETRY)
            except NotFoundError:
                break  # deleted since
        return session

    def _create(self) -> Steps[Session]:
        if self._creation is None:
            assign(self.outline, set(), [])  # what this machine has done already is reported, as new tasks
            metadata: Metadata = {
                "run": {"id": self.run_id},
                "plan": self.outline.to_metadata(None),
                "process": self.worker.process.describe(None),
            }
            self._creation = calls.create_session(
                project_id=self.outline.project_id,
                machine_id=self.worker.machine_id,
                docker_slot=self.worker.docker_slot,
                metadata=metadata,
            )
        try:
            return (yield from perform(self._creation, _RETRY, lost=self._creation_lost))
        except ConflictError as error:
            if error.existing_session_id is None:
                raise
            yield from self._clear_the_way(error.existing_session_id)
            raise _OvertakenError from error
        except ClaudeProjectsError as error:
            self._creation_lost = self._creation_lost or perhaps_done(error)
            raise

    def _clear_the_way(self, session_id: str) -> Steps[None]:
        """Set aside the active session of another plan on this machine, if its process is dead."""
        try:
            session = yield from perform(calls.get_session(session_id), _RETRY)
            if (plan_of(session) or {}).get("name") == self.outline.name:
                return  # one of this plan, begun since we looked: look again
            yield from self._must_be_free(session, explicit=False)
            yield from perform(calls.mark_stalled(session_id), _RETRY)
        except (NotFoundError, ConflictError):
            return
        self._note(
            f"session {session_id}, whose process is dead, was in the way and is now marked as stalled"
        )

    def _give_up(self, session: Session) -> Steps[None]:
        yield from self._must_be_free(session, explicit=False)
        if session.status != "failed":
            call = calls.mark_failed(
                session.session_id, error_message="Given up: its plan was begun anew with --fresh"
            )
            try:
                yield from perform(call, _RETRY)
            except ConflictError as error:
                raise _OvertakenError from error

    def _must_be_free(self, session: Session, *, explicit: bool) -> Steps[None]:
        health = yield from perform(calls.session_health(session.session_id), _RETRY)
        why_not = refusal(session, health, presence_behind(session), explicit=explicit)
        if why_not:
            raise HeldError(why_not)

    def _take_over(self, session: Session, *, explicit: bool) -> Steps[Session]:
        if session.recovered_from is not None and session.recovered_from == self._attempted:
            return (yield from self._settle_in(session))  # made by an earlier attempt whose answer was lost
        yield from self._must_be_free(session, explicit=explicit)
        if session.status in {"active", "paused"}:
            try:
                yield from perform(calls.mark_stalled(session.session_id), _RETRY)
            except ConflictError as error:  # it has ended since we looked: look again
                raise _OvertakenError from error
        try:
            recovery = yield from perform(
                calls.recover(
                    session.session_id,
                    new_machine_id=self.worker.machine_id,
                    docker_slot=self.worker.docker_slot,
                ),
                _RETRY,
            )
        except ConflictError as error:
            if error.existing_session_id is not None and error.existing_session_id != session.session_id:
                raise HeldError(
                    f"machine {self.worker.machine_id!r} already works on this project, "
                    f"as session {error.existing_session_id}"
                ) from error
            if error.recovered_by is None:
                raise
            raise _OvertakenError from error
        except BadRequestError as error:  # neither failed nor stalled any more: its process has spoken
            raise HeldError(f"session {session.session_id} has come back to life: {error}") from error
        except ClaudeProjectsError as error:
            if perhaps_done(error):
                self._attempted = session.session_id
            raise
        successor = recovery.session
        if recovery.created is False or successor.machine_id != self.worker.machine_id:
            raise HeldError(
                f"session {session.session_id} has just been taken over by another process, as session "
                f"{successor.session_id} on machine {successor.machine_id!r}"
            )
        self.recovered = session
        return (yield from self._settle_in(successor))

    def _settle_in(self, session: Session) -> Steps[Session]:
        """Find out what is left to do in a session that we have taken over, and say that we are behind it."""
        done, seen, oldest = yield from self._history(session)
        tasks = [task for task in seen if task.session_id == session.session_id]
        if self._outline is None:
            self._outline = (
                outline_of(oldest, seen) if plan_of(session) is None else outline_of(session, seen)
            )
        outline = self.outline
        self.run_id = run_of(session) or self.run_id
        here = self._done_here(self.run_id)
        assigned = assign(outline, done | here, tasks)
        unknown = [item.index + 1 for item in outline.left() if item.definition is None]
        if unknown:
            raise NoPlanError(
                f"session {session.session_id} does not say what its tasks {unknown} are: its process was "
                "killed before it had recorded them; give the plan file: claude-projects resume --plan PLAN"
            )
        told = done | digests_of(assigned.done)
        for item in outline.items:
            if item.digest in here - told:
                yield from self._report_late(session, item)
        metadata: Metadata = {
            "run": {"id": self.run_id},
            "plan": outline.to_metadata(session.session_id),
            "process": self.worker.process.describe(session.session_id),
        }
        session = yield from perform(calls.update_session(session.session_id, metadata=metadata), _RETRY)
        for task in assigned.done:  # while the API was away
            yield from perform(calls.update_task(task.task_id, status="completed"), _RETRY)
        for task in assigned.useless:
            yield from perform(calls.delete_task(task.task_id), _RETRY)
        return session

    def _report_late(self, session: Session, item: Item) -> Steps[None]:
        """Record a task that was done here by a run that died before the API could be told."""
        call = calls.create_task(
            session_id=session.session_id,
            project_id=session.project_id,
            task_name=item.name,
            github_issue_id=item.definition.github_issue_id if item.definition else None,
            metadata=self.outline.task_metadata(item),
        )
        task = yield from perform(call, _RETRY)
        late: Metadata = {"reported_late": True}
        yield from perform(calls.update_task(task.task_id, status="completed", metadata=late), _RETRY)

    def _done_here(self, run_id: str) -> set[str]:
        journal = self._journals.find(self.outline.project_id, run_id)
        return journal.done if journal else set()

    def _had_ended(self) -> bool:
        journal = self._journals.find(self.outline.project_id, self.run_id)
        return journal is not None and journal.ended

    def _close_the_books(self, session: Session) -> Steps[None]:
        """End the session of a run that came to its end while the API was away, and begin the next run."""
        yield from perform(calls.update_session(session.session_id, status="completed"), _RETRY)
        self._note(
            f"the last run had ended while the API was away; session {session.session_id} is completed now"
        )
        journal = self._journals.find(self.outline.project_id, self.run_id)
        if journal:
            journal.end(told=True)
        self.run_id, self.recovered = str(uuid.uuid4()), None

    def _history(self, session: Session) -> Steps[tuple[set[str], list[Task], Session]]:
        """What was done so far, all tasks seen on the way, and the oldest session that was read.

        Completed tasks are not copied to a successor. Its ``metadata.plan`` lists them once it has settled
        in; where it was killed before that, the list is its original's, whose own tasks have to be read as
        well.
        """
        done: set[str] = set()
        seen: list[Task] = []
        while True:
            tasks = yield from _all(calls.list_tasks(session_id=session.session_id, limit=200))
            seen += tasks
            done |= done_by_plan(session) | done_by_tasks(tasks)
            if plan_is_for(session) or session.recovered_from is None:
                return done, seen, session
            try:
                session = yield from perform(calls.get_session(session.recovered_from), _RETRY)
            except NotFoundError:
                return done, seen, session


def run_of(session: Session) -> str | None:
    """The id of the run that a session belongs to."""
    run: Any = session.metadata.get("run")
    found: Any = cast("dict[str, Any]", run).get("id") if isinstance(run, dict) else None
    return found if isinstance(found, str) else None


class _OvertakenError(ClaudeProjectsError):
    """Somebody else changed what we were looking at: look again."""


def _all(call: Call[Page[T]], enough: Callable[[T], bool] = lambda _: False) -> Steps[list[T]]:
    """All items of a list, or those up to the page that has one which is ``enough``."""
    items: dict[object, T] = {}
    offset = 0
    while True:
        query = {**call.request.query, "offset": str(offset)}
        page = yield from perform(replace(call, request=replace(call.request, query=query)), _RETRY)
        items.update({_id(item): item for item in page.items})
        offset += len(page.items)
        if not page.items or offset >= page.total or any(map(enough, page.items)):
            return list(items.values())


def _id(item: object) -> object:
    """Pages move while they are read: the same item may come twice."""
    return getattr(item, "task_id", None) or getattr(item, "session_id", None)
