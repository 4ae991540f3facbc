"""From path and method to route, and from what the endpoint returns to the wire."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import datetime
from typing import Any

import pymongo

from state_tracking_api import log
from state_tracking_api.clock import iso
from state_tracking_api.errors import ApiError, GatewayTimeout, MethodNotAllowed, NotFound
from state_tracking_api.http.call import SCOPE_KEY, Answer, Call, Headers, encode
from state_tracking_api.http.route import LeanRoute

_JSON = (b"content-type", b"application/json")


class Dispatcher:
    """The innermost ASGI application: finds the route, runs it within the time limit, sends its answer."""

    def __init__(
        self, routes: Iterable[LeanRoute], timeout_seconds: float, query_timeout_seconds: float
    ) -> None:
        self._exact: dict[str, dict[str, LeanRoute]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, LeanRoute]]] = []
        self._timeout = timeout_seconds
        # Cancelling a request does not end a write that waits in the database; only its deadline there does.
        self._hurries_queries = timeout_seconds < query_timeout_seconds
        by_path: dict[str, dict[str, LeanRoute]] = {}
        for route in routes:
            methods = by_path.setdefault(route.path, {})
            methods.update(dict.fromkeys(route.methods, route))
            if not route.param_convertors:
                self._exact[route.path] = methods
            elif len(methods) == len(route.methods):
                self._patterns.append((route.path_regex, methods))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request; raises ApiError, which the layers around render."""
        call: Call = scope[SCOPE_KEY]
        route, parameters = self._find(scope["path"], scope["method"])
        call.endpoint = route.path_format
        log.bind(endpoint=call.endpoint)
        log.bind_ids(parameters)
        headers = dict(scope["headers"])
        call.accept = headers.get(b"accept", b"").decode("latin-1")
        try:
            async with asyncio.timeout(self._timeout):
                with pymongo.timeout(self._timeout) if self._hurries_queries else nullcontext():
                    result = await route.answer(call, parameters, scope["query_string"], headers, receive)
        except TimeoutError:
            raise GatewayTimeout(f"The request took longer than {self._timeout:g} seconds") from None
        await send_answer(result, route.answers_with, send)

    def _find(self, path: str, method: str) -> tuple[LeanRoute, dict[str, str]]:
        methods = self._exact.get(path)
        parameters: dict[str, str] = {}
        if methods is None:
            for pattern, candidates in self._patterns:
                matched = pattern.fullmatch(path)
                if matched is not None:
                    methods, parameters = candidates, matched.groupdict()
                    break
            else:
                raise NotFound(f"There is nothing at {path}")
        # What GET would answer without its body, which the server leaves out (RFC 9110, section 9.3.2).
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(sorted({*methods, *(("HEAD",) if "GET" in methods else ())}))
            raise MethodNotAllowed(
                f"{method} is not allowed here; allowed: {allowed}", headers={"Allow": allowed}
            )
        return route, parameters


async def send_answer(result: Any, status: int, send: Any) -> None:
    """Send what an endpoint returned: an Answer, nothing (204), or something to be encoded as JSON."""
    if isinstance(result, Answer):
        body = result.body if isinstance(result.body, bytes) else encode(result.body)
        headers = [(b"content-type", result.media_type), *result.headers]
        status = result.status
    elif status == 204:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        return
    else:
        body = encode(result)
        headers: Headers = [_JSON]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(error: ApiError, now: datetime, path: str, request_id: str) -> dict[str, Any]:
    """An error in the PRD's format (5.2)."""
    return {
        "statusCode": error.status,
        "error": error.title,
        "message": error.message,
        "timestamp": iso(now),
        "path": path,
        "request_id": request_id,
        **error.extra,
    }


def rendered(error: ApiError, call: Call, path: str) -> Answer:
    """The answer that an error becomes."""
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()
    ]
    return Answer(error_body(error, call.now, path, call.request_id), error.status, headers)
