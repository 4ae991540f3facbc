"""The rule that nobody works on what is another's finds who does, and lets pass what is not promised."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from fault_harness.clients import Attempt, Work
from fault_harness.history import Operation
from fault_harness.owners import Contacts, two_owners

PARENTS = {"old": None, "new": "old", "other": None}


def said(path: str, asked: float, status: int = 200, *, handed: bool = True) -> Operation:
    """What the old owner said, and was answered a tenth of a second later."""
    answered = asked + 0.1
    return Operation(
        *(0, "here", "server-0", "POST", path, None, asked, answered, status, {}),
        answered if handed else None,
    )


def found(
    tmp_path: Path,
    effects: list[tuple[str, str, str, float, float]],
    *,
    beats: list[float],
    recovered: float,
    refused: list[Operation] | None = None,
) -> list[str]:
    """What the rule says of pieces of work (attempt, item, session, begin, end; end 0: it has none)."""
    lines = [(begin, f"begin {item} {who} {where} {begin}") for who, item, where, begin, _ in effects]
    lines += [(end, f"end {item} {who} {where} {end}") for who, item, where, _, end in effects if end]
    (tmp_path / "effects").write_text("\n".join(line for _, line in sorted(lines)))
    work = Work("project", "run", ["a", "b"], tmp_path)
    work.attempts = [Attempt("here#0", "run", "here", 0), Attempt("there#1", "resume", "there", 0)]
    contacts = defaultdict[str, Contacts](lambda: Contacts([], [], []))
    contacts["old"] = Contacts(
        [said("heartbeat", at) for at in beats], refused or [], [said("recover", recovered, 201)]
    )
    return list(two_owners(work, contacts, PARENTS))


BOTH_AT_ONCE = [("here#0", "a", "old", 20.0, 20.6), ("there#1", "a", "new", 20.3, 20.8)]
SILENT_SINCE_15 = [at / 2 for at in range(15, 31)]


def test_who_was_silent_and_has_not_been_told_may_still_be_at_work(tmp_path: Path) -> None:
    assert found(tmp_path, BOTH_AT_ONCE, beats=SILENT_SINCE_15, recovered=19.5) == []


def test_one_after_the_other_is_how_it_should_be(tmp_path: Path) -> None:
    pieces = [("here#0", "a", "old", 18.0, 0), ("there#1", "a", "new", 20.0, 20.5)]
    assert found(tmp_path, pieces, beats=SILENT_SINCE_15, recovered=19.5) == []


def test_a_session_that_was_taken_from_somebody_who_was_heard_is_found(tmp_path: Path) -> None:
    (sentence,) = found(tmp_path, BOTH_AT_ONCE, beats=[at / 2 for at in range(10, 39)], recovered=19.5)
    assert "session old was recovered though it was heard of all along" in sentence


@pytest.mark.parametrize(
    ("session", "why"),
    [("old", "one session, two owners"), ("other", "neither session goes on from the other")],
)
def test_two_at_work_without_a_recovery_between_them_are_found(
    tmp_path: Path, session: str, why: str
) -> None:
    pieces = [("here#0", "a", "old", 20.0, 20.6), ("there#1", "b", session, 20.3, 20.8)]
    (sentence,) = found(tmp_path, pieces, beats=[], recovered=19.5)
    assert why in sentence


GOES_ON = [("here#0", item, "old", 20.0 + number, 20.5 + number) for number, item in enumerate("abc")]


def test_who_goes_on_after_he_was_told_is_found(tmp_path: Path) -> None:
    refused = [said("heartbeat", 19.8, 409)]
    sentences = found(tmp_path, GOES_ON, beats=[], recovered=19.5, refused=refused)
    assert [sentence.partition(",")[0] for sentence in sentences] == [
        f"project: here#0 did {item} for session old at {begin:.2f}-{begin + 0.5:.2f}"
        for item, begin in (("b", 21.0), ("c", 22.0))
    ], "a was under way"


def test_who_was_answered_and_could_not_hear_it_may_go_on(tmp_path: Path) -> None:
    refused = [said("heartbeat", 19.8, 409, handed=False)]
    assert found(tmp_path, GOES_ON, beats=[], recovered=19.5, refused=refused) == []
