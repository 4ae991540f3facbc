"""What metadata may hold, and RFC 7396 merges: in Python, and the same by the database."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient

from api_harness.servers import Document
from state_tracking_api import metadata
from state_tracking_api.errors import InvalidRequest

NOTHING_RESERVED: frozenset[str] = frozenset()

# RFC 7396, appendix A: original, patch, result; those whose target or patch is an object.
APPENDIX: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "expected"), APPENDIX)
def test_merges_are_those_of_the_rfc(target: Any, patch: Any, expected: Any) -> None:
    assert metadata.merge(target, patch) == expected


def test_a_merge_leaves_its_target_as_it_was() -> None:
    target = {"a": {"b": 1}}
    metadata.merge(target, {"a": {"b": 2}})
    assert target == {"a": {"b": 1}}


# Names that mean something to the database when they stand in the wrong place.
names = st.sampled_from(["a", "b", "$where", "$set", "x.y", "", "$$NOW", "$ref", "ä", "_id"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "$session_id", "$$ROOT", "\0", "text"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=4)


@given(target=objects, patch=objects)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_database_merges_as_the_function_does(
    mongo: MongoClient[Document], target: dict[str, Any], patch: dict[str, Any]
) -> None:
    if not metadata.fits_expression(patch):
        return
    collection = mongo["test-metadata-merge"]["merges"]
    collection.replace_one({"_id": 1}, {"_id": 1, "metadata": target}, upsert=True)
    stored = collection.find_one_and_update(
        {"_id": 1}, [{"$set": {"metadata": metadata.merge_expression(patch)}}], return_document=True
    )
    assert stored is not None
    assert metadata.normalised(stored["metadata"]) == metadata.merge(target, patch)


@given(target=objects)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_stored_comes_back_as_it_went_in(
    mongo: MongoClient[Document], target: dict[str, Any]
) -> None:
    collection = mongo["test-metadata-merge"]["round_trips"]
    collection.replace_one({"_id": 1}, {"_id": 1, "metadata": target}, upsert=True)
    stored = collection.find_one({"_id": 1})
    assert stored is not None
    assert metadata.normalised(stored["metadata"]) == target


def nested(levels: int) -> dict[str, Any]:
    """Objects in one another, `levels` deep."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def test_the_deepest_merge_that_is_left_to_the_database_is_within_its_limits(
    mongo: MongoClient[Document],
) -> None:
    collection = mongo["test-metadata-merge"]["deep"]
    target, patch = nested(20), nested(5)
    assert metadata.fits_expression(patch)
    collection.replace_one({"_id": 1}, {"_id": 1, "metadata": target}, upsert=True)
    collection.update_one({"_id": 1}, [{"$set": {"metadata": metadata.merge_expression(patch)}}])
    assert not metadata.fits_expression(nested(6))


def test_a_merge_whose_expression_would_be_long_is_not_left_to_the_database() -> None:
    # An expression names the long key with each of the objects in it: 12 MB, and more with a longer key.
    patch: dict[str, Any] = {"k" * 1500: {str(number): {} for number in range(3500)}}
    assert len(metadata.encode(patch)) < metadata.MAX_BYTES
    assert not metadata.fits_expression(patch)
    fitting: dict[str, Any] = {"k" * 500: {str(number): {} for number in range(200)}}
    assert metadata.fits_expression(fitting)
    assert len(bson.encode({"": metadata.merge_expression(fitting)})) < 512 * 1024


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a\0b": 1}, "metadata.a\0b"),
        ({"deep": {"n": 2**63}}, "metadata.deep.n"),
        ({"list": [1, float("nan")]}, "metadata.list.1"),
        ({"inf": float("inf")}, "metadata.inf"),
    ],
)
def test_what_cannot_be_stored_is_named(value: dict[str, Any], field: str) -> None:
    assert [problem["field"] for problem in metadata.problems(value, NOTHING_RESERVED)] == [field]


def test_twenty_levels_pass_and_twenty_one_do_not() -> None:
    assert metadata.problems(nested(20), NOTHING_RESERVED) == []
    assert len(metadata.problems(nested(21), NOTHING_RESERVED)) == 1


def test_a_list_counts_as_a_level() -> None:
    lists: list[Any] = []
    for _ in range(18):
        lists = [lists]
    assert metadata.problems({"a": lists}, NOTHING_RESERVED) == []
    assert metadata.problems({"a": [lists]}, NOTHING_RESERVED) != []


def test_the_size_is_that_of_the_json() -> None:
    filler = "x" * (metadata.MAX_BYTES - len('{"a":""}'))
    assert metadata.problems({"a": filler}, NOTHING_RESERVED) == []
    assert metadata.problems({"a": filler + "x"}, NOTHING_RESERVED) != []


def test_a_merge_that_grows_too_large_is_refused_by_name() -> None:
    half = "x" * (metadata.MAX_BYTES // 2)
    with pytest.raises(InvalidRequest) as refused:
        metadata.checked_merge({"a": half}, {"b": half})
    assert refused.value.extra["errors"][0]["field"] == "metadata"


def test_the_servers_own_keys_do_not_count_towards_the_size() -> None:
    message = "x" * metadata.MAX_BYTES
    assert metadata.checked_merge({"error_message": message}, {"a": 1})["a"] == 1
