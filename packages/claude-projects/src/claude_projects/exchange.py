"""How a call is carried out: retries, pauses, lost answers. No input or output happens here.

``perform`` is a generator. It yields what it wants done (a request sent, a pause made) and is sent what
came of it; the two clients only differ in how they do these two things. So there is one description of
every call and one set of rules, whatever the caller's style.
"""

import json
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from claude_projects.errors import (
    ApiError,
    ClaudeProjectsError,
    FieldError,
    NotTheApiError,
    RateLimitedError,
    Refusal,
    UnavailableError,
    UnreachableError,
    refused,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Request:
    """What is to be sent; ``path`` begins with a slash and stands below the API's address."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """What came back. ``repeated`` is True where an earlier attempt may have been carried out already."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    repeated: bool = False

    def json(self) -> Any:
        """The decoded body. Raises NotTheApiError where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise NotTheApiError(f"an answer with status {self.status} is not JSON") from error


@dataclass(frozen=True)
class Pause:
    """A wish to do nothing for ``seconds``; with ``wakeable``, until somebody has news, if that is sooner."""

    seconds: float
    wakeable: bool = False


Step = Request | Pause
Outcome = Answer | UnreachableError | None
Steps = Generator[Step, Outcome, T]


@dataclass(frozen=True)
class Settled(Generic[T_co]):
    """The result of a request whose answer was lost, found out afterwards."""

    value: T_co


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One call of the API: what is sent, and what its answer means.

    ``after_loss`` is asked where an earlier attempt may have been carried out although its answer never
    came: with None before the request is repeated, and with the error where the repetition was refused. It
    answers ``Settled`` where the earlier attempt turns out to have succeeded, and None where it does not. A
    call without it can simply be repeated.
    """

    request: Request
    parse: Callable[[Answer], T_co]
    after_loss: "Callable[[ApiError | None], Steps[Settled[T_co] | None]] | None" = None

    def raw(self) -> "Call[Any]":
        """The same call with the decoded JSON for a result (None where the answer has no body)."""
        return Call(self.request, lambda answer: answer.json() if answer.body else None)


@dataclass(frozen=True)
class Retry:
    """How often and how patiently a call is repeated.

    ``attempts`` is the number of repetitions. The pauses grow from ``base`` to ``cap`` seconds by doubling,
    each shortened at random by up to a half, so that clients which were thrown out together do not come
    back together. A ``Retry-After`` of the server is waited for in full, up to ``patience`` seconds; a
    longer one ends the call.
    """

    attempts: int = 4
    base: float = 0.25
    cap: float = 8.0
    patience: float = 90.0

    def delay(self, attempt: int, error: ClaudeProjectsError) -> float:
        """The pause in seconds before repetition number ``attempt`` (from 0)."""
        pause = min(self.cap, self.base * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        asked = error.retry_after if isinstance(error, ApiError) else None
        return pause if asked is None else asked + min(pause, 1.0)

    def allows(self, attempt: int, error: ClaudeProjectsError) -> bool:
        """Whether a call that ended with ``error`` may be repeated: only what passes by itself."""
        if attempt >= self.attempts or not isinstance(
            error, UnreachableError | RateLimitedError | UnavailableError
        ):
            return False
        return not isinstance(error, ApiError) or (error.retry_after or 0.0) <= self.patience


ONCE = Retry(attempts=0)


def perform(call: Call[T], retry: Retry, *, lost: bool = False) -> Steps[T]:
    """Carry out ``call``; the generator returns its result or raises a ClaudeProjectsError.

    ``lost`` says that the same call was attempted before and may have been carried out.
    """
    attempt = 0
    while True:
        if lost and call.after_loss:
            settled = yield from call.after_loss(None)
            if settled:
                return settled.value
        outcome = yield call.request
        error = _error_of(outcome)
        if error is None:
            return _parsed(call, cast("Answer", outcome), repeated=lost)
        if lost and call.after_loss and isinstance(error, ApiError):
            settled = yield from call.after_loss(error)
            if settled:
                return settled.value
        lost = lost or perhaps_done(error)
        if not retry.allows(attempt, error):
            raise error
        yield Pause(retry.delay(attempt, error))
        attempt += 1


def perhaps_done(error: ClaudeProjectsError) -> bool:
    """Whether a request that ended with ``error`` may have been carried out all the same."""
    if isinstance(error, UnreachableError):
        return error.perhaps_done
    return isinstance(error, ApiError) and error.status >= 500


def _parsed(call: Call[T], answer: Answer, *, repeated: bool) -> T:
    try:
        return call.parse(Answer(answer.status, answer.headers, answer.body, repeated))
    except (ValidationError, KeyError, TypeError) as error:
        raise NotTheApiError(
            f"the answer to {call.request.method} {call.request.path} is not one of the state tracking API"
        ) from error


def _error_of(outcome: Outcome) -> ClaudeProjectsError | None:
    if outcome is None:
        raise TypeError("a request needs an answer")
    if isinstance(outcome, UnreachableError):
        return outcome
    if 200 <= outcome.status < 300:
        return None
    if 300 <= outcome.status < 400:  # not followed: the key would go along, to whatever host is named
        elsewhere = outcome.headers.get("location", "elsewhere")
        return NotTheApiError(f"the address redirects to {elsewhere}; set the API's own address")
    said = _error_object(outcome)
    if said is None:
        if outcome.status in {429, 502, 503, 504}:  # a proxy in front of the API may speak for itself
            said = {}
        else:
            return NotTheApiError(f"an answer with status {outcome.status} is not in the API's error format")
    return refused(_refusal(outcome, said))


def _error_object(answer: Answer) -> dict[str, Any] | None:
    try:
        said: Any = json.loads(answer.body)
    except ValueError:
        return None
    return cast("dict[str, Any]", said) if isinstance(said, dict) and "message" in said else None


def _refusal(answer: Answer, said: dict[str, Any]) -> Refusal:
    def text(name: str) -> str | None:
        return said[name] if isinstance(said.get(name), str) else None

    errors: Any = said.get("errors")
    listed = cast("list[Any]", errors) if isinstance(errors, list) else []
    fields = tuple(
        FieldError(str(one.get("field", "")), str(one.get("message", "")))
        for one in (cast("dict[str, Any]", item) for item in listed if isinstance(item, dict))
    )
    return Refusal(
        status=answer.status,
        error=text("error") or "",
        message=text("message") or f"status {answer.status}",
        path=text("path"),
        request_id=text("request_id") or answer.headers.get("x-request-id"),
        fields=fields,
        existing_session_id=text("existing_session_id"),
        recovered_by=text("recovered_by"),
        retry_after=retry_after(answer.headers),
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a ``Retry-After`` asks for (RFC 9110 10.2.3: a number or a date), None without one.

    A date is compared with the answer's own ``Date``, so that the two clocks need not agree.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (TypeError, ValueError):
        return None
