"""One round: clients at work, faults for a while, then peace, and the check of what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_harness import checker, history
from fault_harness.clients import Clients
from fault_harness.cluster import Cluster
from fault_harness.extension import bundle
from fault_harness.history import History
from fault_harness.mutants import EXTENSION_MUTANTS, MUTANTS
from fault_harness.network import HARMS, Harm
from fault_harness.owners import at_once, pieces_of
from fault_harness.processes import until
from fault_harness.schedule import Fault, Scene, schedule
from fault_harness.state import State, wrong_steps, wrong_with
from fault_harness.watcher import Watcher, whole_state

SETTLE_SECONDS = 180.0
HUNT_SECONDS = 60.0
COLUMNS = (
    *("seed", "servers", "faults", "requests", "answered 2xx / 4xx / 503, 504 / never", "snapshots"),
    *("recoveries", "orchestrations", "faults, settling", "wrong"),
)
"""Of the table in docs/RELIABILITY.md."""
_OUTCOMES = ("2xx", "4xx", "503, 504", "never")


@dataclass(frozen=True)
class Shape:
    """How large a round is."""

    seconds: float = 20.0
    """For so long there are faults."""
    servers: int = 2
    raw: int = 1
    callers: int = 8
    """So many in each process of raw callers."""
    pause: float = 0.1
    """Of each caller between two requests, on average."""
    aim: str = "everything"
    """What the callers mostly do; see raw.py."""
    sdk: tuple[str, ...] = ("sync", "async")
    runs: int = 1
    extensions: int = 1
    items: int = 5
    """Of each orchestration."""
    piece_seconds: float = 0.4
    gap: float = 0.8
    """Between two faults, on average; 0: there are none."""
    cool_down: float = 3.0
    """Of the circuit breaker; the product's own is 30 s."""
    ambush: str = ""
    """One fault in the middle of the only window's work, instead of random ones; see `Clients.ambush`."""
    watch_every: float = 0.3
    mutant: str = "none"
    sought: str = ""
    """What a snapshot must show to be wrong, as a regular expression: the round then ends at once."""

    @property
    def orchestrations(self) -> int:
        """How many there are."""
        return len(self.sdk) + self.runs + self.extensions


SHORT = Shape(seconds=12, items=10, sdk=("async",))
"""For `make test`; of the SDK, without the synchronous one. Its plans outlast the first fault of each."""


def hunt(mutant: str) -> Shape:
    """A round that looks for a bug that was put in on purpose.

    One of the server's: no faults, and many callers aiming at it, until it is seen. One of the extension's:
    one orchestration, and the one fault that makes the bug show.
    """
    if mutant in EXTENSION_MUTANTS:
        ambush = EXTENSION_MUTANTS[mutant].ambush
        return Shape(
            servers=1,
            raw=0,
            sdk=(),
            runs=0,
            items=10,
            piece_seconds=0.3,
            gap=0,
            watch_every=1,
            ambush=ambush,
            mutant=mutant,
        )
    bug = MUTANTS[mutant]
    return Shape(
        seconds=HUNT_SECONDS,
        servers=1,
        callers=12,
        pause=0.02,
        sdk=(),
        runs=0,
        extensions=0,
        gap=0,
        watch_every=0.02,
        mutant=mutant,
        aim=bug.aim,
        sought=bug.found_by,
    )


def bug_is_found(mutant: str, wrong: Iterable[str]) -> bool:
    """Whether one of these sentences says what a bug that was put in on purpose does to the data."""
    found_by = (MUTANTS | EXTENSION_MUTANTS)[mutant].found_by
    return any(re.search(found_by, sentence) for sentence in wrong)


def header() -> str:
    """The head of the table whose rows the rounds are, as Markdown."""
    return "\n".join((_as_row(COLUMNS), _as_row("---" for _ in COLUMNS)))


def _as_row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _outcome(status: int | None) -> str:
    if status is None:
        return "never"
    return "503, 504" if status in {503, 504} else f"{status // 100}xx"


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


@dataclass
class Outcome:
    """What a round has shown."""

    seed: int
    shape: Shape
    faults: list[Fault]
    path: Path
    begun: list[Fault] = field(default_factory=list[Fault])
    """The faults that happened: there was somebody in the role they name."""
    wrong: list[str] = field(default_factory=list[str])
    figures: dict[str, Any] = field(default_factory=dict[str, Any])

    def row(self) -> str:
        """The round as a row of the table in docs/RELIABILITY.md."""
        figures = self.figures
        attempts = _counted(sum(figures["attempts"].values()), "attempt", "attempts")
        answers = figures["answers"]
        others = "".join(f" / {name}: {count}" for name, count in answers.items() if name not in _OUTCOMES)
        return _as_row(
            (
                self.seed,
                self.shape.servers,
                self._faults_in_words(),
                figures["requests"],
                " / ".join(str(answers.get(name, 0)) for name in _OUTCOMES) + others,
                figures["snapshots"],
                figures["recoveries"],
                f"{figures['done']} of {self.shape.orchestrations} in {attempts}",
                f"{figures['faults_s']:.0f} s, {figures['settled_s']:.0f} s",
                _counted(len(self.wrong), "sentence", "sentences") if self.wrong else "nothing",
            )
        )

    def _faults_in_words(self) -> str:
        counted = Counter(
            "network" if fault.what in HARMS else fault.what
            for fault in self.begun  # what was planned for nobody did not happen
        )
        said = [
            f"{counted['kill']} killed" * bool(counted["kill"]),
            f"{counted['suspend']} suspended" * bool(counted["suspend"]),
            f"{counted['network']} of the network" * bool(counted["network"]),
            _counted(counted["clock"], "clock", "clocks") * bool(counted["clock"]),
        ]
        if not self.begun:
            return {"kill": "1: 1 killed", "suspend": "1: 1 suspended"}.get(self.shape.ambush, "none")
        return f"{len(self.begun)}: {', '.join(part for part in said if part)}"

    def summary(self) -> str:
        """All of it, for people."""
        counted = Counter(fault.what for fault in self.begun)
        said = ", ".join(f"{what} {count}" for what, count in sorted(counted.items()))
        lines = [
            f"round with seed {self.seed}: {self.shape.servers} servers, {len(self.begun)} faults ({said})",
            "  " + ", ".join(f"{name} {value}" for name, value in self.figures.items()),
            f"  {'nothing wrong' if not self.wrong else f'{len(self.wrong)} WRONG'}",
            *(f"  - {sentence}" for sentence in self.wrong[:20]),
        ]
        return "\n".join(lines)


async def play(cluster: Cluster, seed: int, shape: Shape, directory: Path) -> Outcome:
    """Play a round; everything that it leaves is in `directory`."""
    directory.mkdir(parents=True)  # noqa: ASYNC240 - nothing else runs yet
    database = f"round-{seed}-{uuid.uuid4().hex[:8]}"
    record = cluster.history = History(directory / "history.jsonl")
    loop = asyncio.get_running_loop()
    called = loop.time()
    in_server = shape.mutant if shape.mutant in MUTANTS else "none"
    in_extension = EXTENSION_MUTANTS.get(shape.mutant)
    # First, as it may fail where nothing is installed for it: then no server is left behind.
    window = await asyncio.to_thread(bundle, directory / "extension", in_extension)
    await cluster.start_servers(shape.servers, database, in_server, shape.cool_down, directory)
    async with cluster.watching_client() as client, Clients(cluster, directory, seed, f"w{seed}") as clients:
        for number in range(shape.raw):
            await clients.add_raw(f"raw-{number}", shape.callers, shape.pause, shape.aim)
        for number, mode in enumerate(shape.sdk):
            await clients.add_sdk(f"sdk-{number}", mode, shape.items)
        for number in range(shape.runs):
            await clients.add_run(f"run-{number}", shape.items, shape.piece_seconds)
        for number in range(shape.extensions):
            await clients.add_extension(
                f"extension-{number}", shape.items, shape.piece_seconds, window, beside=not shape.ambush
            )
        scene = Scene(sorted(cluster.servers), clients.names, clients.names)
        faults = schedule(seed, shape.seconds, scene, shape.gap) if shape.gap else []
        outcome = Outcome(seed, shape, faults, directory)
        watcher = Watcher(client, database, record, shape.sought)
        watching = asyncio.create_task(watcher.watch(shape.watch_every))
        expected = {name for name in clients.names if not name.endswith(("-there", "-window"))}
        await until(lambda: expected <= record.heard.keys(), "every client has said something", 180)
        began = loop.time()
        clients.begin()
        if shape.sought:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(watcher.found.wait(), shape.seconds)
        elif shape.ambush:
            await clients.ambush(shape.ambush)
        else:
            outcome.begun = await _inflict(cluster, clients, faults, shape.seconds, record)
        await cluster.heal()
        record.note("peace")
        peace = loop.time()
        outcome.wrong += await clients.settle(SETTLE_SECONDS)
        settled = loop.time()
        watcher.stop.set()
        await watching
        await watcher.look()
    outcome.wrong += await cluster.stop_servers()
    state = await asyncio.to_thread(_take_away, cluster, database)
    cluster.history = None
    record.close()
    operations = history.operations(history.read(record.path))
    outcome.wrong += await asyncio.to_thread(_judge, operations, state, clients, watcher)
    attempts, overlaps = Counter[str](), Counter[str]()
    for work in clients.works:
        attempts[work.kind] += len(work.attempts)
        overlaps[work.kind] += len(at_once(pieces_of(work.effects())))
    outcome.figures = {
        "requests": len(operations),
        "answers": dict(sorted(Counter(_outcome(one.status) for one in operations).items())),
        "snapshots": watcher.snapshots,
        "sessions": len(state.sessions),
        "recoveries": sum(bool(one.get("recovered_from")) for one in state.sessions.values()),
        "tasks": len(state.tasks),
        "done": sum(work.done for work in clients.works),
        "attempts": dict(attempts),
        "at_once": dict(+overlaps) or 0,
        "start_s": round(began - called, 1),
        "faults_s": round(peace - began, 1),
        "settled_s": round(settled - peace, 1),
    }
    _keep(outcome, state, clients)
    return outcome


def _take_away(cluster: Cluster, database: str) -> State:
    """Everything stored, and then nothing. In a thread: also the end of a connection passes the harness."""
    with cluster.database_client() as client:
        state = whole_state(client, database)
        client.drop_database(database)
    return state


def _judge(
    operations: list[history.Operation], state: State, clients: Clients, watcher: Watcher
) -> list[str]:
    wrong = [f"seen in a snapshot: {sentence}" for sentence in watcher.wrong]
    if not watcher.snapshots:
        wrong.append("no snapshot could be read: nobody has looked at the data during this round")
    wrong += wrong_with(state)
    wrong += wrong_steps(state)
    wrong += [
        f"session {one} had ended and is {state.sessions[one]['status']}"
        for one in watcher.ended.keys() & state.sessions.keys()
        if state.sessions[one]["status"] not in {"completed", "failed"}
    ]
    return wrong + checker.check(operations, state, clients.works)


def _keep(outcome: Outcome, state: State, clients: Clients) -> None:
    """What is needed to understand a failure, beside the history."""
    everything = {
        "seed": outcome.seed,
        "shape": vars(outcome.shape),
        "wrong": outcome.wrong,
        "faults": [str(fault) for fault in outcome.faults],
        "begun": [str(fault) for fault in outcome.begun],
        "figures": outcome.figures,
        "attempts": [vars(one) for work in clients.works for one in work.attempts],
        "state": {name: list(documents.values()) for name, documents in vars(state).items()},
    }
    (outcome.path / "round.json").write_text(json.dumps(everything, default=str, indent=1))


async def _inflict(
    cluster: Cluster, clients: Clients, faults: list[Fault], seconds: float, record: History
) -> list[Fault]:
    """Let each fault happen at its time; when all are over, those that really happened."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    begun: list[Fault] = []

    async def one(fault: Fault) -> None:
        await asyncio.sleep(began + fault.at - loop.time())
        target = await cluster.place(fault.target)
        source = await cluster.place(fault.source) if fault.source else ""
        of_process = fault.what in {"kill", "suspend"}
        if target is None or source is None or (of_process and not cluster.runs(target)):
            record.note("absent", what=fault.what, target=target, source=source)
            return  # nobody plays this role now
        record.note("fault", what=fault.what, target=target, source=source, amount=fault.amount)
        begun.append(fault)
        async with _during(cluster, clients, fault, target, source):
            await asyncio.sleep(fault.seconds)
        record.note("over", what=fault.what, target=target, source=source)

    async with asyncio.TaskGroup() as group:
        for fault in faults:
            group.create_task(one(fault))
        group.create_task(asyncio.sleep(seconds))
    return begun


@contextlib.asynccontextmanager
async def _during(
    cluster: Cluster, clients: Clients, fault: Fault, target: str, source: str
) -> AsyncGenerator[None]:
    if fault.what in HARMS:
        harm = Harm(source, target, fault.what, float(fault.amount or 0))
        cluster.network.begin(harm)
        try:
            yield
        finally:
            cluster.network.end(harm)
    elif fault.what == "clock":
        clients.set_clock(target, fault.amount)
        yield
    elif fault.what == "kill":
        await asyncio.to_thread(cluster.kill, target)
        yield
        if target not in cluster.clients:
            cluster.start(target)
    else:
        cluster.suspend(target)
        yield
        cluster.go_on(target)
