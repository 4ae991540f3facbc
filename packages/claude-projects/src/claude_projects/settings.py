"""Where the command line finds the API, and as whom: flags, else environment, else a file, else defaults."""

import contextlib
import math
import os
import socket
import tomllib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from claude_projects.client import DEFAULT_URL
from claude_projects.errors import ClaudeProjectsError


class ConfigurationError(ClaudeProjectsError):
    """A setting that cannot be used; the message says which, where it comes from and what is wrong."""


@dataclass(frozen=True)
class Setting:
    """A value and where it comes from, in words."""

    value: Any
    source: str


@dataclass(frozen=True)
class Settings:
    """All settings of the command line."""

    url: Setting
    api_key: Setting
    machine_id: Setting
    heartbeat_seconds: Setting
    freeze_after_seconds: Setting


ENVIRONMENT = {
    "url": "CLAUDE_PROJECTS_URL",
    "api_key": "CLAUDE_PROJECTS_API_KEY",
    "machine_id": "CLAUDE_PROJECTS_MACHINE_ID",
    "heartbeat_seconds": "CLAUDE_PROJECTS_HEARTBEAT_SECONDS",
    "freeze_after_seconds": "CLAUDE_PROJECTS_FREEZE_AFTER_SECONDS",
}
_SECONDS = {"heartbeat_seconds", "freeze_after_seconds"}


def state_dir() -> Path:
    """Locks, journals and logs: CLAUDE_PROJECTS_STATE_DIR, or the user's state directory."""
    chosen = os.environ.get("CLAUDE_PROJECTS_STATE_DIR")
    return Path(chosen) if chosen else platformdirs.user_state_path("claude-projects")


def config_path() -> Path:
    """CLAUDE_PROJECTS_CONFIG, or config.toml in the user's configuration directory."""
    chosen = os.environ.get("CLAUDE_PROJECTS_CONFIG")
    return Path(chosen) if chosen else platformdirs.user_config_path("claude-projects") / "config.toml"


def read(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Put the settings together; a None in ``flags`` was not given. Raises ConfigurationError."""
    path = config_path()
    file = _read_file(path)
    defaults: dict[str, Callable[[], Any]] = {
        "url": lambda: DEFAULT_URL,
        "api_key": lambda: None,
        "machine_id": machine_id,
        "heartbeat_seconds": lambda: 60.0,
        "freeze_after_seconds": lambda: 10.0,
    }

    def setting(name: str) -> Setting:
        if flags.get(name) is not None:
            return _checked(name, flags[name], "the command line")
        if environment.get(ENVIRONMENT[name]):
            return _checked(name, environment[ENVIRONMENT[name]], ENVIRONMENT[name])
        if name in file:
            return _checked(name, file[name], str(path))
        return Setting(defaults[name](), "default")

    return Settings(**{name: setting(name) for name in ENVIRONMENT})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    unknown = sorted(document.keys() - ENVIRONMENT.keys())
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise ConfigurationError(f"{path}: {names}: no such setting; there are {', '.join(ENVIRONMENT)}")
    return document


def _checked(name: str, value: Any, source: str) -> Setting:
    if name in _SECONDS:
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if isinstance(value, bool) or not 0 < seconds < math.inf:
            raise ConfigurationError(f"{source}: {name} must be a number of seconds above 0, not {value!r}")
        return Setting(seconds, source)
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{source}: {name} must be a text that is not blank, not {value!r}")
    if name == "api_key" and not (value.strip().isascii() and value.strip().isprintable()):
        raise ConfigurationError(f"{source}: api_key holds characters that no key has; it must be a UUID")
    return Setting(value.strip(), source)


def machine_id() -> str:
    """This machine's id by default: its host name, or where that means nothing, a UUID kept in a file."""
    hostname = socket.gethostname().strip()
    if hostname and hostname not in {"localhost", "localhost.localdomain"}:
        return hostname
    path = state_dir() / "machine-id"
    with contextlib.suppress(OSError, ValueError):  # none yet, or one that was written by half
        return str(uuid.UUID(path.read_text(encoding="ascii").strip()))
    made = str(uuid.uuid4())
    with contextlib.suppress(OSError):  # where nothing can be kept, `run` says so
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made + "\n", encoding="ascii")
    return made
