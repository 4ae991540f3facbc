"""Metadata: what it may hold, and RFC 7396 merges, in Python and as an expression of the database.

Keys and values are data, whatever characters they hold. So they never stand where the database reads field
paths or operators: not in a filter, not as a key of `$set`, only inside `$literal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec
from bson import DBRef

from state_tracking_api.errors import FieldError, InvalidRequest

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
INT64 = range(-(2**63), 2**63)

SESSION_KEYS = frozenset(
    {
        "archived",
        "archived_at",
        "error_message",
        "recovery_prepared_at",
        "recovered_at",
        "recovered_by",
        "recovered_from",
    }
)
TASK_KEYS = frozenset({"recovered_from_task", "carried_to"})

# A merge of more nested objects than this is done in Python: the expression for it would come near the depth
# that the database allows for a command.
_MAX_EXPRESSION_DEPTH = 5
# So is one whose expression would be long: each object's names the keys of all that it lies in, twice.
_MAX_EXPRESSION_BYTES = 512 * 1024
# What the operators around a key, and around an object, take about.
_KEY_BYTES = 80
_OBJECT_BYTES = 300

Json = dict[str, Any]


def _plain(value: Any) -> Any:
    """What BSON's decoder made of JSON data, as JSON data again."""
    if isinstance(value, int):  # bson.Int64
        return int(value)
    if isinstance(value, DBRef):  # an object with the keys $ref and $id is read as one
        return dict(value.as_doc())
    raise TypeError(f"{type(value).__name__} in metadata")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
encode = _encoder.encode


def normalised(metadata: Any) -> Json:
    """Metadata read from the database as plain JSON data."""
    return cast("Json", msgspec.json.decode(_encoder.encode(metadata)))


def stored_in(document: Mapping[str, Any]) -> Json:
    """The metadata of a document as it was read; what is in it may still be of types of BSON's decoder."""
    stored = document.get("metadata", {})
    return _plain(stored) if isinstance(stored, DBRef) else stored


def problems(
    metadata: Mapping[str, Any], reserved: frozenset[str], field: str = "metadata"
) -> list[FieldError]:
    """What is wrong with metadata that a client sent; empty where nothing is."""
    found = [
        FieldError(field=f"{field}.{key}", message="is set by the server only")
        for key in metadata
        if key in reserved
    ]
    found += _unstorable(metadata, field, 1)
    if not found and len(encode(metadata)) > MAX_BYTES:
        found.append(FieldError(field=field, message=f"must be at most {MAX_BYTES} bytes as JSON"))
    return found


def _unstorable(value: Any, path: str, depth: int) -> Iterator[FieldError]:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if depth > MAX_DEPTH:
            yield FieldError(field=path, message=f"must not be nested more than {MAX_DEPTH} levels deep")
            return
        for key, member in members.items():
            if "\0" in key:
                yield FieldError(field=f"{path}.{key}", message="a key must not contain a NUL character")
            yield from _unstorable(member, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        if depth > MAX_DEPTH:
            yield FieldError(field=path, message=f"must not be nested more than {MAX_DEPTH} levels deep")
            return
        for index, member in enumerate(cast("list[Any]", value)):
            yield from _unstorable(member, f"{path}.{index}", depth + 1)
    elif isinstance(value, int) and value not in INT64:
        yield FieldError(field=path, message="must be an integer of at most 64 bits")
    elif isinstance(value, float) and value - value != 0.0:
        yield FieldError(field=path, message="must be a finite number")


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2: objects merge, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged: Json = dict(cast("Json", target)) if isinstance(target, dict) else {}
    for key, value in cast("Json", patch).items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def client_bytes(metadata: Mapping[str, Any]) -> int:
    """Size of metadata as JSON, without the server's own keys: those are not the client's fault."""
    return len(encode({key: value for key, value in metadata.items() if key not in SESSION_KEYS | TASK_KEYS}))


def checked_merge(target: Json, patch: Json) -> Json:
    """`target` merged with `patch`; raises InvalidRequest where the result is too large."""
    merged = cast("Json", merge(target, patch))
    size = client_bytes(merged)
    if size > MAX_BYTES:
        message = f"would be {size} bytes as JSON after merging, at most {MAX_BYTES} are allowed"
        raise InvalidRequest.of_field("metadata", message)
    return merged


def merged_into(document: Mapping[str, Any], patch: Json) -> Json:
    """The metadata of a document as it was read, merged with `patch`; InvalidRequest where too large."""
    return checked_merge(normalised(document.get("metadata", {})), patch)


def fits_expression(patch: Json) -> bool:
    """Whether `merge_expression` can do this merge."""
    return _expression_bytes(patch, 1, _KEY_BYTES) <= _MAX_EXPRESSION_BYTES


def _expression_bytes(patch: Json, depth: int, target: int) -> int:
    # Without the values, which are as long as the patch at most.
    if depth > _MAX_EXPRESSION_DEPTH:
        return _MAX_EXPRESSION_BYTES + 1
    size = _OBJECT_BYTES + 2 * target
    for key, value in patch.items():
        if isinstance(value, dict) and size <= _MAX_EXPRESSION_BYTES:
            named = len(key.encode()) + _KEY_BYTES
            size += named + _expression_bytes(cast("Json", value), depth + 1, target + named)
    return size


def merge_expression(patch: Json, target: Any = "$metadata") -> Json:
    """An aggregation expression that evaluates to `target` merged with `patch` (RFC 7396)."""
    empty: Json = {}
    base: Any = {"$cond": [{"$eq": [{"$type": target}, "object"]}, target, {"$literal": empty}]}
    removed = [key for key, value in patch.items() if value is None]
    if removed:
        kept = {"$not": [{"$in": ["$$this.k", {"$literal": removed}]}]}
        base = {"$arrayToObject": {"$filter": {"input": {"$objectToArray": base}, "cond": kept}}}
    parts: list[Any] = [base]
    replaced = {
        key: value for key, value in patch.items() if value is not None and not isinstance(value, dict)
    }
    if replaced:
        parts.append({"$literal": replaced})
    nested = [
        {
            "k": {"$literal": key},
            "v": merge_expression(
                cast("Json", value), {"$getField": {"field": {"$literal": key}, "input": target}}
            ),
        }
        for key, value in patch.items()
        if isinstance(value, dict)
    ]
    if nested:
        parts.append({"$arrayToObject": [nested]})
    return {"$mergeObjects": parts}
