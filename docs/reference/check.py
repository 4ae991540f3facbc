"""Holds the generated documents against what they are generated from."""

# ruff: noqa: INP001

from __future__ import annotations

import json
import sys

import api_page
import grafana


def stale() -> list[str]:
    """The scripts whose documents are not up to date."""
    scripts: list[str] = []
    if api_page.PAGE.read_text(encoding="utf-8") != api_page.written(api_page.openapi()):
        scripts.append("docs/reference/api_page.py")
    if json.loads(grafana.FILE.read_text(encoding="utf-8")) != grafana.dashboard():
        scripts.append("docs/reference/grafana.py")
    return scripts


if __name__ == "__main__":
    sys.exit("\n".join(f"Not up to date; run: .venv/bin/python {one}" for one in stale()) or 0)
