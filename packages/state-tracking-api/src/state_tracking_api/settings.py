"""The environment, read once and checked at start."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from state_tracking_api.errors import ConfigurationError

_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Switch(StrEnum):
    """A setting that is on or off."""

    ON = "on"
    OFF = "off"


class ApiKey(BaseModel, frozen=True):
    """One key and the name under which it stands in logs and metrics."""

    name: str
    secret: SecretStr


# Every request has two of them, its key and an id; a parser costs eight times what matching does.
_UUID4 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII
)


def is_uuid4(text: str) -> bool:
    """Whether `text` is a UUID v4 in its 36-character form (RFC 9562, section 4), in any letter case."""
    return _UUID4.fullmatch(text) is not None


def _listed(value: object) -> object:
    return [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else value


# What can be reckoned with: times stay within the calendar, the driver takes timeouts below 1e9.
Silence = Annotated[int, Field(gt=0, le=10**12)]
Timeout = Annotated[int, Field(gt=0, lt=10**9)]


class Settings(BaseSettings):
    """Everything that the environment decides. Field names are the variables' names in lower case."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    mongodb_uri: SecretStr = Field(description="Connection string of MongoDB; mongodb+srv:// works")
    mongodb_database: str = Field(
        default="claude-projects",
        pattern=r"^[^/\\. \"$*<>:|?\x00]{1,63}$",
        description="Database name; wins over a path in MONGODB_URI",
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        description="Comma-separated UUID v4 keys; an entry may be name=uuid"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(default=3000, ge=1, le=65535, description="Port to listen on")
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Server processes; more than one need shared RATE_LIMIT_STORAGE_URI",
    )
    environment: str = Field(
        default="development", pattern=r"^[A-Za-z0-9_-]+$", description="`production` in production"
    )
    log_level: str = Field(default="info", description="debug, info, warning or error")
    stall_threshold_ms: Silence = Field(
        default=180_000, description="Silence after which an active session counts as stalled"
    )
    stall_scan_interval_seconds: Annotated[int, Field(gt=0, le=86_400)] = Field(
        default=120, description="At most this long between two stall scans"
    )
    retention_days: Annotated[int, Field(gt=0, le=20_000)] = Field(
        default=30, description="How long ended sessions and tasks are kept"
    )
    rate_limit_per_minute: Annotated[int, Field(gt=0, le=10**9)] = Field(
        default=100, description="Requests per API key in any 60 seconds"
    )
    rate_limit_storage_uri: SecretStr = Field(
        default=SecretStr("memory://"),
        description="Where the requests are counted: memory://, redis://… or mongodb://…",
    )
    request_timeout_ms: Timeout = Field(default=29_000, description="A request past it is answered 504")
    db_timeout_ms: Timeout = Field(default=10_000, description="A query past it is answered 504")
    machine_offline_threshold_ms: Silence = Field(
        default=300_000, description="Silence after which an online machine goes offline"
    )
    abandon_after_hours: Annotated[int, Field(ge=0, le=24 * 365)] = Field(
        default=24, description="Stalled sessions silent for longer are marked failed; 0 turns it off"
    )
    heartbeat_log_sample_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="Share of successful heartbeats that are logged, from 0 to 1"
    )
    outage_grace: bool = Field(
        default=True,
        description="Whether sessions get fresh grace after the service was away; off only in tests of it",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("*",), description="Origins that browsers may call from, comma-separated"
    )
    scheduler: Switch = Field(default=Switch.ON, description="`off` where an outside schedule runs the jobs")

    @property
    def stall_threshold(self) -> timedelta:
        """STALL_THRESHOLD_MS as a time span."""
        return timedelta(milliseconds=self.stall_threshold_ms)

    @field_validator("mongodb_uri")
    @classmethod
    def _mongodb_uri(cls, value: SecretStr) -> SecretStr:
        # An SRV name is looked up when the client connects, not here: the name server may be away at start.
        text = value.get_secret_value()
        parts = urlsplit(text)
        if parts.scheme not in {"mongodb", "mongodb+srv"} or not parts.netloc.rpartition("@")[2]:
            raise ValueError("must begin with mongodb:// or mongodb+srv:// and name a host")
        if parts.scheme == "mongodb":
            try:
                parse_uri(text, warn=False)
            except (PyMongoError, ValueError):  # their messages may quote the password
                raise ValueError("is not a valid connection string") from None
            except OSError as error:
                raise ValueError(f"names a file that cannot be read, {error.filename}") from None
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _api_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys: list[ApiKey] = []
        for position, entry in enumerate((part.strip() for part in value.split(",")), 1):
            name, equals, secret = entry.rpartition("=")
            if not entry and value.strip(", "):
                continue
            if not is_uuid4(secret.strip()):
                raise ValueError(f"entry {position} must be a UUID v4 or name=UUID v4")
            if equals and not _KEY_NAME.fullmatch(name.strip()):
                raise ValueError(
                    f"the name of entry {position} must be 1 to 64 letters, digits, dots, - or _"
                )
            keys.append(
                ApiKey(name=name.strip() or f"key-{position}", secret=SecretStr(secret.strip().lower()))
            )
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two entries have the same name")
        return tuple(keys)

    @field_validator("log_level", mode="before")
    @classmethod
    def _log_level(cls, value: object) -> object:
        level = str(value).lower()
        if level not in {"debug", "info", "warning", "warn", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return "warning" if level == "warn" else level

    @field_validator("rate_limit_storage_uri")
    @classmethod
    def _rate_limit_storage_uri(cls, value: SecretStr) -> SecretStr:
        scheme = urlsplit(value.get_secret_value()).scheme
        if scheme not in {
            "memory",
            "redis",
            "rediss",
            "redis+sentinel",
            "redis+cluster",
            "mongodb",
            "mongodb+srv",
        }:
            raise ValueError("must begin with memory://, redis://, rediss://, mongodb:// or mongodb+srv://")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _cors_origins(cls, value: object) -> object:
        return _listed(value)

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins_are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
                raise ValueError("must be * or origins such as https://example.com, comma-separated")
        if not value:
            raise ValueError("must not be empty")
        return value


def load(**overrides: Any) -> Settings:
    """Read the environment; `overrides` win over it.

    Raises ConfigurationError: one line that names every variable that is wrong, without its value, which may
    be a secret.
    """
    try:
        configured = Settings(**overrides)
    except ValidationError as error:
        wrong = [f"{_variable(item['loc'])} {_reason(item['type'], item['msg'])}" for item in error.errors()]
        raise ConfigurationError("; ".join(dict.fromkeys(wrong))) from None
    if configured.workers > 1 and configured.rate_limit_storage_uri.get_secret_value() == "memory://":
        raise ConfigurationError("RATE_LIMIT_STORAGE_URI must name shared storage where WORKERS is over 1")
    return configured


def _variable(location: tuple[int | str, ...]) -> str:
    return str(location[0]).upper() if location else "environment"


def _reason(kind: str, message: str) -> str:
    if kind == "missing":
        return "is required"
    return message.removeprefix("Value error, ").removeprefix("Input ").replace("Input should", "should")
