"""What can go wrong between a caller and the API, a class for each thing that a caller may want to do."""

from dataclasses import dataclass


class ClaudeProjectsError(Exception):
    """The base of every error of this package."""


class UnreachableError(ClaudeProjectsError):
    """The API gave no answer: nothing listens there, the connection broke, or time ran out.

    ``perhaps_done`` says whether the request may have been carried out all the same.
    """

    def __init__(self, message: str, *, perhaps_done: bool = False) -> None:
        super().__init__(message)
        self.perhaps_done = perhaps_done


class NotTheApiError(ClaudeProjectsError):
    """Something answered at the address, but not in the way of the state tracking API."""


class SessionLostError(ClaudeProjectsError):
    """The session is no longer this process's own: it was taken over, or somebody has ended it.

    ``recovered_by`` is the id of the session that continues it, None where nobody does (yet).
    """

    def __init__(self, session_id: str | None, recovered_by: str | None, message: str) -> None:
        super().__init__(message)
        self.session_id = session_id
        self.recovered_by = recovered_by


class HeldError(ClaudeProjectsError):
    """The work is in other hands, or may be; the message says whose and what can be done."""


class NothingLeftError(ClaudeProjectsError):
    """All of the session's work is done."""


class NoPlanError(ClaudeProjectsError):
    """The session's metadata does not say what there is to do."""


@dataclass(frozen=True)
class FieldError:
    """One field of a request that the API refused, and why."""

    field: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """The API's error object, field by field; what it left out is None or empty."""

    status: int
    error: str
    message: str
    path: str | None = None
    request_id: str | None = None
    fields: tuple[FieldError, ...] = ()
    existing_session_id: str | None = None
    recovered_by: str | None = None
    retry_after: float | None = None


class ApiError(ClaudeProjectsError):
    """The API refused a request. Everything that it said is in the attributes."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.status = refusal.status
        self.message = refusal.message
        self.fields = refusal.fields
        self.existing_session_id = refusal.existing_session_id
        self.recovered_by = refusal.recovered_by
        self.request_id = refusal.request_id
        self.retry_after = refusal.retry_after
        details = "; ".join(f"{field.field}: {field.message}" for field in refusal.fields)
        super().__init__(f"{refusal.message} ({details})" if details else refusal.message)


class BadRequestError(ApiError):
    """400: wrong in itself or for the state of the resource; ``fields`` names what was wrong."""


class UnauthorizedError(ApiError):
    """401: no key, a malformed one, or one that the server does not know."""


class NotFoundError(ApiError):
    """404."""


class ConflictError(ApiError):
    """409: it collides with another resource (``existing_session_id``) or has been overtaken."""


class RateLimitedError(ApiError):
    """429; ``retry_after`` is in seconds."""


class ServerError(ApiError):
    """500 and its like: nobody foresaw it, and nobody knows whether the request was carried out."""


class UnavailableError(ServerError):
    """502, 503, 504: the API or its database is away for the moment."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitedError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


def refused(refusal: Refusal) -> ApiError:
    """The exception for what the API said."""
    kind = _BY_STATUS.get(refusal.status, ServerError if refusal.status >= 500 else ApiError)
    return kind(refusal)
