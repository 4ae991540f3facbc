"""The Lambda entry points: requests from the HTTP API and jobs from EventBridge, in one process.

Everything that lives longer than one invocation is made once, at import: one event loop, one application, one
database client. The loop never closes, so the client's connections stay good from one invocation to the next;
`asyncio.run` anywhere would break them, and so would a lifespan per event (Mangum's default).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

_IMPORTING = time.perf_counter()

import msgspec  # noqa: E402 - what follows is the larger part of a cold start, so it is timed
import pymongo  # noqa: E402
from mangum import Mangum  # noqa: E402
from pymongo import monitoring  # noqa: E402
from pymongo.errors import PyMongoError  # noqa: E402

from state_tracking_api import analytics, clock, health, jobs, log, settings  # noqa: E402
from state_tracking_api.app import Resources, create_app  # noqa: E402
from state_tracking_api.errors import ApiError  # noqa: E402
from state_tracking_api.http import operations  # noqa: E402
from state_tracking_api.http.call import SCOPE_KEY, Answer, Call  # noqa: E402
from state_tracking_api.settings import Settings  # noqa: E402

# The stack's alarms and dashboard read these (infra/alarms.ts).
NAMESPACE = "StateTrackingApi"
FUNCTION = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "state-tracking-api")
# CloudWatch takes at most this many values of one metric in a line.
MAX_VALUES = 100
# What an instance counts for itself is added up in the database this often, with the next request or job.
COUNTS_STORED_EVERY_SECONDS = 30.0
STORE_COUNTS_SECONDS = 1.0
# A job stops this long before Lambda would end it in the middle of something.
SPARE_SECONDS = 2.0
# A transaction whose end did not reach the database is ended before the answer goes out, for nothing runs
# afterwards: waited for at most so long, and so long before Lambda would end the invocation.
END_LEFT_OPEN_SECONDS = 2.0
SPARE_TO_ANSWER_SECONDS = 0.5
REPORT_HEALTH = "report-health"
# How long a start waits for the database; Lambda gives a start ten seconds, and /health needs no database.
CONNECT_SECONDS = 3.0
# Named by the stack where CloudFront stands in front, which overwrites it: a caller cannot choose it there.
VIEWER_ADDRESS = os.environ.get("VIEWER_ADDRESS_HEADER", "").lower().encode()
# A connection unused for a minute may be gone after a freeze; few are needed, one request runs at a time.
CLIENT_OPTIONS: dict[str, Any] = {
    "maxPoolSize": 10,
    "minPoolSize": 0,
    "maxIdleTimeMS": 60_000,
    "serverSelectionTimeoutMS": 4_000,
}
PER_INSTANCE = b"""\
# Counters and histograms are this one instance's, since its start; Lambda runs several and ends them at will.
# CloudWatch has the sums of all, in the namespace StateTrackingApi. Gauges come from the database.
"""

Event = Mapping[str, Any]
_encode = msgspec.json.Encoder(enc_hook=str).encode


class QueryDurations(monitoring.CommandListener):
    """Durations of the commands since they were last taken, in milliseconds."""

    def __init__(self) -> None:
        self._durations: list[float] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Nothing: the driver tells the duration at the end."""

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Keep the duration of a command that was answered."""
        self._durations.append(event.duration_micros / 1000)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Keep the duration of a command that failed."""
        self._durations.append(event.duration_micros / 1000)

    def take(self) -> list[float]:
        """What has been kept, at most what one line may carry; it is forgotten here."""
        taken, self._durations = self._durations[-MAX_VALUES:], []
        return taken


def emit(metrics: Mapping[str, tuple[str, float | Iterable[float]]], **context: object) -> None:
    """Write one line in CloudWatch's embedded metric format: what is counted survives the instance.

    `metrics` is a unit and a value, or values, by name; `context` goes into the line for searching.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
    """
    definitions = [{"Name": name, "Unit": unit} for name, (unit, _) in metrics.items()]
    directive = {"Namespace": NAMESPACE, "Dimensions": [["Function"]], "Metrics": definitions}
    line = {
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]},
        "Function": FUNCTION,
        **{name: value for name, (_, value) in metrics.items()},
        "context": context,
    }
    sys.stdout.buffer.write(_encode(line) + b"\n")
    sys.stdout.flush()


def read_settings() -> Settings:
    """The environment, and the secrets that SST has linked, which are encrypted in the package.

    The rate limit is counted in the database unless another storage is named.
    """
    linked: dict[str, str] = {}
    if os.environ.get("SST_KEY_FILE"):
        resource = importlib.import_module("sst").Resource
        linked = {"mongodb_uri": resource.MongodbUri.value, "api_keys": resource.ApiKeys.value}
        # Always linked, so that a withdrawn one goes away; empty where the operator has named none.
        if storage := resource.RateLimitStorageUri.value:
            linked["rate_limit_storage_uri"] = storage
    if "rate_limit_storage_uri" not in linked and not os.environ.get("RATE_LIMIT_STORAGE_URI"):
        linked["rate_limit_storage_uri"] = linked.get("mongodb_uri") or os.environ.get(
            "MONGODB_URI", "memory://"
        )
    return settings.load(**linked)


class Behind:
    """Around the application: gives it the caller's address, and keeps the last call for the metrics."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.call: Call | None = None
        self.status = 500

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As an ASGI application."""
        self.call, self.status = None, 500
        if VIEWER_ADDRESS:
            viewer = next((value for name, value in scope["headers"] if name == VIEWER_ADDRESS), b"")
            # "198.51.100.10:46532", "2001:db8::1:46532": the port is behind the last colon.
            if address := viewer.decode("latin-1").rpartition(":")[0].strip("[]"):
                scope["client"] = (address, 0)

        note = PER_INSTANCE if scope["path"] == "/metrics" else b""

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                if note and self.status == 200:
                    headers = [header for header in message["headers"] if header[0] != b"content-length"]
                    message = {**message, "headers": headers}
            elif note and self.status == 200 and message.get("body"):
                message = {**message, "body": note + message["body"]}
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self.call = scope.get(SCOPE_KEY)


class Function:
    """What lives as long as the instance, and its two ways in."""

    def __init__(self, configured: Settings) -> None:
        log.configure(configured.log_level)
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self._durations = QueryDurations()
        monitoring.register(self._durations)
        app = create_app(configured, **CLIENT_OPTIONS)
        self.resources: Resources = app.state.resources
        self._behind = Behind(app)
        self._gateway = Mangum(self._behind, lifespan="off")
        self._cold = True
        self._counted_at = float("-inf")
        imported = time.perf_counter()
        self._connect()
        log.get().info(
            f"Function started, ENVIRONMENT={configured.environment}",
            environment=configured.environment,
            release=os.environ.get("RELEASE"),
            python=sys.version.split()[0],
            import_ms=round((imported - _IMPORTING) * 1000, 1),
            connect_ms=round((time.perf_counter() - imported) * 1000, 1),
        )
        # What was made up to here lives as long as the process: the collector need not look at it again.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    def _connect(self) -> None:
        """Connect while the instance starts, with the whole CPU that a start is given; not at any price."""
        try:
            self.loop.run_until_complete(asyncio.wait_for(self.resources.storage.prepare(), CONNECT_SECONDS))
        except (PyMongoError, ApiError, TimeoutError) as error:
            log.get().warning("Database is away at start", error=type(error).__name__)

    def http(self, event: Event, context: Any) -> dict[str, Any]:
        """Answer an event of the HTTP API (payload format 2.0)."""
        began = time.perf_counter()
        answer = self._gateway(dict(event), context)
        elapsed = (time.perf_counter() - began) * 1000
        call = self._behind.call
        endpoint = call.endpoint if call else "unmatched"
        metrics: dict[str, tuple[str, float | Iterable[float]]] = {
            "Requests": ("Count", 1),
            "RequestLatency": ("Milliseconds", round(elapsed, 3)),
        }
        if endpoint == "/api/sessions/{session_id}/heartbeat" and self._behind.status < 500:
            metrics["HeartbeatLatency"] = ("Milliseconds", round(elapsed, 3))
        self._finish(
            metrics,
            context,
            # One line holds the ids of all three: the API's, the gateway's, the function's.
            request_id=call.request_id if call else None,
            gateway_request_id=event["requestContext"].get("requestId"),
            endpoint=endpoint,
            method=event["requestContext"]["http"]["method"],
            status=self._behind.status,
        )
        return answer

    def job(self, event: Event, context: Any) -> dict[str, Any]:
        """Run the background job that a schedule names; its failure is logged and is the invocation's."""
        name = str(event.get("job"))
        log.clear()
        log.bind(lambda_request_id=context.aws_request_id, job_name=name)
        began = time.perf_counter()
        left = max(1.0, context.get_remaining_time_in_millis() / 1000 - SPARE_SECONDS)
        work = self._report_health() if name == REPORT_HEALTH else self._run(name, left)
        result = self.loop.run_until_complete(work)
        duration = ("Milliseconds", round((time.perf_counter() - began) * 1000, 3))
        self._finish({"JobRuns": ("Count", 1), "JobDuration": duration}, context, job_name=name)
        return result

    async def _run(self, name: str, seconds: float) -> Any:
        if name not in jobs.JOBS:
            raise ValueError(
                f"There is no job {name!r}; there are {', '.join(jobs.JOBS)} and {REPORT_HEALTH}"
            )
        # What is done by then is done; the rest is the next run's.
        with pymongo.timeout(seconds):
            return await jobs.run(self.resources.storage, self.resources.settings, name)

    async def _store_heartbeats(self) -> None:
        """Add this instance's count of heartbeats to the database's: no timer runs between two events."""
        received, failed = self.resources.metrics.take_heartbeats()
        if received:
            self._counted_at = time.monotonic()
            try:
                with pymongo.timeout(STORE_COUNTS_SECONDS):
                    await analytics.add_heartbeats(self.resources.storage, clock.now(), received, failed)
            except PyMongoError:
                self.resources.metrics.put_back_heartbeats(received, failed)

    async def _report_health(self) -> Any:
        """What /health/detailed says, and how many sessions there are, for the alarms and the dashboard."""
        call = Call(self.resources, REPORT_HEALTH, clock.now())
        answer: Answer = await operations.detailed(call)
        dependencies = answer.body["dependencies"]
        up = {
            "DatabaseUp": dependencies["database"]["status"] == "ok",
            "BackgroundJobsUp": dependencies["background_jobs"]["status"] == "ok",
        }
        gauges: dict[str, tuple[str, float | Iterable[float]]] = {
            name: ("None", int(value)) for name, value in up.items()
        }
        if up["DatabaseUp"]:
            gauges["SuspectedOutage"] = ("None", int(answer.body["suspected_outage"]))
            # None before the first check.
            gauges["ConsistencyViolations"] = ("Count", dependencies["consistency"]["violations"] or 0)
            threshold = self.resources.settings.stall_threshold
            counts = await health.summary(self.resources.storage, call.now, threshold)
            gauges["ActiveSessions"] = ("Count", counts["active_sessions"])
            gauges["StalledSessions"] = ("Count", counts["stalled_sessions"])
        else:
            log.get().error("The database does not answer", **dependencies["database"])
        emit(gauges, status=answer.body["status"])
        return answer.body

    def end_left_open(self, since: float, context: Any) -> None:
        """End the transactions that this invocation, answered or failed, has left open in the database.

        Else they hold what they have written until another event comes to this instance. Those that an
        earlier one could not end, with the database away, are not waited for again: /health must answer.
        """
        left = context.get_remaining_time_in_millis() / 1000 - SPARE_TO_ANSWER_SECONDS
        if left > 0 and self.resources.storage.has_left_open(since):
            seconds = min(END_LEFT_OPEN_SECONDS, left)
            self.loop.run_until_complete(self.resources.storage.end_left_open(seconds))

    def _finish(
        self, metrics: dict[str, tuple[str, float | Iterable[float]]], context: Any, **more: object
    ) -> None:
        # Lambda must not end an answered request because of what is counted afterwards.
        spare = context.get_remaining_time_in_millis() / 1000 > STORE_COUNTS_SECONDS + SPARE_SECONDS
        if spare and time.monotonic() - self._counted_at > COUNTS_STORED_EVERY_SECONDS:
            self.loop.run_until_complete(self._store_heartbeats())
        if self._cold:
            metrics["ColdStart"] = ("Count", 1)
            self._cold = False
        if durations := self._durations.take():
            metrics["DatabaseQueryDuration"] = ("Milliseconds", durations)
        emit(metrics, lambda_request_id=context.aws_request_id, **more)


def _start() -> Function:
    """Lambda reports a start that fails as lines of its own making: the alarms read ours."""
    try:
        return Function(read_settings())
    except Exception:
        log.configure("error")
        log.get().exception("Function could not start")
        raise


_function = _start()


def handler(event: Event, context: Any) -> dict[str, Any]:
    """Lambda's entry point: an event of the HTTP API, or `{"job": NAME}` from a schedule.

    Whatever escapes is written as an ERROR line and raised again, so that Lambda counts it, too.
    """
    began = time.monotonic()
    try:
        return _function.http(event, context) if "requestContext" in event else _function.job(event, context)
    except Exception:
        log.get().exception("Invocation failed", lambda_request_id=context.aws_request_id)
        raise
    finally:
        _function.end_left_open(began, context)
