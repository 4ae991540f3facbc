"""Routes for operators: health, metrics, the API's own documentation (PRD 5.3)."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any

import pymongo
from pydantic import Field
from pymongo.errors import PyMongoError
from starlette.responses import HTMLResponse, PlainTextResponse

from state_tracking_api import analytics, jobs, metrics, presence
from state_tracking_api import health as session_health
from state_tracking_api.clock import iso, iso_or_none
from state_tracking_api.errors import NotFound
from state_tracking_api.http.call import Answer, Call
from state_tracking_api.http.models import AnswerModel, Timestamp
from state_tracking_api.http.route import LeanRoute, Router
from state_tracking_api.lifecycle import Document
from state_tracking_api.metadata import Json

router = Router()

CHECK_TIMEOUT_SECONDS = 5
METRICS_WINDOW = timedelta(hours=24)
JOBS_LATE_AFTER = timedelta(minutes=10)
_ASSETS = {"swagger-ui.css": b"text/css", "swagger-ui-bundle.js": b"text/javascript"}


class Health(AnswerModel):
    """The process answers."""

    status: str = Field(examples=["ok"])
    timestamp: Timestamp
    uptime: float = Field(description="Seconds since start")


class DatabaseHealth(AnswerModel):
    """Whether the database answers."""

    status: str = Field(examples=["ok"])
    response_time_ms: float
    connected: bool


class JobsHealth(AnswerModel):
    """Whether the background jobs run."""

    status: str = Field(examples=["ok"])
    last_run: Timestamp | None


class ConsistencyHealth(AnswerModel):
    """What the last check of the stored data has found."""

    status: str = Field(examples=["ok"])
    checked_at: Timestamp | None
    violations: int | None


class Dependencies(AnswerModel):
    """What the API depends on."""

    database: DatabaseHealth
    background_jobs: JobsHealth
    consistency: ConsistencyHealth


class DetailedHealth(Health):
    """The process and what it depends on."""

    dependencies: Dependencies
    version: str
    environment: str
    suspected_outage: bool = Field(description="Most sessions fell silent within the same minute")


def _uptime(call: Call) -> float:
    return round(max(0.001, (call.now - call.resources.started).total_seconds()), 3)


@router.get("/health", response_model=Health, tags=["operations", "public"], summary="Is the process alive?")
async def health(call: Call) -> Json:
    """Asks nothing but the process itself; for whether the database answers see /health/detailed."""
    return {"status": "ok", "timestamp": iso(call.now), "uptime": _uptime(call)}


@router.get(
    "/health/detailed",
    response_model=DetailedHealth,
    responses={503: {"model": DetailedHealth, "description": "A dependency is in error"}},
    tags=["operations"],
    summary="Do the dependencies work?",
)
async def detailed(call: Call) -> Answer:
    """`ok`, `degraded` (200) or `error` (503), over all and for each dependency."""
    database, found = await _look(call)
    background = _jobs_health(call, found.last_run)
    violated = bool(found.check["violations"])
    consistency = {
        "status": "degraded" if violated else "ok",
        "checked_at": iso_or_none(found.check["checked_at"]),
        "violations": found.check["violations"],
    }
    states = {database["status"], background["status"], consistency["status"]}
    status = next((state for state in ("error", "degraded") if state in states), "ok")
    body = {
        "status": status,
        "timestamp": iso(call.now),
        "uptime": _uptime(call),
        "dependencies": {
            "database": database,
            "background_jobs": background,
            "consistency": consistency,
        },
        "version": metrics.VERSION,
        "environment": call.settings.environment,
        "suspected_outage": found.suspected_outage,
    }
    return Answer(body, 503 if status == "error" else 200)


@dataclass
class _Found:
    """What the database knows of the service's own state."""

    last_run: datetime | None = None
    check: Document = field(default_factory=lambda: {"checked_at": None, "violations": None})
    suspected_outage: bool = False


async def _look(call: Call) -> tuple[Json, _Found]:
    started = time.perf_counter()
    found = _Found()
    try:
        with pymongo.timeout(CHECK_TIMEOUT_SECONDS):
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                await call.storage.sessions.estimated_document_count()
                connected = True
                elapsed = (time.perf_counter() - started) * 1000
                found.last_run = await jobs.last_run(call.storage, jobs.DETECT_FAILURES)
                found.check = await presence.latest_check(call.storage)
                found.suspected_outage = await presence.is_outage_suspected(call.storage, call.now)
    except (PyMongoError, TimeoutError):
        connected = False
        elapsed = (time.perf_counter() - started) * 1000
    status = "ok" if connected else "error"
    return {"status": status, "response_time_ms": round(elapsed, 3), "connected": connected}, found


def _jobs_health(call: Call, last: datetime | None) -> Json:
    # Who has chosen longer pauses between the scans is not warned of each of them.
    pauses = 2 * timedelta(seconds=call.settings.stall_scan_interval_seconds)
    late = call.now - (last or call.resources.started) > max(JOBS_LATE_AFTER, pauses)
    return {"status": "degraded" if late else "ok", "last_run": iso_or_none(last)}


@router.get(
    "/metrics", response_class=PlainTextResponse, tags=["operations"], summary="Metrics in Prometheus' format"
)
async def exposition(call: Call) -> Answer:
    """Gauges of sessions come from the database, so they are the same on every instance."""
    measured = call.resources.metrics
    known = call.storage.breaker.state != "open"
    try:
        if known:
            with pymongo.timeout(CHECK_TIMEOUT_SECONDS):
                await _fill_gauges(call)
    except PyMongoError:
        known = False
    if not known:
        for gauge in (measured.active_sessions, measured.stalled_sessions, measured.suspected_outage):
            gauge.set(math.nan)
    measured.show_circuit(call.storage.breaker.state)
    return Answer(measured.render(), media_type=metrics.CONTENT_TYPE.encode())


async def _fill_gauges(call: Call) -> None:
    """Read what is true of all instances together."""
    measured = call.resources.metrics
    counts = await session_health.summary(call.storage, call.now, call.settings.stall_threshold)
    measured.active_sessions.set(counts["active_sessions"])
    measured.stalled_sessions.set(counts["stalled_sessions"])
    measured.suspected_outage.set(counts["suspected_outage"])
    measured.suspected_outages.set(await presence.suspected_outages(call.storage))
    checked = await presence.latest_check(call.storage)
    measured.consistency_violations.set(_number(checked["violations"]))
    found = await analytics.summary(call.storage, call.now - METRICS_WINDOW, call.now, None)
    for name, value in {
        "recovery_rate": found["recovery"]["rate"],
        "time_to_detect_p50_ms": found["detection"]["time_to_detect_ms"]["p50"],
        "time_to_detect_p95_ms": found["detection"]["time_to_detect_ms"]["p95"],
        "false_positive_rate": found["false_positives"]["rate"],
        "heartbeat_success_rate": found["heartbeats"]["success_rate"],
        "session_completion_rate": found["sessions"]["completion_rate"],
        "task_completion_rate": found["tasks"]["completion_rate"],
    }.items():
        measured.success.labels(name).set(_number(value))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def documentation(document: Callable[[], dict[str, Any]]) -> list[LeanRoute]:
    """Routes that serve the OpenAPI document; `document` is called when it is first asked for."""
    docs = Router(tags=["operations", "public"])

    making = threading.Lock()

    @cache
    def made() -> bytes:
        return json.dumps(document()).encode()

    def made_once() -> bytes:
        with making:
            return made()

    async def encoded() -> bytes:
        # Making it takes most of a second, once: heartbeats must not wait for that.
        return await asyncio.to_thread(made_once)

    @docs.get("/api/openapi.json", summary="The OpenAPI document", response_model=dict[str, Any])
    async def openapi(call: Call) -> Answer:
        """Always JSON."""
        del call
        return Answer(await encoded())

    @docs.get(
        "/api/docs",
        summary="The OpenAPI document, or a page to read it and try it out",
        response_model=dict[str, Any],
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    async def page(call: Call) -> Answer:
        """HTML where the client prefers it, JSON otherwise."""
        vary = (b"vary", b"Accept")
        if not prefers_html(call.accept) or _asset("swagger-ui.css") is None:
            return Answer(await encoded(), headers=[vary])
        return Answer(_PAGE, media_type=b"text/html; charset=utf-8", headers=[vary, _CONTENT_SECURITY])

    @docs.get("/assets/docs/{name}", response_class=HTMLResponse, include_in_schema=False)
    async def asset(call: Call, name: str) -> Answer:
        """Style and script of the page."""
        del call
        content = _page_asset(name)
        if content is None:
            raise NotFound(f"There is nothing at /assets/docs/{name}")
        media_type, body = content
        return Answer(body, media_type=media_type, headers=[(b"cache-control", b"public, max-age=86400")])

    return docs.routes


def prefers_html(accept: str) -> bool:
    """Whether a client would rather have HTML than JSON (RFC 9110, section 12.5.1)."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if media_type in weights:
            weights[media_type] = max(weights[media_type], quality)
    return weights["text/html"] > weights["application/json"]


def _page_asset(name: str) -> tuple[bytes, bytes] | None:
    if name == "start.js":
        return b"text/javascript", _START
    media_type = _ASSETS.get(name)
    body = _asset(name) if media_type else None
    return (media_type, body) if media_type and body is not None else None


@cache
def _asset(name: str) -> bytes | None:
    """A file of Swagger UI, from the package that carries it; None where that is not installed."""
    try:
        return (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        return None


_CONTENT_SECURITY = (
    b"content-security-policy",
    b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'",
)
_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>State tracking API</title>
<link rel="stylesheet" href="/assets/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/assets/docs/swagger-ui-bundle.js"></script>
<script src="/assets/docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({ url: "/api/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
"""
