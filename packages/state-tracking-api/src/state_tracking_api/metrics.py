"""What is counted and timed, in Prometheus' terms (PRD 5.3)."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from pymongo import monitoring

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
VERSION = version("state-tracking-api")

disable_created_metrics()

_HEARTBEAT_BUCKETS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
_CIRCUIT = {"closed": 0, "half_open": 1, "open": 2}
_QUERY_BUCKETS = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000, 5000, 10000)


class Metrics:
    """The metrics of one process; gauges that come from the database are set when they are read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "api_requests_total",
            "Total API requests",
            ["endpoint", "method", "status"],
            registry=self.registry,
        )
        self.heartbeat_latency = Histogram(
            "heartbeat_latency_ms",
            "Heartbeat processing latency",
            buckets=_HEARTBEAT_BUCKETS,
            registry=self.registry,
        )
        self.query_duration = Histogram(
            "database_query_duration_ms",
            "Database query latency",
            ["command"],
            buckets=_QUERY_BUCKETS,
            registry=self.registry,
        )
        # Gauges that come from the database are the same for every worker, so the newest one counts.
        self.active_sessions = self._gauge("active_sessions_count", "Current active sessions")
        self.stalled_sessions = self._gauge("stalled_sessions_count", "Current stalled sessions")
        self.rate_limit_failures = Counter(
            "rate_limit_storage_failures_total",
            "Requests let through because the shared rate limit storage was away",
            registry=self.registry,
        )
        self.circuit_state = Gauge(
            "database_circuit_state",
            "Circuit breaker of the database: 0 closed, 1 half open, 2 open",
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self._gauge("build_info", "Version of the API", "version").labels(VERSION).set(1)
        self.consistency_violations = self._gauge(
            "consistency_violations_count", "Violations left by the last check of the stored data"
        )
        self.suspected_outage = self._gauge(
            "suspected_outage", "1 while most sessions fell silent within the same minute"
        )
        self.suspected_outages = self._gauge(
            "suspected_outages_count", "How often most sessions have fallen silent within the same minute"
        )
        self.success = self._gauge(
            "success_metric",
            "Success metrics of the last 24 hours: rates from 0 to 1, times in milliseconds",
            "name",
        )
        self._heartbeats_received = self._heartbeats_failed = 0
        self._request_counters: dict[tuple[str, str, int], Any] = {}

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(name, description, labels, multiprocess_mode="mostrecent", registry=self.registry)

    def count_request(self, endpoint: str, method: str, status: int) -> None:
        """Count one answered request; `endpoint` is the route's template."""
        key = (endpoint, method, status)
        counter = self._request_counters.get(key)
        if counter is None:
            counter = self._request_counters[key] = self.requests.labels(endpoint, method, str(status))
        counter.inc()

    def show_circuit(self, state: str) -> None:
        """Show the state of the circuit breaker: closed, half_open or open."""
        self.circuit_state.set(_CIRCUIT[state])

    def time_heartbeat(self, started: float) -> None:
        """Observe how long a heartbeat took that began at `started`, a reading of `time.perf_counter`."""
        self.heartbeat_latency.observe((time.perf_counter() - started) * 1000)

    def count_heartbeat(self, status: int) -> None:
        """Count one heartbeat; it failed where the fault was ours, or it was one too many."""
        self._heartbeats_received += 1
        self._heartbeats_failed += status >= 500 or status == 429

    def take_heartbeats(self) -> tuple[int, int]:
        """How many heartbeats were received, and how many of them failed, since this was last asked."""
        taken = self._heartbeats_received, self._heartbeats_failed
        self._heartbeats_received = self._heartbeats_failed = 0
        return taken

    def put_back_heartbeats(self, received: int, failed: int) -> None:
        """What was taken could not be stored."""
        self._heartbeats_received += received
        self._heartbeats_failed += failed

    def render(self) -> bytes:
        """Everything in the text format; of several worker processes, their sum."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)
        return generate_latest(together)


class QueryTimer(monitoring.CommandListener):
    """Times every command that the driver sends, by the name of the command."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._timers: dict[str, Any] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Nothing: the driver tells the duration at the end."""

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Observe the duration of a command that was answered."""
        self._observe(event.command_name, event.duration_micros)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Observe the duration of a command that failed."""
        self._observe(event.command_name, event.duration_micros)

    def _observe(self, command: str, micros: int) -> None:
        timer = self._timers.get(command)
        if timer is None:
            timer = self._timers[command] = self._metrics.query_duration.labels(command)
        timer.observe(micros / 1000)
