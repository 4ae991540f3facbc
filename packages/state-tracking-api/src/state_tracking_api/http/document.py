"""The OpenAPI document (3.1): FastAPI's, completed with what is true of every route here.

Imported when the document is first asked for: nothing else needs FastAPI.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from fastapi import Body, Query
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.warnings import UnsupportedFieldAttributeWarning

from state_tracking_api.errors import (
    ApiError,
    Conflict,
    GatewayTimeout,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    ServiceUnavailable,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from state_tracking_api.http.call import Call
from state_tracking_api.http.models import (
    EXAMPLE_SESSION,
    EXAMPLE_SUCCESSOR,
    EXAMPLE_TASK,
    EXAMPLE_TIME,
    UUID4,
)
from state_tracking_api.http.route import LeanRoute, is_query

_SCHEMA = {"$ref": "#/components/schemas/ErrorBody"}
_METHODS_WITH_BODY = frozenset({"post", "patch", "put", "delete"})

_CLASSES: dict[int, type[ApiError]] = {
    kind.status: kind
    for kind in (
        InvalidRequest,
        Unauthorized,
        NotFound,
        Conflict,
        PayloadTooLarge,
        UnsupportedMediaType,
        TooManyRequests,
        ApiError,
        ServiceUnavailable,
        GatewayTimeout,
    )
}
_MESSAGES: dict[int, str] = {
    400: "Validation failed: project_id",
    401: "API key required",
    404: f"Session {EXAMPLE_SESSION} does not exist",
    409: f"Session {EXAMPLE_SESSION} has been taken over by session {EXAMPLE_SUCCESSOR}",
    413: "The body must be at most 1048576 bytes",
    415: "The body must be JSON, sent as application/json",
    429: "More than 100 requests in a minute with this key",
    500: "Something went wrong here; it has been logged under this request id",
    503: "The database is away; try again later",
    504: "The request took longer than 29 seconds",
}
_EXTRA: dict[int, dict[str, Any]] = {
    400: {"errors": [{"field": "project_id", "message": "is required"}]},
    409: {"recovered_by": EXAMPLE_SUCCESSOR},
}
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "Id of this request, in every log line about it",
        "schema": {"type": "string", "format": "uuid"},
    },
    "X-RateLimit-Limit": {"description": "Requests allowed per window", "schema": {"type": "integer"}},
    "X-RateLimit-Remaining": {"description": "Requests left in this window", "schema": {"type": "integer"}},
    "X-RateLimit-Reset": {
        "description": "When the window ends, in seconds since the epoch",
        "schema": {"type": "integer"},
    },
    "Retry-After": {"description": "Seconds to wait before trying again", "schema": {"type": "integer"}},
    "Allow": {"description": "Methods that are allowed here", "schema": {"type": "string"}},
}
_LIMITS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


def build(
    routes: Iterable[LeanRoute], *, title: str, version: str, summary: str, description: str
) -> dict[str, Any]:
    """The document of these routes."""
    with warnings.catch_warnings():
        # FastAPI silences it where it makes validators; those of models that are built late are made here.
        warnings.simplefilter("ignore", UnsupportedFieldAttributeWarning)
        document = get_openapi(
            title=title,
            version=version,
            openapi_version="3.1.0",
            summary=summary,
            description=description,
            routes=[_as_fastapi_has_it(route) for route in routes],
        )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "ApiKey": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "A UUID v4 that is listed in API_KEYS",
        }
    }
    components["headers"] = _HEADERS
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
            for content in _contents(operation):
                content.setdefault("example", _example(content["schema"], schemas))
    return document


def _as_fastapi_has_it(route: LeanRoute) -> APIRoute:
    """A route of FastAPI's with the same signature, whose parameters are marked as FastAPI knows them."""
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(route.endpoint).parameters.items():
        hint = route.hints[name]
        if hint is Call:
            continue
        if name not in route.param_convertors:
            hint = Annotated[hint, Query() if is_query(hint) else Body()]
        parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    def endpoint() -> None: ...

    endpoint.__name__, endpoint.__doc__ = route.endpoint.__name__, route.endpoint.__doc__
    endpoint.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    options: dict[str, Any] = {**route.options, "tags": list(route.tags), "status_code": route.answers_with}
    return APIRoute(route.path, endpoint, methods=list(route.methods), **options)


def _contents(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON body of an operation and of each of its answers."""
    for holder in (operation.get("requestBody", {}), *operation["responses"].values()):
        content = holder.get("content", {}).get("application/json")
        if content is not None:
            yield content


_PLAIN: dict[str, Any] = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "null": None}
_NAMED = {
    "project_id": "PVT_kwDOABCD",
    "machine_id": "build-host-1",
    "new_machine_id": "build-host-2",
    "hostname": "build-host-1.local",
    "current_task_id": EXAMPLE_TASK,
    "task_id": EXAMPLE_TASK,
    "task_name": "Write the parser",
    "github_issue_id": "I_kwDOABCD42",
    "error_message": "exit code 1: tests failed",
}
_FORMATS = {"date-time": EXAMPLE_TIME, "uuid": EXAMPLE_SESSION}


def _example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:  # noqa: PLR0911 - a line per kind
    """An example of a schema, put together from those of its parts."""
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "examples" in schema:
        return schema["examples"][0]
    for given in ("const", "default"):
        if schema.get(given) is not None:
            return schema[given]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], schemas)
    kind = schema.get("type")
    if kind == "object":
        parts = schema.get("properties", {}).items()
        return {name: _NAMED.get(name) or _example(part, schemas) for name, part in parts}
    if kind == "array":
        return [_example(schema["items"], schemas)]
    if kind == "string" and "format" in schema:
        return _FORMATS.get(schema["format"], "text")
    if kind == "string" and "pattern" in schema and schema["pattern"] == UUID4:
        return EXAMPLE_SESSION
    if kind == "integer":
        return int(schema.get("minimum", 1))
    return _PLAIN.get(str(kind), {})


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    public = "public" in operation.get("tags", [])
    declared = {int(status) for status in responses if int(status) >= 400}
    declared.add(400)  # an unknown query parameter
    declared.add(500)
    if not public:
        operation["security"] = [{"ApiKey": []}]
        declared |= {401, 429, 503, 504}
    if method in _METHODS_WITH_BODY:
        declared |= {413, 415}
    for status in sorted(declared):
        given = responses.get(str(status), {})
        if (
            given
            and "application/json" in given.get("content", {})
            and given["content"]["application/json"].get("schema") != _SCHEMA
        ):
            continue  # an error answer with a body of its own
        responses[str(status)] = _error(status, path)
    for status, response in responses.items():
        names = ["X-Request-Id"]
        if not public and status != "401":
            names += _LIMITS
        if status in ("429", "503"):
            names.append("Retry-After")
        response["headers"] = {
            **{name: {"$ref": f"#/components/headers/{name}"} for name in names},
            **response.get("headers", {}),
        }
    operation["responses"] = dict(sorted(responses.items()))


def _error(status: int, path: str) -> dict[str, Any]:
    example = {
        "statusCode": status,
        "error": _CLASSES[status].title,
        "message": _MESSAGES[status],
        "timestamp": EXAMPLE_TIME,
        "path": path.replace("{session_id}", EXAMPLE_SESSION),
        "request_id": "a3bb189e-8bf9-4888-9912-ace4e6543002",
        **_EXTRA.get(status, {}),
    }
    return {
        "description": _CLASSES[status].title,
        "content": {"application/json": {"schema": _SCHEMA, "example": example}},
    }
