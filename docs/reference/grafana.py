"""Writes docs/monitoring/grafana-dashboard.json: .venv/bin/python docs/reference/grafana.py."""

# ruff: noqa: INP001

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

FILE = Path(__file__).parents[1] / "monitoring" / "grafana-dashboard.json"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT = 8, 7


def _quantile(share: float, histogram: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}) (rate({histogram}_bucket[$__rate_interval])))"


# Title, kind, unit, and (expression, legend) of each curve, three panels a row.
PANELS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("Active sessions", "stat", "none", [("max(active_sessions_count)", "active")]),
    ("Stalled sessions", "stat", "none", [("max(stalled_sessions_count)", "stalled")]),
    (
        "Inconsistencies and suspected outage",
        "stat",
        "none",
        [
            ("max(consistency_violations_count)", "violations"),
            ("max(suspected_outage)", "suspected outage"),
        ],
    ),
    (
        "Sessions",
        "timeseries",
        "none",
        [("max(active_sessions_count)", "active"), ("max(stalled_sessions_count)", "stalled")],
    ),
    (
        "Requests a second by status",
        "timeseries",
        "reqps",
        [("sum by (status) (rate(api_requests_total[$__rate_interval]))", "{{status}}")],
    ),
    (
        "Share of 5xx",
        "timeseries",
        "percentunit",
        [
            (
                (
                    'sum(rate(api_requests_total{status=~"5.."}[$__rate_interval])) '
                    "/ sum(rate(api_requests_total[$__rate_interval]))"
                ),
                "5xx",
            )
        ],
    ),
    (
        "Heartbeat latency",
        "timeseries",
        "ms",
        [
            (
                _quantile(share, "heartbeat_latency_ms", "le"),
                f"p{round(100 * share)}",
            )
            for share in (0.5, 0.95, 0.99)
        ],
    ),
    (
        "Database operations, p95 by command",
        "timeseries",
        "ms",
        [
            (
                _quantile(0.95, "database_query_duration_ms", "le, command"),
                "{{command}}",
            )
        ],
    ),
    (
        "Circuit of the database (0 closed, 1 half open, 2 open)",
        "timeseries",
        "none",
        [("max(database_circuit_state)", "circuit")],
    ),
    (
        "Success of the last 24 hours",
        "timeseries",
        "percentunit",
        [('max by (name) (success_metric{name=~".*_rate"})', "{{name}}")],
    ),
    (
        "Time to detect silence",
        "timeseries",
        "ms",
        [('max by (name) (success_metric{name=~"time_to_detect.*"})', "{{name}}")],
    ),
    (
        "Rate limit storage away; versions",
        "timeseries",
        "none",
        [
            ("sum(increase(rate_limit_storage_failures_total[$__rate_interval]))", "passed without a limit"),
            ("count by (version) (build_info)", "{{version}}"),
        ],
    ),
]


def dashboard() -> Json:
    """The dashboard, for Grafana 10 and newer."""
    panels: list[Json] = []
    for number, (title, kind, unit, curves) in enumerate(PANELS):
        panels.append(
            {
                "id": number + 1,
                "type": kind,
                "title": title,
                "datasource": _SOURCE,
                "gridPos": {
                    "x": number % 3 * _WIDTH,
                    "y": number // 3 * _HEIGHT,
                    "w": _WIDTH,
                    "h": _HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {},
                "targets": [
                    {
                        "refId": chr(65 + index),
                        "datasource": _SOURCE,
                        "expr": expression,
                        "legendFormat": legend,
                    }
                    for index, (expression, legend) in enumerate(curves)
                ],
            }
        )
    return {
        "title": "Claude Projects",
        "uid": "claude-projects",
        "tags": ["claude-projects"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
