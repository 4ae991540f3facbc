"""Every setting and route is documented, and the documented ones exist."""

from __future__ import annotations

import re
from pathlib import Path

from state_tracking_api import settings
from state_tracking_api.app import create_app
from state_tracking_api.jobs import JOBS
from state_tracking_api.settings import Settings

ROOT = Path(__file__).parents[4]
KEY = "0f8fad5b-d9cb-469f-a165-70867728950e"


def text(name: str) -> str:
    """A document of the project."""
    return (ROOT / name).read_text()


def variables() -> set[str]:
    """The environment variables that the server reads."""
    return {name.upper() for name in Settings.model_fields}


def test_every_setting_stands_in_the_configuration_page_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", text("docs/CONFIGURATION.md"), re.MULTILINE))
    assert set(rows) == variables()
    for name, field in Settings.model_fields.items():
        if field.is_required():
            assert rows[name.upper()].strip() == "required"


def test_the_example_environment_names_existing_settings_only() -> None:
    named = set(re.findall(r"^#? ?([A-Z_]+)=", text(".env.example"), re.MULTILINE))
    assert named <= variables()
    assert {"MONGODB_URI", "API_KEYS", "PORT"} <= named


def test_every_route_stands_in_the_document_and_in_the_api_page() -> None:
    app = create_app(settings.load(mongodb_uri="mongodb://127.0.0.1", api_keys=KEY))
    page = text("docs/API.md")
    documented = app.openapi()["paths"]
    for route in app.endpoints:
        if route.include_in_schema:
            for method in route.methods:
                assert method.lower() in documented[route.path_format]
                assert f"{method} {route.path_format}" in page, f"{method} {route.path_format}"


def test_every_job_is_documented() -> None:
    page = text("docs/CONFIGURATION.md")
    for name in JOBS:
        assert f"`{name}`" in page
