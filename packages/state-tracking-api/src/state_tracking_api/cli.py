"""The command line: serve, dev, job, openapi."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from state_tracking_api import log, settings
from state_tracking_api.errors import ApiError, ConfigurationError
from state_tracking_api.settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `state-tracking-api`; ends the process with 0, or 1 and one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except ConfigurationError as error:
        sys.exit(f"ConfigurationError: {error}")
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="state-tracking-api", description="Runtime state of long-running Claude orchestrations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API; needs MONGODB_URI and API_KEYS")
    serve.set_defaults(run=_serve)
    dev = commands.add_parser("dev", help="serve the API on a MongoDB of its own")
    dev.add_argument(
        "--data-dir", type=Path, default=Path(".data"), help="where its data stays (default: .data)"
    )
    dev.set_defaults(run=_dev)
    job = commands.add_parser("job", help="run one background job once and print its result as JSON")
    job.add_argument("name", choices=_job_names(), metavar="NAME", help=f"one of: {', '.join(_job_names())}")
    job.add_argument("--repair", action="store_true", help="let check-consistency mend what can be derived")
    job.set_defaults(run=_job)
    openapi = commands.add_parser("openapi", help="print the OpenAPI document")
    openapi.set_defaults(run=_openapi)
    return parser


def _job_names() -> list[str]:
    from state_tracking_api.jobs import JOBS

    return sorted(JOBS)


def _serve(_options: argparse.Namespace) -> int:
    configured = settings.load()
    log.configure(configured.log_level)
    return _run_server(configured)


def _dev(options: argparse.Namespace) -> int:
    from state_tracking_api.embedded import EmbeddedError, Mongod

    # Several processes would read an environment that names neither this database nor its key.
    overrides: dict[str, Any] = {"workers": 1} if _has_keys() else {"workers": 1, "api_keys": str(uuid4())}
    # Checked before a database is started; the port of that one is known only afterwards.
    settings.load(mongodb_uri="mongodb://127.0.0.1", **overrides)
    try:
        mongod = Mongod.start(options.data_dir / "mongodb")
    except EmbeddedError as error:
        print(error, file=sys.stderr)
        return 1
    with mongod:
        if not _has_keys():
            overrides["api_keys"] = f"dev={_dev_key(options.data_dir)}"
        configured = settings.load(mongodb_uri=mongod.uri, **overrides)
        log.configure(configured.log_level, console=sys.stdout.isatty())
        secret = configured.api_keys[0].secret.get_secret_value()
        return _run_server(configured, on_start=lambda: _greet(configured, secret))


def _has_keys() -> bool:
    return bool(os.environ.get("API_KEYS", "").strip())


def _dev_key(data_dir: Path) -> str:
    """The key of this data directory, made at the first start and kept; whoever calls holds the directory."""
    path = data_dir / "api-key"
    kept = path.read_text().strip() if path.exists() else ""
    if kept:
        return kept
    key = str(uuid4())
    path.touch(mode=0o600)
    path.write_text(f"{key}\n")
    return key


def _greet(configured: Settings, key: str) -> None:
    # Where it listens everywhere, a browser on this machine finds it on the loopback address.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(configured.host, configured.host)  # noqa: S104
    address = f"http://[{host}]:{configured.port}" if ":" in host else f"http://{host}:{configured.port}"
    print(
        "\n"
        "  Claude Projects is running.\n\n"
        f"  Dashboard  {address}/dashboard#key={key}\n"
        f"  API        {address}/api/docs\n"
        f"  API key    {key}\n\n"
        "  In another terminal:\n"
        f"    export CLAUDE_PROJECTS_URL={address} CLAUDE_PROJECTS_API_KEY={key}\n"
        "    .venv/bin/claude-projects run examples/chores.toml\n",
        flush=True,
    )


def _run_server(configured: Settings, on_start: Callable[[], None] | None = None) -> int:
    from state_tracking_api import server

    try:
        server.run(configured, on_start)
    except OSError as error:
        print(
            f"Cannot listen on {configured.host}:{configured.port} ({error.strerror}): "
            "stop what listens there, or set HOST or PORT.",
            file=sys.stderr,
        )
        return 1
    return 0


def _job(options: argparse.Namespace) -> int:
    from pymongo.errors import PyMongoError

    from state_tracking_api import jobs
    from state_tracking_api.storage import Storage

    if options.repair and options.name != "check-consistency":
        print("--repair goes with check-consistency only", file=sys.stderr)
        return 2
    configured = settings.load()
    log.configure(configured.log_level, stream=sys.stderr)

    async def run() -> Any:
        storage = Storage(configured)
        try:
            return await jobs.run(storage, configured, options.name, repair=options.repair)
        finally:
            await storage.close()

    try:
        result = asyncio.run(run())
    except (PyMongoError, ApiError) as error:
        print(f"The job {options.name} failed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def _openapi(_options: argparse.Namespace) -> int:
    from state_tracking_api.app import create_app

    # The document does not depend on these; nothing is connected to.
    app = create_app(settings.load(mongodb_uri="mongodb://127.0.0.1", api_keys=str(uuid4())))
    print(json.dumps(app.openapi(), indent=2))
    return 0
