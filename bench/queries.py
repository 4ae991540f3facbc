"""What reaches the database, as its own profiler records it, and what it says about each query."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import psutil
from pymongo import MongoClient

import bench_harness
from bench_harness import DATABASE, Request

Document = dict[str, Any]

# What the driver adds to a command: about the connection, the session and the transaction, not the query.
_ENVELOPE = {
    *("lsid", "txnNumber", "autocommit", "startTransaction", "stmtId", "stmtIds", "$clusterTime", "$db"),
    *("$readPreference", "readConcern", "writeConcern", "maxTimeMS", "apiVersion"),
}
_KINDS = ("find", "aggregate", "findAndModify", "update", "insert", "remove", "getMore")
_PROFILER = "system.profile"
_PROFILE_BYTES = 16_000_000
SHOWN = 8
"""So many entries of a list in a command are shown."""


@contextmanager
def recorded(database: Any, by: str = "state-tracking-api") -> Generator[list[Document]]:
    """Record what a client of this name asks of a database; at the end the list has it, in order."""
    found: list[Document] = []
    database.drop_collection(_PROFILER)
    database.create_collection(_PROFILER, capped=True, size=_PROFILE_BYTES)
    database.command("profile", 2)
    try:
        yield found
    finally:
        database.command("profile", 0)
        # The server counts its heartbeats now and then, besides the requests.
        ours = {"appName": by, "ns": {"$ne": f"{database.name}.heartbeat_counts"}}
        entries = database[_PROFILER].find(ours).sort("$natural", 1)
        found += [entry for entry in entries if _kind(entry) in _KINDS]
        database.drop_collection(_PROFILER)


def named(entries: list[Document]) -> list[str]:
    """The recorded commands in few words, such as `find sessions`; sorted, as some are sent at once."""
    return sorted(f"{_kind(entry)} {_collection(entry)}" for entry in entries)


def explained(database: Any, entries: list[Document]) -> list[Document]:
    """For each recorded command what it was, the plan that the database has, and what it looked at."""
    return [_explained(database, entry) for entry in entries]


async def unlike(
    uri: str,
    mongod: psutil.Process,
    port: int,
    asked: Mapping[str, Request],
    targets: Mapping[str, Any],
) -> list[str]:
    """Where a yardstick does other work on the database than the server does: both, in words.

    Without this a change of the server would make the ratio to the driver alone one of two different things.
    """
    found: list[str] = []
    with MongoClient[Document](uri) as client:
        database = client[DATABASE]
        for name, request in asked.items():
            with recorded(database) as by_server:
                await bench_harness.load(port, request, 0.0, 1)
            with recorded(database, by="yardstick") as by_driver:
                await asyncio.to_thread(bench_harness.driver_alone, uri, mongod, name, targets, 0.05, 1)
            if _shares(by_server) != _shares(by_driver):
                found.append(f"{name}: server {_spoken(by_server)}; driver alone {_spoken(by_driver)}")
    return found


def _shares(entries: list[Document]) -> dict[str, float]:
    """How often each command was sent, whatever the number of requests was."""
    counted = Counter(named(entries))
    least = min(counted.values(), default=1)
    return {name: count / least for name, count in counted.items()}


def _spoken(entries: list[Document]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in sorted(_shares(entries).items())) or "nothing"


def _explained(database: Any, entry: Document) -> Document:
    kind, collection = _kind(entry), _collection(entry)
    counts = {"returned": "nreturned", "keys_examined": "keysExamined", "documents_examined": "docsExamined"}
    looked_at = {name: entry[theirs] for name, theirs in counts.items() if theirs in entry}
    if kind in ("insert", "remove", "getMore"):  # no plan, or that of an earlier query
        return {"command": {kind: collection}, **looked_at}
    command = {name: value for name, value in entry["command"].items() if name not in _ENVELOPE}
    if kind == "update":  # recorded by the statement, not by the command
        command = {"update": collection, "updates": [command]}
    said = database.command("explain", command, verbosity="queryPlanner")
    return {"command": _shortened(command), "stages": [*_plans(said)], **looked_at}


def _plans(said: Any) -> Iterator[str]:
    """The stages of each plan that the database tells of; a pipeline may have one for each of its parts."""
    if isinstance(said, Mapping):
        told = cast("Mapping[str, Any]", said)
        if "winningPlan" in told:
            yield from stages(told["winningPlan"])
        for inner in told.values():
            yield from _plans(inner)
    elif isinstance(said, list):
        for inner in cast("list[Any]", said):
            yield from _plans(inner)


def _shortened(value: Any) -> Any:
    """The same without the greater part of long lists, such as five hundred ids."""
    if isinstance(value, Mapping):
        return {name: _shortened(inner) for name, inner in cast("Mapping[str, Any]", value).items()}
    if not isinstance(value, list):
        return value
    some = [_shortened(inner) for inner in cast("list[Any]", value)]
    return some if len(some) <= SHOWN else [*some[:SHOWN], f"and {len(some) - SHOWN} more"]


def stages(plan: Mapping[str, Any]) -> list[str]:
    """The stages of a plan from the outermost in, with the index where one is used."""
    plan = plan.get("queryPlan", plan)
    own = f"{plan['stage']} {plan.get('indexName', '')}".strip()
    inner = [plan["inputStage"]] if "inputStage" in plan else plan.get("inputStages", [])
    return [own, *(stage for one in inner for stage in stages(one))]


def _kind(entry: Document) -> str:
    if entry["op"] in ("insert", "update", "remove", "getmore"):
        return {"getmore": "getMore"}.get(entry["op"], entry["op"])
    known = {kind.lower(): kind for kind in _KINDS}
    return next((known[name.lower()] for name in entry["command"] if name.lower() in known), "other")


def _collection(entry: Document) -> str:
    return entry["ns"].partition(".")[2]
