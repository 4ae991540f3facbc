"""What goes wrong, and when: a list of faults that a seed alone decides.

A fault names roles (`primary`, `server-1`, `run-0`); who plays a role is found out when its time has come. So
a seed always gives the same faults at the same times; what they hit in the flow of the processes cannot be
repeated to the microsecond.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Draw = Callable[[random.Random, "Scene"], "Fault"]


@dataclass(frozen=True)
class Scene:
    """Who there is."""

    servers: Sequence[str]
    clients: Sequence[str]
    clocked: Sequence[str]
    """The clients whose wall clock can be set."""


@dataclass(frozen=True)
class Fault:
    """`what` happens at `at` seconds for `seconds` to `target`, or on the way there from `source`.

    `amount` is the delay of a slow network in seconds, or the error of a clock as libfaketime writes it.
    """

    at: float
    seconds: float
    what: str
    target: str
    source: str = ""
    amount: str = ""

    def __str__(self) -> str:
        way = f"{self.source} → {self.target}" if self.source else self.target
        return f"{self.at:6.2f} s  {self.what:11} {way}  {self.amount}  for {self.seconds:.2f} s"


def schedule(seed: int, seconds: float, scene: Scene, gap: float = 0.8) -> list[Fault]:
    """The faults of one round, about one each `gap` seconds, all over after `seconds`.

    Every kind has its turn before one comes again.
    """
    rng = random.Random(seed)
    faults: list[Fault] = []
    deck: list[Draw] = []
    now = rng.uniform(0.2, gap)
    while now < seconds - 0.5:
        if not deck:
            deck = list(KINDS)
            rng.shuffle(deck)
        drawn = deck.pop()(rng, scene)
        lasts = min(drawn.seconds, seconds - now)
        faults.append(Fault(round(now, 2), round(lasts, 2), *_rest(drawn)))
        now += rng.expovariate(1 / gap)
    return faults


def _rest(fault: Fault) -> tuple[str, str, str, str]:
    return fault.what, fault.target, fault.source, fault.amount


def _of_process(what: str, role: str, low: float, high: float) -> Draw:
    def draw(rng: random.Random, scene: Scene) -> Fault:
        people = {"server": scene.servers, "client": scene.clients}.get(role, (role,))
        return Fault(0, rng.uniform(low, high), what, rng.choice(people))

    return draw


def _of_network(what: str, source: str, target: str, low: float, high: float) -> Draw:
    def draw(rng: random.Random, scene: Scene) -> Fault:
        people = {"server": scene.servers, "client": scene.clients}
        start, end = (rng.choice(people.get(role, (role,))) for role in (source, target))
        amount = f"{rng.uniform(0.02, 0.4):.2f}" if what == "slow" else ""
        return Fault(0, rng.uniform(low, high), what, end, start, amount)

    return draw


def _of_clock(rng: random.Random, scene: Scene) -> Fault:
    error = rng.choice(("-3600", "+7200", "-86400", "+400d", "-10y", "+30", "-30"))
    return Fault(0, 60.0, "clock", rng.choice(scene.clocked), amount=error)


KINDS: tuple[Draw, ...] = (
    _of_process("kill", "server", 0.1, 2.0),
    _of_process("kill", "primary", 0.5, 4.0),
    _of_process("kill", "secondary", 0.5, 4.0),
    _of_process("kill", "client", 0.1, 1.0),
    _of_process("kill", "client", 0.1, 1.0),
    _of_process("suspend", "server", 0.5, 6.0),
    _of_process("suspend", "server", 0.5, 6.0),
    _of_process("suspend", "primary", 1.0, 6.0),
    _of_process("suspend", "secondary", 0.5, 4.0),
    _of_process("suspend", "client", 1.0, 7.0),
    _of_process("suspend", "client", 1.0, 7.0),
    _of_network("cut", "client", "*", 0.5, 6.0),
    _of_network("hang", "client", "*", 0.5, 6.0),
    _of_network("slow", "client", "*", 1.0, 5.0),
    _of_network("deaf", "client", "*", 0.2, 3.0),
    _of_network("half_open", "client", "*", 0.5, 4.0),
    _of_network("half_closed", "client", "*", 0.5, 4.0),
    _of_network("deaf", "*", "server", 0.2, 2.0),
    _of_network("cut", "server", "primary", 0.5, 4.0),
    _of_network("hang", "server", "primary", 0.5, 5.0),
    _of_network("slow", "server", "mongo-*", 1.0, 4.0),
    _of_network("deaf", "server", "primary", 0.2, 3.0),
    _of_network("half_closed", "server", "primary", 0.5, 3.0),
    _of_network("hang", "mongo-*", "primary", 1.0, 6.0),
    _of_network("cut", "*", "primary", 1.0, 5.0),
    _of_network("cut", "primary", "mongo-*", 1.0, 5.0),
    _of_network("slow", "mongo-*", "mongo-*", 1.0, 4.0),
    _of_clock,
    _of_clock,
)
