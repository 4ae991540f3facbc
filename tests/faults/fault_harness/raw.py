"""Callers of plain HTTP who meddle in one small world: `raw.py URL KEY SEED CALLERS PAUSE WORLD AIM`.

Each does at random what ACTIONS lists, to the same few projects, machines and sessions as all others, so that
nearly everything collides with something; AIM says what they mostly do. They remember nothing: who
started again reads the lists. They end at SIGTERM. Nothing is written down here; the harness listens in on
the wire.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]
TIMEOUT = httpx.Timeout(8.0, connect=2.0)


@dataclass
class World:
    """What everybody in this process knows of; the newest of each."""

    name: str
    sessions: deque[Json] = field(default_factory=lambda: deque(maxlen=24))
    tasks: deque[Json] = field(default_factory=lambda: deque(maxlen=60))

    def project(self, rng: random.Random) -> str:
        return f"{self.name}-project-{rng.randrange(4)}"

    def machine(self, rng: random.Random) -> str:
        return f"{self.name}-machine-{rng.randrange(4)}"


class Caller:
    """One caller: one request at a time, over a connection of its own."""

    def __init__(self, http: httpx.AsyncClient, world: World, rng: random.Random, actions: Actions) -> None:
        self._http, self._world, self._rng = http, world, rng
        self._actions, self._weights = list(actions), list(actions.values())
        self._own: str | None = None
        self._count = 0

    async def step(self) -> None:
        """Do something."""
        rng = self._rng
        if self._own is not None and rng.random() < 0.35:
            answer = await self._send("POST", f"/api/sessions/{self._own}/heartbeat", self._marked())
            if answer is not None and answer.status_code in {404, 409}:
                self._own = None
            return
        (chosen,) = rng.choices(self._actions, self._weights)
        await chosen(self)

    def _marked(self) -> Json | None:
        """Now and then some metadata that nobody else sends, to be found again."""
        if self._rng.random() < 0.7:
            return None
        self._count += 1
        return {"metadata": {f"mark-{self._rng.getrandbits(40):x}": self._count}}

    async def _send(self, method: str, path: str, body: Json | None = None) -> httpx.Response | None:
        try:
            return await self._http.request(method, path, json=body)
        except httpx.HTTPError:
            await asyncio.sleep(0.05)
            return None

    def _session(self) -> Json | None:
        return self._rng.choice(self._world.sessions) if self._world.sessions else None

    def _task(self) -> Json | None:
        return self._rng.choice(self._world.tasks) if self._world.tasks else None

    async def create(self) -> None:
        """Start a session somewhere."""
        world, rng = self._world, self._rng
        body: Json = {"project_id": world.project(rng), "machine_id": world.machine(rng)}
        if rng.random() < 0.4:
            body["docker_slot"] = rng.randrange(2)
        answer = await self._send("POST", "/api/sessions", body)
        if answer is not None and answer.status_code == 201:
            self._own = answer.json()["session_id"]
            world.sessions.append(answer.json())

    async def act(self, action: str, body: Json | None = None) -> httpx.Response | None:
        session = self._session()
        if session is None:
            return None
        return await self._send("POST", f"/api/sessions/{session['session_id']}/{action}", body)

    async def heartbeat(self) -> None:
        """Beat for a session that may be anybody's."""
        await self.act("heartbeat", self._marked())

    async def fail(self) -> None:
        """Say that a session has failed."""
        await self.act("mark-failed", {"error_message": "said to have failed"})

    async def stall(self) -> None:
        """Say that a session is stalled."""
        await self.act("mark-stalled")

    async def prepare(self) -> None:
        """Prepare a recovery."""
        await self.act("prepare-recovery", {"clear_machine_assignment": self._rng.random() < 0.7})

    async def recover(self) -> None:
        """Take a session over, if need be by declaring it failed first; several may try at once."""
        session = self._session()
        if session is None:
            return
        path = f"/api/sessions/{session['session_id']}"
        if self._rng.random() < 0.6:
            mark, body = ("mark-failed", {"error_message": "taken over"})
            if self._rng.random() < 0.5:
                mark, body = ("mark-stalled", None)
            await self._send("POST", f"{path}/{mark}", body)
        rivals = [self._world.machine(self._rng) for _ in range(self._rng.choice((1, 1, 2, 4)))]
        answers = await asyncio.gather(
            *(self._send("POST", f"{path}/recover", {"new_machine_id": machine}) for machine in rivals)
        )
        for answer in answers:
            if answer is not None and answer.is_success:
                self._own = answer.json()["session_id"]
                self._world.sessions.append(answer.json())
                break

    async def set_status(self) -> None:
        """Change a session's status."""
        session = self._session()
        if session is not None:
            status = self._rng.choice(("active", "paused", "stalled", "completed", "failed"))
            await self._send("PATCH", f"/api/sessions/{session['session_id']}", {"status": status})

    async def delete(self) -> None:
        """Delete a session."""
        session = self._session()
        if session is not None:
            await self._send("DELETE", f"/api/sessions/{session['session_id']}")

    async def archive(self) -> None:
        """Archive a session; one that has not ended is refused."""
        await self.act("archive")

    async def add_task(self) -> None:
        """Give a session a task."""
        session = self._session()
        if session is None:
            return
        body = {
            "session_id": session["session_id"],
            "project_id": session["project_id"],
            "task_name": f"task {self._rng.getrandbits(24):x}",
        }
        answer = await self._send("POST", "/api/tasks", body)
        if answer is not None and answer.status_code == 201:
            self._world.tasks.append(answer.json())

    async def set_task(self) -> None:
        """Claim a task, or say how it ended; two may claim it at once."""
        task = self._task()
        if task is None:
            return
        status = self._rng.choice(("in_progress", "in_progress", "completed", "failed", "blocked"))
        body: Json = {"status": status} | ({"error_message": "did not work"} if status == "failed" else {})
        times = 2 if status == "in_progress" and self._rng.random() < 0.5 else 1
        path = f"/api/tasks/{task['task_id']}"
        await asyncio.gather(*(self._send("PATCH", path, body) for _ in range(times)))

    async def delete_task(self) -> None:
        """Delete a task that a caller has made; what a recovery has made stays, to be looked for."""
        task = self._task()
        if task is not None:
            await self._send("DELETE", f"/api/tasks/{task['task_id']}")

    async def register(self) -> None:
        """Register one of the machines; the last one never is."""
        number = self._rng.randrange(3)
        name = f"{self._world.name}-machine-{number}"
        body = {"machine_id": name, "hostname": name, "docker_slots": [0, 1]}
        await self._send("POST", "/api/machines", body)

    async def beat_machine(self) -> None:
        """A machine's heartbeat."""
        await self._send("POST", f"/api/machines/{self._world.machine(self._rng)}/heartbeat")

    async def set_machine(self) -> None:
        """Change a machine; now and then it goes into maintenance, and takes no sessions for a while."""
        rng = self._rng
        body = self._marked() or {"status": rng.choice(("online", "online", "online", "maintenance"))}
        if rng.random() < 0.3:
            body["docker_slots"] = rng.choice(([0, 1], [0, 1, 2]))
        await self._send("PATCH", f"/api/machines/{self._world.machine(rng)}", body)

    async def read(self) -> None:
        """Read the newest sessions, and know them."""
        answer = await self._send("GET", f"/api/sessions?project_id={self._world.project(self._rng)}&limit=5")
        if answer is not None and answer.is_success:
            known = {session["session_id"] for session in self._world.sessions}
            new = (one for one in answer.json()["sessions"] if one["session_id"] not in known)
            self._world.sessions.extend(new)

    async def scan(self) -> None:
        """Look for silent sessions."""
        await self._send("POST", "/api/sessions/detect-failures")


Actions = dict[Callable[[Caller], Awaitable[None]], float]
ACTIONS: Actions = {
    Caller.create: 14,
    Caller.heartbeat: 10,
    Caller.fail: 3,
    Caller.stall: 4,
    Caller.prepare: 3,
    Caller.recover: 12,
    Caller.set_status: 6,
    Caller.delete: 3,
    Caller.archive: 2,
    Caller.add_task: 12,
    Caller.set_task: 16,
    Caller.delete_task: 2,
    Caller.register: 3,
    Caller.beat_machine: 2,
    Caller.set_machine: 2,
    Caller.read: 4,
    Caller.scan: 1,
}
AIMS: dict[str, Actions] = {
    "everything": ACTIONS,
    "recoveries": {Caller.create: 4, Caller.add_task: 2, Caller.recover: 12},
    "ends": {Caller.create: 4, Caller.heartbeat: 10, Caller.set_status: 4, Caller.recover: 2},
    "deletions": {Caller.create: 10, Caller.add_task: 10, Caller.delete: 8},
}
"""What callers do, and how often, by what they aim at."""


async def main() -> None:
    """Call until SIGTERM."""
    url, key, seed, callers, pause, name, aim = sys.argv[1:]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    world = World(name)

    async def call(number: int, http: httpx.AsyncClient) -> None:
        rng = random.Random(f"{seed}/{number}")
        caller = Caller(http, world, rng, AIMS[aim])
        await caller.register()
        while not stop.is_set():
            await caller.step()
            await asyncio.sleep(rng.uniform(0, 2 * float(pause)))

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=url, headers={"X-API-Key": key}, timeout=TIMEOUT, limits=limits, trust_env=False
        ) as http,
        asyncio.TaskGroup() as group,
    ):
        for number in range(int(callers)):
            group.create_task(call(number, http))


if __name__ == "__main__":
    asyncio.run(main())
