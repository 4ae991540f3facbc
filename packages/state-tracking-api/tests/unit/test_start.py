"""What a start does not do yet: on Lambda somebody waits for it."""

from __future__ import annotations

import subprocess
import sys

MODELS = """
from state_tracking_api import settings
from state_tracking_api.app import create_app
from state_tracking_api.http import insight, models, recovery, sessions

key = "6f1d0f4e-35c9-4a35-9f3c-0d7e2b1a9c55"
app = create_app(settings.load(mongodb_uri="mongodb://127.0.0.1", api_keys=key))
described = [models.Session, insight.Summary, recovery.RecoveryState, sessions.CreateSession]
assert not any(model.__pydantic_complete__ for model in described)
assert len(app.openapi()["paths"]) > 20
assert sessions.CreateSession(project_id="p", machine_id="m").__pydantic_complete__
"""

IMPORTS = """
import sys

from state_tracking_api import cli, server, settings
from state_tracking_api.app import create_app

key = "6f1d0f4e-35c9-4a35-9f3c-0d7e2b1a9c55"
app = create_app(settings.load(mongodb_uri="mongodb://127.0.0.1", api_keys=key))
assert not {"fastapi", "rich", "fastapi_swagger", "redis"} & set(sys.modules)
assert len(app.openapi()["paths"]) > 20 and "fastapi" in sys.modules
import rich
"""


def run(script: str) -> None:
    """Run a script in a Python of its own; a warning is an error."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_are_built_when_a_request_or_the_document_needs_them_and_not_at_the_start() -> None:
    run(MODELS)


def test_what_only_the_document_or_a_terminal_needs_is_not_imported_to_serve() -> None:
    run(IMPORTS)
