"""The route class of every endpoint, and the router that collects them: FastAPI's way of writing them.

FastAPI itself reads them for the document only: its dependency solver and response-model pass cost more than
all the rest of a request, and importing it two fifths of a start (docs/decisions/0002-lean-routes.md). A
route here takes its parameters apart once, when it is made. A request then costs one validation of its body
or query.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypedDict, Unpack, cast, get_args, get_type_hints
from urllib.parse import parse_qsl

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.responses import Response
from starlette.routing import compile_path

from state_tracking_api import metadata
from state_tracking_api.errors import FieldError, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from state_tracking_api.http.call import Call
from state_tracking_api.http.models import NOT_BLANK, UUID4

MAX_BODY_BYTES = 1024 * 1024

Endpoint = Callable[..., Awaitable[Any]]
Decorator = Callable[[Endpoint], Endpoint]
Validator = Callable[[], TypeAdapter[Any]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class ClientDisconnected(Exception):
    """The client went away before its request was read."""


class RequestModel(BaseModel):
    """A request body: strict about types, and it knows its fields."""

    model_config = {"extra": "forbid", "strict": True, "frozen": True, "defer_build": True}


class QueryModel(BaseModel):
    """The query parameters of a route; a mistyped filter must not return everything."""

    model_config = {"extra": "forbid", "frozen": True, "defer_build": True}


class Options(TypedDict, total=False):
    """What a route may be given beside its path and endpoint, in FastAPI's words."""

    tags: Sequence[str]
    status_code: int
    include_in_schema: bool
    # For the document alone.
    summary: str
    response_model: Any
    responses: Mapping[int | str, Any]
    response_class: type[Response]


class LeanRoute:
    """An endpoint whose parameters are: the call, path parameters, one query model, one body model.

    Which is which tell the names in the path and the types: a QueryModel is the query, what is left the body.
    """

    def __init__(
        self, path: str, endpoint: Endpoint, *, methods: Sequence[str] = ("GET",), **options: Unpack[Options]
    ) -> None:
        """Take apart what requests need. A validator waits for its first use: all of them would cost a start.

        Raises TypeError where the parameters are not as above.
        """
        tags = options.get("tags", ())
        self.path, self.endpoint, self.tags = path, endpoint, tuple(tags)
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)
        self.methods = frozenset(methods)
        self.answers_with = options.get("status_code", 200)
        self.include_in_schema = options.get("include_in_schema", True)
        self.options = options
        self.needs_database = path.startswith("/api/") and "public" not in tags
        self.hints = get_type_hints(endpoint, include_extras=True)
        self._call: str | None = None
        self._paths: list[str] = []
        self._query: tuple[str, Validator] | None = None
        self._body: tuple[str, Validator, bool, frozenset[str]] | None = None
        for name, parameter in inspect.signature(endpoint).parameters.items():
            hint = self.hints[name]
            if hint is Call:
                self._call = name
            elif name in self.param_convertors:
                self._paths.append(name)
            elif is_query(hint):
                self._query = (name, _validator(hint))
            elif self._body is not None:
                raise TypeError(f"{path}: {name} is a second body")
            else:
                optional = parameter.default is not inspect.Parameter.empty
                self._body = (name, _validator(hint), optional, _reserved_keys(hint))
        if set(self._paths) != self.param_convertors.keys():
            raise TypeError(f"{path}: not every name in it is a parameter")

    async def answer(
        self,
        call: Call,
        path: Mapping[str, str],
        query: bytes,
        headers: Mapping[bytes, bytes],
        receive: Receive,
    ) -> Any:
        """Read the request, run the endpoint, return what it returns.

        Raises InvalidRequest with every failing field, PayloadTooLarge or UnsupportedMediaType.
        """
        arguments: dict[str, Any] = {name: path[name] for name in self._paths}
        if self._call is not None:
            arguments[self._call] = call
        if self._query is not None:
            arguments[self._query[0]] = _read_query(query, self._query[1]())
        elif query:
            _refuse_query(query)
        if self._body is not None:
            name, validator, optional, reserved = self._body
            raw = await read_body(receive, headers)
            if raw or not optional:
                arguments[name] = _read_body(raw, headers, validator(), reserved)
        elif b"content-length" in headers or b"transfer-encoding" in headers:
            raw = await read_body(receive, headers)
            if raw:
                _read_body(raw, headers, _nothing(), frozenset())
        if self.needs_database:
            return await call.storage.through(lambda: self.endpoint(**arguments))
        return await self.endpoint(**arguments)


class Router:
    """Collects routes by decorators: `@router.get(path, …)` takes what LeanRoute takes."""

    def __init__(self, route_class: type[LeanRoute] = LeanRoute, **common: Unpack[Options]) -> None:
        """Routes of this class; `common` is what all of them are given, a route's own `tags` come on top."""
        self.routes: list[LeanRoute] = []
        self._route_class = route_class
        self._common = common

    def get(self, path: str, **options: Unpack[Options]) -> Decorator:
        """A route that reads."""
        return self._route("GET", path, options)

    def post(self, path: str, **options: Unpack[Options]) -> Decorator:
        """A route that makes something, or does it."""
        return self._route("POST", path, options)

    def patch(self, path: str, **options: Unpack[Options]) -> Decorator:
        """A route that changes something."""
        return self._route("PATCH", path, options)

    def delete(self, path: str, **options: Unpack[Options]) -> Decorator:
        """A route that deletes."""
        return self._route("DELETE", path, options)

    def _route(self, method: str, path: str, options: Options) -> Decorator:
        tags = (*self._common.get("tags", ()), *options.get("tags", ()))

        def add(endpoint: Endpoint) -> Endpoint:
            given: Options = {**self._common, **options, "tags": tags}
            self.routes.append(self._route_class(path, endpoint, methods=(method,), **given))
            return endpoint

        return add


def is_query(hint: Any) -> bool:
    """Whether a parameter of this type is the route's query."""
    return isinstance(hint, type) and issubclass(hint, QueryModel)


def _validator(hint: Any) -> Validator:
    """A function that makes the validator when it is first called, and keeps it."""
    return cache(lambda: TypeAdapter(hint))


_nothing = _validator(RequestModel)


def _reserved_keys(hint: Any) -> frozenset[str]:
    """Keys of `metadata` that clients may not send, as the body's model says."""
    reserved = getattr(hint, "reserved_metadata", None)
    if reserved is not None:
        return cast("frozenset[str]", reserved)
    # Model | None: the model is one of the parts.
    return frozenset[str]().union(*(_reserved_keys(inner) for inner in get_args(hint)))


async def read_body(receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
    """The whole body; raises PayloadTooLarge as soon as it is known to be over 1 MiB."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = [body]
        size = len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                raise _too_large()
        body = b"".join(parts)
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    return body


def _too_large() -> PayloadTooLarge:
    # What was not read of the body must not be taken for the next request.
    return PayloadTooLarge(
        f"The body must be at most {MAX_BODY_BYTES} bytes", headers={"Connection": "close"}
    )


def _read_body(
    raw: bytes, headers: Mapping[bytes, bytes], adapter: TypeAdapter[Any], reserved: frozenset[str]
) -> Any:
    if raw and headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise UnsupportedMediaType("The body must be sent as it is, not compressed (no Content-Encoding)")
    content_type = headers.get(b"content-type")
    if content_type and raw:
        media_type = content_type.split(b";", 1)[0].strip().lower()
        if media_type != b"application/json" and not media_type.endswith(b"+json"):
            raise UnsupportedMediaType("The body must be JSON, sent as application/json")
    try:
        parsed = adapter.validate_json(raw or b"{}")
    except ValidationError as error:
        raise InvalidRequest.of_fields(_explained(error, raw, reserved)) from None
    sent = getattr(parsed, "metadata", None)
    if sent:
        found = metadata.problems(sent, reserved)
        if found:
            raise InvalidRequest.of_fields(found)
    return parsed


def _explained(error: ValidationError, raw: bytes, reserved: frozenset[str]) -> list[FieldError]:
    """Every failing field of a body, metadata included, which the model itself does not look into."""
    found = _field_errors(error)
    if any(item["type"] == "json_invalid" for item in error.errors(include_url=False)):
        return _unreadable(raw) or found
    body = from_json(raw or b"{}")
    sent = cast("dict[str, Any]", body).get("metadata") if isinstance(body, dict) else None
    if isinstance(sent, dict):
        found += metadata.problems(cast("dict[str, Any]", sent), reserved)
    return found


_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "list_type": "must be an array",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "string_too_short": "must not be empty",
    "int_parsing_size": "is too large",
}
_PATTERNS = {NOT_BLANK: "must not be blank", UUID4: "must be a UUID v4"}


def _field_errors(error: ValidationError, whole: str = "body") -> list[FieldError]:
    found: list[FieldError] = []
    for item in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"]) or whole
        message = _MESSAGES.get(item["type"]) or _PATTERNS.get(item.get("ctx", {}).get("pattern", ""))
        if message is None:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            message = message.replace("String should", "must").replace("Value should", "must")
            message = message.replace("List should", "must").replace(" after validation", "")
        found.append(FieldError(field=field, message=message))
    return found


class _Huge:
    """Stands for an integer too long to be worth reading."""


def _unreadable(raw: bytes) -> list[FieldError]:
    """What in a body the strict parser refused, where a more lenient one can tell the field."""

    def integer(digits: str) -> Any:
        return int(digits) if len(digits) < 25 else _Huge()

    try:
        body = json.loads(raw, parse_int=integer)
    except (ValueError, RecursionError):
        return []
    found: list[FieldError] = []

    def look(value: Any, path: str) -> None:
        if isinstance(value, str) and _has_lone_surrogate(value):
            found.append(FieldError(field=path, message="must be valid Unicode (it has a lone surrogate)"))
        elif isinstance(value, _Huge):
            found.append(FieldError(field=path, message="must be an integer of at most 64 bits"))
        elif isinstance(value, dict):
            for key, member in cast("dict[str, Any]", value).items():
                readable = key.encode("utf-8", "backslashreplace").decode()
                place = f"{path}.{readable}" if path else readable
                look(key, place)
                look(member, place)
        elif isinstance(value, list):
            for index, member in enumerate(cast("list[Any]", value)):
                look(member, f"{path}.{index}")

    try:
        look(body, "")
    except RecursionError:
        return []
    return found


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _read_query(query: bytes, adapter: TypeAdapter[Any]) -> Any:
    pairs = _pairs(query)
    values = dict(pairs)
    if len(values) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise InvalidRequest.of_fields(
            [FieldError(field=n, message="is given more than once") for n in times if times[n] > 1]
        )
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        found = _field_errors(error, whole="query")
        for item in found:
            if item["message"] == _MESSAGES["extra_forbidden"]:
                item["message"] = "is not a known query parameter"
        raise InvalidRequest.of_fields(found) from None


def _refuse_query(query: bytes) -> None:
    unknown = dict.fromkeys(name for name, _ in _pairs(query))
    if unknown:
        raise InvalidRequest.of_fields(
            [FieldError(field=name or "query", message="is not a known query parameter") for name in unknown]
        )


def _pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)
