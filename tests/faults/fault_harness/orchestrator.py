"""An orchestrator on the SDK: `orchestrator.py sync|async URL KEY PROJECT MACHINE ITEMS ROLE`.

It does ITEMS pieces of work for PROJECT and ends with exit code 0 when all of them are done. Started again,
or beside another one on another machine, it goes on with what was left behind: it waits until the session is
stalled or has failed, recovers it, and does what is not completed yet. Only the `first` one begins a project,
a `second` one waits for something to rescue. Each piece of work is written down in the file `effects` when it
begins and when it is done, with the session for which that was.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from claude_projects import (
    AsyncClient,
    AsyncTrackedSession,
    ClaudeProjectsError,
    Client,
    Retry,
    Session,
    Task,
    TrackedSession,
    calls,
    track,
)
from claude_projects.exchange import Call, Steps
from claude_projects.models import Recovery

HEARTBEAT = 0.5
PIECE_SECONDS = 0.25
LOOK_SECONDS = 0.5
TIMEOUT = 8.0
RETRY = Retry(attempts=2, patience=5.0)


def effect(what: str, item: str, session: Session | None) -> None:
    """Write down what was done, in one piece."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    attempt, where = os.environ["FAULTS_ATTEMPT"], session.session_id if session else "-"
    file = os.open("effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {item} {attempt} {where} {now:.2f}\n".encode())
    os.close(file)


@dataclass(frozen=True)
class Order:
    """What is to be done, by whom, and where."""

    project: str
    machine: str
    items: tuple[str, ...]
    first: bool

    def is_done(self, last: Session | None, done: set[str]) -> bool:
        """Whether nothing is left to do."""
        return last is not None and last.status == "completed" and done >= set(self.items)

    def begins(self, last: Session | None) -> bool:
        """Whether it is time for a new session."""
        return self.first and (last is None or last.status == "completed")


def last_of(sessions: Iterable[Session]) -> Session | None:
    """The session with which a project goes on: the newest that has no successor."""
    return next((one for one in sessions if one.recovered_by is None), None)


def completed(tasks: Iterable[Task]) -> set[str]:
    """The names of what is done."""
    return {task.task_name for task in tasks if task.status == "completed"}


def adopted(session: Session) -> Callable[[], Steps[Session]]:
    """An opening for a session that is ours already."""

    def opening() -> Steps[Session]:
        yield from ()
        return session

    return opening


def recovering(last: Session, order: Order) -> Call[Recovery] | None:
    """The call that takes over what was left behind; None where nothing was. What is open is created anew."""
    if last.status not in {"stalled", "failed"}:
        return None
    return calls.recover(
        last.session_id, new_machine_id=order.machine, reset_failed_tasks=False, carry_open_tasks=False
    )


def work(client: Client, order: Order) -> bool:
    """Do what can be done now; whether everything is."""
    sessions = list(client.every(calls.list_sessions(project_id=order.project)))
    done = completed(client.every(calls.list_tasks(project_id=order.project)))
    last = last_of(sessions)
    if order.is_done(last, done):
        return True
    if order.begins(last):
        tracked = track(
            client, project_id=order.project, machine_id=order.machine, heartbeat_interval=HEARTBEAT
        )
    else:
        call = None if last is None else recovering(last, order)
        recovery = None if call is None else client.send(call)
        if recovery is None or not recovery.created:
            return False
        tracked = TrackedSession(client, adopted(recovery.session), heartbeat_interval=HEARTBEAT)
    with tracked as session:
        for item in order.items:
            if item not in done:
                with session.task(item):
                    effect("begin", item, session.session)
                    if session.lost_event.wait(PIECE_SECONDS):
                        session.check()
                    effect("end", item, session.session)
    return False  # the next look tells whether the API knows of it all


async def work_async(client: AsyncClient, order: Order) -> bool:
    """The same for asyncio."""
    sessions = [one async for one in client.every(calls.list_sessions(project_id=order.project))]
    done = completed([one async for one in client.every(calls.list_tasks(project_id=order.project))])
    last = last_of(sessions)
    if order.is_done(last, done):
        return True
    if order.begins(last):
        tracked = track(
            client, project_id=order.project, machine_id=order.machine, heartbeat_interval=HEARTBEAT
        )
    else:
        call = None if last is None else recovering(last, order)
        recovery = None if call is None else await client.send(call)
        if recovery is None or not recovery.created:
            return False
        tracked = AsyncTrackedSession(client, adopted(recovery.session), heartbeat_interval=HEARTBEAT)
    async with tracked as session:
        for item in order.items:
            if item not in done:
                async with session.task(item):
                    effect("begin", item, session.session)
                    await asyncio.wait(
                        [asyncio.create_task(session.lost_event.wait())], timeout=PIECE_SECONDS
                    )
                    session.check()
                    effect("end", item, session.session)
    return False


def main() -> None:
    """Look, work, look again, until all is done."""
    mode, url, key, project, machine, count, role = sys.argv[1:]
    items = tuple(f"piece-{number}" for number in range(int(count)))
    order = Order(project, machine, items, role == "first")
    if mode == "sync":
        with Client(url, key, retry=RETRY, timeout=TIMEOUT) as client:
            while not trying(lambda: work(client, order)):
                time.sleep(LOOK_SECONDS)
        return

    async def all_of_it() -> None:
        async with AsyncClient(url, key, retry=RETRY, timeout=TIMEOUT) as client:
            while True:
                try:
                    if await work_async(client, order):
                        return
                except ClaudeProjectsError as error:
                    sys.stdout.write(f"{type(error).__name__}: {error}\n")
                await asyncio.sleep(LOOK_SECONDS)

    asyncio.run(all_of_it())


def trying(what: Callable[[], bool]) -> bool:
    """Do it; False where the API or another process was in the way."""
    try:
        return what()
    except ClaudeProjectsError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return False


if __name__ == "__main__":
    main()
