"""Whether two processes ever owned the same work: what was really done, held against what each could know.

A process writes down when it begins a piece of work and when it has done it (`Work.effects`), and for which
session. Two processes may be at work at the same time in one case only, which docs/RELIABILITY.md does not
promise to prevent: the older one was not heard of for as long as makes a session stalled, its session was
recovered, and it has not been told yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from fault_harness.clients import Attempt, Work
from fault_harness.history import Operation

THRESHOLD = 3.0
"""Seconds of silence until a session is stalled."""
SLACK_SECONDS = 0.02
"""Effects are written with two decimals."""
_PATIENCE = 5.0
"""An answer that took longer may be one that its process no longer waited for."""
_UNDER_WAY = 1.0
"""Told, a process may still begin the piece that it was about to; anything else after this is wrong."""


@dataclass
class Piece:
    """A piece of work that an attempt did; `end` is its beginning where nothing is known of its end."""

    item: str
    attempt: str
    session: str
    begin: float
    end: float

    def __str__(self) -> str:
        return f"{self.attempt} did {self.item} for session {self.session} at {self.begin:.2f}-{self.end:.2f}"


@dataclass
class Contacts:
    """What was said about one session: heartbeats, what refused them, and its recovery."""

    beats: list[Operation]
    refusals: list[Operation]
    recoveries: list[Operation]

    def heard_all_along(self) -> bool:
        """Whether the API never had reason to call the session silent before it was recovered."""
        taken = min(self.recoveries, key=lambda one: one.asked)
        beats = [
            one for one in self.beats if taken.asked - 10 < one.asked and (one.answered or 0) < taken.asked
        ]
        moments = [(taken.asked - 10, taken.asked - 10)]
        moments += [(one.asked, one.answered or one.asked) for one in beats]
        moments.append((taken.asked, taken.answered or taken.asked))
        return all(after[1] - before[0] < THRESHOLD for before, after in pairwise(moments))


def two_owners(
    work: Work, contacts: defaultdict[str, Contacts], parents: dict[str, str | None]
) -> Iterable[str]:
    """A sentence for every two pieces that should not have been at the same time or begun at all.

    `parents` says from which session each was recovered.
    """
    pieces = pieces_of(work.effects())
    for one, other in at_once(pieces):
        if "-" in (one.session, other.session):
            continue  # begun without the API: nobody could be told anything
        both = f"{work.project}: {one}, and {other}"
        if one.session == other.session:
            yield f"{both}: one session, two owners"
            continue
        older = _older(one.session, other.session, parents)
        if older is None:
            yield f"{both}: neither session goes on from the other"
        elif contacts[older].recoveries and contacts[older].heard_all_along():
            yield f"{both}: session {older} was recovered though it was heard of all along"
    for attempt in work.attempts:
        yield from _goes_on(work, attempt, [one for one in pieces if one.attempt == attempt.name], contacts)


def at_once(pieces: list[Piece]) -> list[tuple[Piece, Piece]]:
    """Pieces of different attempts that overlap."""
    return [
        (one, other)
        for one, other in combinations(pieces, 2)
        if one.attempt != other.attempt
        and one.end >= other.begin + SLACK_SECONDS
        and other.end >= one.begin + SLACK_SECONDS
    ]


def pieces_of(effects: Sequence[tuple[str, str, str, str, float]]) -> list[Piece]:
    """Beginnings and ends put together."""
    found: list[Piece] = []
    open_: dict[tuple[str, str, str], Piece] = {}
    for what, item, attempt, session, at in effects:
        if what == "begin":
            open_[item, attempt, session] = piece = Piece(item, attempt, session, at, at)
            found.append(piece)
        elif (item, attempt, session) in open_:
            open_.pop((item, attempt, session)).end = at
    return found


def _older(one: str, other: str, parents: dict[str, str | None]) -> str | None:
    """Which of two sessions the other one goes on from."""
    for older, younger in ((one, other), (other, one)):
        at: str | None = younger
        while at is not None:
            at = parents.get(at)
            if at == older:
                return older
    return None


def _goes_on(
    work: Work, attempt: Attempt, pieces: list[Piece], contacts: defaultdict[str, Contacts]
) -> Iterable[str]:
    """Whether a process that was told that its session is another's went on with it all the same."""
    client = attempt.name.partition("#")[0]
    for session in {one.session for one in pieces}:
        told = min(
            (
                one.handed
                for one in contacts[session].refusals
                if one.client == client and one.handed is not None and one.handed - one.asked < _PATIENCE
                if attempt.began <= one.asked <= (attempt.ended or one.asked)
            ),
            default=None,
        )
        after = [one for one in pieces if one.session == session and told is not None and one.begin > told]
        for one in after[1:]:
            if told is not None and one.begin > told + _UNDER_WAY:
                yield f"{work.project}: {one}, and had been told at {told:.2f} that it is another's"
