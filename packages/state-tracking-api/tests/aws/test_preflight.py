"""What the server would refuse when it starts must not be deployed: preflight and settings side by side."""

from __future__ import annotations

import json
import subprocess
from functools import cache

import pytest

from aws.lambda_harness import KEY, ROOT
from state_tracking_api import settings
from state_tracking_api.errors import ConfigurationError

URI = "mongodb://db.example/"
OTHER = "0b2f3a52-7d3e-4d52-9d0c-0a6f1f0c7a11"
SOUND: dict[str, list[str]] = {
    "MONGODB_URI": [URI, "mongodb+srv://someone:p%40ss@db.example/?retryWrites=true"],
    "API_KEYS": [KEY, f"ci={KEY}, {OTHER}", f"{KEY.upper()},"],
    "LOG_LEVEL": ["debug", "WARN"],
    "STALL_THRESHOLD_MS": ["1"],
    "RETENTION_DAYS": ["20000"],
    "MONGODB_DATABASE": ["claude-projects_2"],
    "RATE_LIMIT_PER_MINUTE": ["600"],
    "RATE_LIMIT_STORAGE_URI": [
        "memory://",
        "rediss://:secret@cache.example:6379/0",
        "mongodb+srv://db.example/",
    ],
    "REQUEST_TIMEOUT_MS": ["29000"],
    "DB_TIMEOUT_MS": ["1"],
    "MACHINE_OFFLINE_THRESHOLD_MS": ["300000"],
    "ABANDON_AFTER_HOURS": ["0", "8760"],
    "HEARTBEAT_LOG_SAMPLE_RATE": ["0", "1", "0.25", "1.0"],
    "CORS_ORIGINS": ["*", "https://one.example, vscode-webview://two"],
}
WRONG: dict[str, list[str]] = {
    "MONGODB_URI": ["postgres://db.example/", "mongodb://", "mongodb:///database", "mongodb://user:secret@"],
    "API_KEYS": ["secret", f"a b={KEY}", f"ci={KEY},ci={OTHER}", f"={KEY[:-1]}", KEY.replace("-4", "-1", 1)],
    "LOG_LEVEL": ["verbose"],
    "STALL_THRESHOLD_MS": ["0", "-1", "3m", "1.5"],
    "RETENTION_DAYS": ["0", "20001"],
    "MONGODB_DATABASE": ["a/b", "a b", "$a"],
    "RATE_LIMIT_PER_MINUTE": ["0", "many"],
    "RATE_LIMIT_STORAGE_URI": ["memcached://cache.example", "cache.example"],
    "REQUEST_TIMEOUT_MS": ["0", "soon"],
    "DB_TIMEOUT_MS": ["0", "soon"],
    "MACHINE_OFFLINE_THRESHOLD_MS": ["0"],
    "ABANDON_AFTER_HOURS": ["-1", "8761"],
    "HEARTBEAT_LOG_SAMPLE_RATE": ["2", "-0.1", "half"],
    "CORS_ORIGINS": ["example.com", "https://one.example/path"],
}
# Fixed by the deployment, or of no meaning without a server that listens.
NOT_FOR_OPERATORS = {
    *("HOST", "PORT", "WORKERS", "ENVIRONMENT", "SCHEDULER", "STALL_SCAN_INTERVAL_SECONDS", "OUTAGE_GRACE"),
}


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Variable and value."""
    return [(name, value) for name, values in table.items() for value in values]


@cache
def preflight() -> dict[str, list[str]]:
    """What the preflight says of each value, by `NAME=value`; asked once for all."""
    base = {"MONGODB_URI": URI, "API_KEYS": KEY, "ALARM_EMAIL": "operator@example.com"}
    environments = {f"{n}={v}": {**base, n: v} for n, v in [*cases(SOUND), *cases(WRONG)]}
    script = (
        "import { problems } from './infra/preflight.mjs';"
        "const all = Object.entries(JSON.parse(process.argv[1]));"
        "console.log(JSON.stringify(Object.fromEntries(all.map(([k, env]) => [k, problems('prod', env)]))));"
    )
    command = ["node", "--input-type=module", "-e", script, json.dumps(environments)]
    return json.loads(subprocess.check_output(command, cwd=ROOT, text=True))


def server(name: str, value: str) -> str | None:
    """What the server says of a value; None where it takes it."""
    try:
        settings.load(**{"mongodb_uri": URI, "api_keys": KEY, name.lower(): value})
    except ConfigurationError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "value"), cases(SOUND))
def test_what_the_server_takes_is_deployed(name: str, value: str) -> None:
    assert server(name, value) is None
    assert preflight()[f"{name}={value}"] == []


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_what_the_server_refuses_is_not_deployed(name: str, value: str) -> None:
    assert name in (server(name, value) or "")
    (said,) = preflight()[f"{name}={value}"]
    assert said.startswith(name)
    assert "secret" not in said


def test_every_setting_of_the_server_can_be_set_for_the_function() -> None:
    known = {name.upper() for name in settings.Settings.model_fields}
    assert set(SOUND) == known - NOT_FOR_OPERATORS
    source = (ROOT / "infra" / "preflight.mjs").read_text()
    assert [name for name in SOUND if name not in source] == []
