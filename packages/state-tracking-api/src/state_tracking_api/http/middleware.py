"""The layers around every route, as plain ASGI: envelope, CORS, errors, guard."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast
from uuid import uuid4

from pymongo.errors import PyMongoError
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from state_tracking_api import log, storage
from state_tracking_api.auth import Keyring, masked
from state_tracking_api.clock import Clock
from state_tracking_api.errors import (
    ApiError,
    FieldError,
    InvalidRequest,
    ServiceUnavailable,
    TooManyRequests,
)
from state_tracking_api.http.call import SCOPE_KEY, Call, Resources
from state_tracking_api.http.dispatch import rendered, send_answer
from state_tracking_api.http.route import ClientDisconnected
from state_tracking_api.ratelimit import RateLimiter

Asgi = Callable[[Any, Any, Any], Awaitable[None]]

HEARTBEAT = "/api/sessions/{session_id}/heartbeat"

_PUBLIC = frozenset({"/api/docs", "/api/openapi.json"})
_PROTECTED = frozenset({"/api", "/health/detailed", "/metrics"})


class Envelope:
    """Outermost: makes the call, stamps its id on the answer, writes the one line about it."""

    def __init__(self, app: Asgi, resources: Resources, clock: Clock) -> None:
        self._app = app
        self._resources = resources
        self._clock = clock
        self._sampled = resources.settings.heartbeat_log_sample_rate
        self._hsts = resources.settings.environment == "production"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request under an id of its own."""
        if scope["type"] != "http":
            raise NotImplementedError(f"{scope['type']} is not spoken here")
        started = time.perf_counter()
        call = Call(self._resources, str(uuid4()), self._clock())
        scope[SCOPE_KEY] = call
        log.clear()
        log.bind(request_id=call.request_id)
        if self._sampled < 1.0 and scope["path"].endswith("/heartbeat"):
            call.quiet = random.random() >= self._sampled  # noqa: S311 - nothing secret hangs on it
        status = 500

        async def stamped(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                call.begun = True
                headers = message.setdefault("headers", [])
                headers.append((b"x-request-id", call.request_id.encode()))
                headers.append((b"x-content-type-options", b"nosniff"))
                if self._hsts:
                    headers.append((b"strict-transport-security", b"max-age=63072000; includeSubDomains"))
                headers.extend(call.headers)
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        except ClientDisconnected:
            status = 499  # nobody is there to read it; nginx's number for that in logs
        finally:
            self._resources.metrics.count_request(call.endpoint, scope["method"], status)
            if call.endpoint == HEARTBEAT:
                self._resources.metrics.count_heartbeat(status)
            duration = (time.perf_counter() - started) * 1000
            if not call.quiet or status >= 400:
                write = log.get().info if status < 500 else log.get().error
                write(
                    "Request handled",
                    endpoint=call.endpoint,
                    method=scope["method"],
                    status=status,
                    duration_ms=round(duration, 3),
                )


class Cors(CORSMiddleware):
    """Starlette's, with a refused preflight in the format of all other errors."""

    def __init__(self, app: Asgi, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE", "OPTIONS"),
            allow_headers=("*",),
            expose_headers=(
                *("X-Request-Id", "Retry-After"),
                *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
            ),
            max_age=600,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer preflights, add the headers to what browsers ask from elsewhere, let the rest through."""
        if self.allow_all_origins and not any(name == b"origin" for name, _ in scope["headers"]):
            # The same answer whatever the origin, so there is nothing to vary by.
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (
            scope["method"] == "OPTIONS"
            and "origin" in headers
            and "access-control-request-method" in headers
        ):
            answer = self.preflight_response(request_headers=headers)
            if answer.status_code >= 400:
                answer = _refused(answer, scope)
            await answer(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


def _refused(answer: Response, scope: Any) -> Response:
    error = InvalidRequest(bytes(answer.body).decode())
    headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    return JSONResponse(rendered(error, scope[SCOPE_KEY], scope["path"]).body, error.status, headers)


class Errors:
    """Turns whatever is raised further in into an answer (PRD 5.2); nothing else renders errors."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request; every failure becomes an answer."""
        try:
            await self._app(scope, receive, send)
        except ClientDisconnected:
            raise
        except asyncio.CancelledError:
            # uvicorn's last word to what is still under way when the time for a clean end is over.
            if scope[SCOPE_KEY].begun:
                raise
            error = ServiceUnavailable("The server is shutting down; try again", headers={"Retry-After": "1"})
            await send_answer(rendered(error, scope[SCOPE_KEY], scope["path"]), error.status, send)
        except Exception as raised:
            call: Call = scope[SCOPE_KEY]
            error = self._as_api_error(raised, call)
            if call.begun:
                raise
            await send_answer(rendered(error, call, scope["path"]), error.status, send)

    def _as_api_error(self, raised: Exception, call: Call) -> ApiError:
        error: ApiError | None = None
        if isinstance(raised, ApiError):
            error = raised
        elif isinstance(raised, PyMongoError):
            error = storage.translated(raised)
        if error is None:
            log.get().error("Unhandled exception", exc_info=raised)
            return ApiError("Something went wrong here; it has been logged under this request id")
        if error.status >= 500:
            cause = raised if raised is not error else error.__cause__
            log.get().error("Request failed", reason=error.message, cause=type(cause).__name__)
        elif call.endpoint == HEARTBEAT:
            log.get().warning("Heartbeat failed", reason=_reason(error))
        elif error.status not in (
            401,
            404,
        ):  # whoever has no key has been logged, what is not there is normal
            log.get().warning("Request refused", reason=_reason(error))
        return error


def _reason(error: ApiError) -> str:
    """Why a request was refused, without the names that a client has made up: those are its payload."""
    wrong = cast("list[FieldError]", error.extra.get("errors", []))
    if not wrong:
        return error.message
    names = [
        "an unknown field" if entry["message"].startswith("is not a known") else entry["field"].split(".")[0]
        for entry in wrong
    ]
    return f"Validation failed: {', '.join(dict.fromkeys(names))}"


class Guard:
    """Lets nobody through to the API without a key, and no key through too often."""

    def __init__(self, app: Asgi, keyring: Keyring, limiter: RateLimiter) -> None:
        self._app = app
        self._keyring = keyring
        self._limiter = limiter

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request, where it needs a key only with one."""
        path: str = scope["path"]
        if (path.startswith("/api/") or path in _PROTECTED) and path not in _PUBLIC:
            await self._admit(scope[SCOPE_KEY], scope)
        await self._app(scope, receive, send)

    async def _admit(self, call: Call, scope: Mapping[str, Any]) -> None:
        presented = next((v.decode("latin-1") for n, v in scope["headers"] if n == b"x-api-key"), None)
        client = scope.get("client")
        address = client[0] if client else None
        try:
            call.key = self._keyring.identify(presented)
        except ApiError as error:
            log.get().warning(
                "Authentication failed", address=address, key=masked(presented), reason=error.message
            )
            raise
        log.bind(key=call.key)
        if not call.quiet:
            log.get().info("Authentication succeeded", address=address)
        allowance = await self._limiter.hit(call.key)
        call.headers += [
            (b"x-ratelimit-limit", b"%d" % allowance.limit),
            (b"x-ratelimit-remaining", b"%d" % allowance.remaining),
            (b"x-ratelimit-reset", b"%d" % allowance.resets_at),
        ]
        if not allowance.allowed:
            raise TooManyRequests(
                f"More than {allowance.limit} requests in a minute with this key",
                headers={"Retry-After": str(allowance.retry_after)},
            )
