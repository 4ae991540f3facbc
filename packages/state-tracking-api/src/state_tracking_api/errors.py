"""What can go wrong and what the caller is told; one handler renders all of it (PRD 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class ConfigurationError(Exception):
    """The environment is not fit to start with; the message names every variable that is wrong."""


class FieldError(TypedDict):
    """One field of a request that is wrong, as the answer lists it."""

    field: str
    message: str


class ApiError(Exception):
    """An answer other than success: its status code, its public message and what else it carries.

    `extra` is put at the top level of the error object, `headers` are added to the answer.
    """

    status = 500
    title = "Internal Server Error"

    def __init__(
        self,
        message: str,
        *,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})


class InvalidRequest(ApiError):
    """The request is wrong in itself, or for the state that its own resource is in."""

    status, title = 400, "Bad Request"

    @classmethod
    def of_fields(cls, errors: Sequence[FieldError]) -> InvalidRequest:
        """Validation failed: all failing fields at once."""
        names = ", ".join(dict.fromkeys(error["field"] for error in errors))
        return cls(f"Validation failed: {names}", extra={"errors": list(errors)})

    @classmethod
    def of_field(cls, field: str, message: str) -> InvalidRequest:
        """Validation failed for one field."""
        return cls.of_fields([FieldError(field=field, message=message)])


class Unauthorized(ApiError):
    """No key, or one that does not open the door."""

    status, title = 401, "Unauthorized"


class NotFound(ApiError):
    """What the path names does not exist."""

    status, title = 404, "Not Found"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not."""

    status, title = 405, "Method Not Allowed"


class Conflict(ApiError):
    """The request collides with another resource, or has been overtaken."""

    status, title = 409, "Conflict"


class PayloadTooLarge(ApiError):
    """The body is larger than what is read."""

    status, title = 413, "Payload Too Large"


class UnsupportedMediaType(ApiError):
    """The body is something other than JSON."""

    status, title = 415, "Unsupported Media Type"


class TooManyRequests(ApiError):
    """The key has used up its requests."""

    status, title = 429, "Too Many Requests"


class ServiceUnavailable(ApiError):
    """The database is away."""

    status, title = 503, "Service Unavailable"


class GatewayTimeout(ApiError):
    """The request or a query of it took too long and was cancelled."""

    status, title = 504, "Gateway Timeout"
