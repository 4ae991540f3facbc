"""The clients of a round: who they are, how they are started again, and when their work is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from fault_harness.cluster import STALL_THRESHOLD_MS, Cluster
from fault_harness.history import Json, clock
from fault_harness.processes import Proc, until

HERE = Path(__file__).parent
CLI = str(Path(sys.executable).with_name("claude-projects"))
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
_COMMAND = """
f() {{
    read -r up _ < /proc/uptime
    echo "$1 {name} $FAULTS_ATTEMPT ${{CLAUDE_PROJECTS_SESSION_ID:--}} $up" >> effects
}}
f begin
tries=0
until [ -e ../all-are-here ] || [ $((tries += 1)) -gt 1800 ]; do sleep 0.1; done
sleep {seconds}
f end
"""
"""A piece of work; the first one lasts until `Clients.begin`, however long the others take to start."""


@dataclass
class Attempt:
    """One process that worked on an orchestration, and how it ended."""

    name: str
    command: str
    machine: str
    began: float
    ended: float | None = None
    code: int | None = None


@dataclass
class Work:
    """An orchestration: what is to be done for a project, and the attempts at it."""

    project: str
    kind: str
    items: list[str]
    home: Path
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    done: bool = False

    def effects(self) -> list[tuple[str, str, str, str, float]]:
        """What was really done, in order: begin or end, the item, the attempt, the session, the time."""
        path = self.home / "effects"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(a, b, c, d, float(e)) for a, b, c, d, e in (line.split() for line in lines)]


class Clients:
    """Starts and supervises the clients of one round."""

    def __init__(self, cluster: Cluster, directory: Path, seed: int, world: str) -> None:
        assert FAKETIME, "libfaketime is missing, to set clocks wrong: .ci/system-packages faketime"
        self._cluster, self._directory, self._world = cluster, directory, world
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []
        self._urls: dict[str, str] = {}
        self._stopping = False
        self.works: list[Work] = []
        self.names: list[str] = []

    # What all of them have

    async def _way(self, client: str) -> str:
        """The address under which a client finds the servers, one after another; its own."""
        if client not in self._urls:
            port = await self._cluster.network.listen(self._cluster.endpoints, source=client, tapped=True)
            self._urls[client] = f"http://127.0.0.1:{port}"
        return self._urls[client]

    def environment(self, client: str, home: Path, **more: str) -> dict[str, str]:
        """What a process of this client is started with; its wall clock is right until `set_clock`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLAUDE_PROJECTS_")}
        clock_file = self.clock_file(client)
        clock_file.write_text("+0")
        return {
            **kept,
            "HOME": str(home),
            "PYTHONPATH": f"{HERE / 'at_start'}{os.pathsep}{HERE.parent}",
            "PYTHONUNBUFFERED": "1",
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock_file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            **more,
        }

    def clock_file(self, client: str) -> Path:
        """Where a client's wall clock gets its error from."""
        return self._directory / f"{client}.clock"

    def set_clock(self, client: str, error: str) -> None:
        """Set a client's wall clock wrong by so much, as libfaketime writes it."""
        with contextlib.suppress(FileNotFoundError):
            self.clock_file(client).write_text(error)

    def begin(self) -> None:
        """Now the plans go on: faults are to hit them while they are at work."""
        (self._directory / "all-are-here").touch()

    # Callers of plain HTTP

    async def add_raw(self, name: str, callers: int, pause: float, aim: str) -> None:
        """A process with so many callers who aim at something; it is started again whenever it was killed."""
        home = self._directory / name
        home.mkdir()
        url = await self._way(name)
        self.names.append(name)

        async def keep() -> None:
            starts = 0
            while not self._stopping:
                command = [sys.executable, HERE / "raw.py", url, self._cluster.key]
                command += [f"{self._seed}/{starts}", str(callers), str(pause), self._world, aim]
                proc = Proc(
                    name, command, self.environment(name, home), self._directory / f"{name}.log", home
                )
                proc.start()
                self._cluster.clients[name] = proc
                starts += 1
                while proc.runs and not self._stopping:
                    await asyncio.sleep(0.1)
            proc = self._cluster.clients[name]
            proc.go_on()
            proc.signal(signal.SIGTERM)
            if await proc.ended(20) is None:
                proc.kill()

        self._tasks.append(asyncio.create_task(keep()))

    # Orchestrations

    async def add_sdk(self, name: str, mode: str, items: int) -> None:
        """An orchestrator on the SDK and a second one on another machine, both started again when killed."""
        work = self._work(name, f"sdk-{mode}", [f"piece-{number}" for number in range(items)])
        for role in ("first", "second"):
            client = f"{name}-{role}"
            url = await self._way(client)
            self.names.append(client)
            command = [sys.executable, HERE / "orchestrator.py", mode, url, self._cluster.key]
            command += [work.project, client, str(items), role]
            self._tasks.append(asyncio.create_task(self._keep_orchestrating(work, client, command)))

    async def _keep_orchestrating(self, work: Work, client: str, command: list[str | Path]) -> None:
        while True:
            proc, attempt = self._attempt(work, client, command, client)
            await self._end_of(proc, attempt)
            if attempt.code == 0:
                work.done = True
                return
            await asyncio.sleep(0.2)

    async def _add_plan(
        self, name: str, kind: str, items: int, seconds: float, roles: list[str]
    ) -> tuple[Work, Path, list[str]]:
        """A plan whose tasks write down what they do, and the clients that carry it out."""
        names = [f"item-{number}" for number in range(items)]
        work = self._work(name, kind, names)
        plan = work.home / "plan.toml"
        tasks = [
            f"[[tasks]]\nname = \"{one}\"\ncommand = '''{_COMMAND.format(name=one, seconds=seconds)}'''\n"
            for one in names
        ]
        plan.write_text(f'project_id = "{work.project}"\n\n' + "\n".join(tasks))
        clients = [f"{name}-{role}" for role in roles]
        for client in clients:
            await self._way(client)
            self.names.append(client)
        return work, plan, clients

    async def add_run(self, name: str, items: int, seconds: float) -> None:
        """`claude-projects run` of a plan, and whoever resumes it, here or on a second machine."""
        work, plan, machines = await self._add_plan(name, "run", items, seconds, ["here", "there"])
        self._tasks.append(asyncio.create_task(self._keep_running(work, machines, plan)))

    async def _keep_running(self, work: Work, machines: list[str], plan: Path) -> None:
        """Start it; then, whenever nobody is at work or somebody is silent, let somebody go on.

        The one who was at work last starts `run` again; the other machine resumes the session. A rival comes
        while the first still runs only where its session is stalled.
        """
        rng = random.Random(f"{self._seed}/{work.project}")
        alive: dict[str, tuple[Proc, Attempt]] = {}
        here = machines[0]
        while True:
            for machine, (proc, attempt) in list(alive.items()):
                if not proc.runs:
                    self._has_ended(proc, attempt)
                    del alive[machine]
            last = await self._last_session(work.project)
            if last is not None and last["status"] == "completed" and not alive:
                work.done = True
                return
            stalled = last is not None and last["status"] == "stalled"
            if last is not None and last["status"] != "completed" and (not alive or stalled):
                free = [machine for machine in machines if machine not in alive]
                if free:
                    machine = rng.choice(free)
                    again = machine == here and last["machine_id"] == machine and rng.random() < 0.7
                    command = [CLI, *(("run", str(plan)) if again else ("resume", last["session_id"]))]
                    alive[machine] = self._attempt(work, machine, command, machine)
            elif last is None and not alive:
                alive[here] = self._attempt(work, here, [CLI, "run", str(plan)], here)
            await asyncio.sleep(0.4)

    async def add_extension(
        self, name: str, items: int, seconds: float, window: Path, *, beside: bool
    ) -> None:
        """A window of VS Code that starts a plan, and whoever goes on with it.

        That is the same window opened again, a second one `beside` it, and a second machine's, where the
        command line is used as well. `window` is the program (see extension.py).
        """
        roles = ["here", "there", *(["window"] if beside else [])]
        work, plan, clients = await self._add_plan(name, "extension", items, seconds, roles)
        self._tasks.append(asyncio.create_task(self._keep_windows(work, clients, plan, window)))

    async def _keep_windows(self, work: Work, clients: list[str], plan: Path, window: Path) -> None:
        """Start it; then, whenever no window is open or the session is stalled, let somebody go on with it.

        A person closes all windows when it is completed, and one in which nothing happens.
        """
        rng = random.Random(f"{self._seed}/{work.project}")
        alive: dict[str, tuple[Proc, Attempt]] = {}
        closed: set[str] = set()
        here, there, *beside = clients
        while True:
            for client, (proc, attempt) in list(alive.items()):
                if not proc.runs:
                    self._has_ended(proc, attempt)
                    del alive[client]
            last = await self._last_session(work.project)
            if last is not None and last["status"] == "completed":
                for proc, attempt in alive.values():
                    if attempt.name not in closed:
                        closed.add(attempt.name)
                        proc.signal(signal.SIGTERM)
                if not alive:
                    work.done = True
                    return
            elif last is None:
                if not alive:
                    alive[here] = self._window(work, here, here, [window, "start", plan])
            elif not alive or last["status"] == "stalled":
                free = [client for client in (here, here, *beside, there, there) if client not in alive]
                client = rng.choice(free) if free else ""
                if client == there and rng.random() < 0.5:
                    alive[client] = self._attempt(work, there, [CLI, "resume", last["session_id"]], there)
                elif client:
                    machine = there if client == there else here
                    left_behind = last["machine_id"] == machine and rng.random() < 0.6
                    verb = "open" if left_behind else "recover"
                    alive[client] = self._window(work, client, machine, [window, verb])
            await asyncio.sleep(0.4)

    def _window(self, work: Work, client: str, machine: str, words: list[str | Path]) -> tuple[Proc, Attempt]:
        """Open a window; those of one machine share what they keep."""
        # How a person has set up the extension, decided by the seed for each machine.
        left_behind = random.Random(f"{self._seed}/{machine}").choice(("ask", "continue"))
        storage = self._directory / f"{machine}-storage"
        return self._attempt(
            work,
            client,
            ["node", *words],
            machine,
            FAULTS_PROJECT=work.project,
            FAULTS_STORAGE=str(storage),
            FAULTS_LEFT_BEHIND=left_behind,
        )

    async def _last_session(self, project: str) -> Json | None:
        """Where a project stands, asked of whatever server answers, past all faults of the network."""
        while True:
            for _, port in self._cluster.endpoints():
                with contextlib.suppress(httpx.HTTPError, TimeoutError):
                    url = f"http://127.0.0.1:{port}/api/sessions?project_id={project}&limit=100"
                    answer = await self._http.get(url)
                    if answer.is_success:
                        found = answer.json()["sessions"]
                        return next((one for one in found if one["recovered_by"] is None), None)
            await asyncio.sleep(0.2)

    def _work(self, name: str, kind: str, items: list[str]) -> Work:
        home = self._directory / name
        home.mkdir()
        work = Work(f"{self._world}-{name}", kind, items, home)
        self.works.append(work)
        return work

    def _attempt(
        self, work: Work, client: str, command: list[str | Path], machine: str, **more: str
    ) -> tuple[Proc, Attempt]:
        name = f"{client}#{len(work.attempts)}"
        environment = self.environment(
            client,
            work.home,
            FAULTS_ATTEMPT=name,
            CLAUDE_PROJECTS_STATE_DIR=str(self._directory / f"{client}-state"),
            CLAUDE_PROJECTS_CONFIG=str(self._directory / "none.toml"),
            CLAUDE_PROJECTS_URL=self._urls[client],
            CLAUDE_PROJECTS_API_KEY=self._cluster.key,
            CLAUDE_PROJECTS_MACHINE_ID=machine,
            CLAUDE_PROJECTS_HEARTBEAT_SECONDS="0.5",
            CLAUDE_PROJECTS_FREEZE_AFTER_SECONDS=f"{STALL_THRESHOLD_MS / 3000:g}",
            **more,
        )
        proc = Proc(client, command, environment, self._directory / f"{client}.log", work.home)
        attempt = Attempt(name, " ".join(str(part) for part in command[:3]), machine, clock())
        proc.start()
        self._cluster.clients[client] = proc
        work.attempts.append(attempt)
        return proc, attempt

    async def _end_of(self, proc: Proc, attempt: Attempt) -> None:
        while proc.runs:
            await asyncio.sleep(0.1)
        self._has_ended(proc, attempt)

    @staticmethod
    def _has_ended(proc: Proc, attempt: Attempt) -> None:
        attempt.ended, attempt.code = clock(), proc.code

    async def ambush(self, what: str) -> None:
        """Kill or suspend the first window in the middle of its work; it goes on when another has begun."""
        (work,) = self.works
        client = f"{work.home.name}-here"

        def begun(item: str, *, by_another: bool = False) -> bool:
            return any(
                what == "begin" and one == item and attempt.startswith(client) != by_another
                for what, one, attempt, *_ in work.effects()
            )

        await until(lambda: begun(work.items[1]), "the second piece has begun", 120)
        if what == "kill":
            self._cluster.kill(client)
            return
        self._cluster.suspend(client)
        others = work.items[1:3]
        await until(lambda: any(begun(one, by_another=True) for one in others), "another goes on", 120)
        self._cluster.go_on(client)

    # The round

    async def __aenter__(self) -> Self:
        headers = {"X-API-Key": self._cluster.key}
        self._http = httpx.AsyncClient(headers=headers, timeout=3, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for proc in self._cluster.clients.values():
            proc.kill()
        self._cluster.clients.clear()
        await self._http.aclose()

    async def settle(self, seconds: float) -> list[str]:
        """Let the callers stop and the orchestrations end; a sentence for each that does not."""
        self._stopping = True
        for proc in self._cluster.clients.values():
            proc.go_on()
        _, left = await asyncio.wait(self._tasks, timeout=seconds) if self._tasks else (set(), set())
        for task in self._tasks:
            if task.done() and task.exception() is not None:
                raise task.exception() or AssertionError
        if not left:
            return []
        return [
            f"{work.project} ({work.kind}) was not done {seconds:g} s after the last fault was over: "
            f"{[(one.name, one.code) for one in work.attempts[-4:]]}"
            for work in self.works
            if not work.done
        ]
