"""What is observed is in the unit that its name says."""

from __future__ import annotations

import time

from state_tracking_api.metrics import Metrics


def test_heartbeat_latency_is_in_milliseconds() -> None:
    metrics = Metrics()
    started = time.perf_counter()
    while time.perf_counter() - started < 0.02:
        pass
    metrics.time_heartbeat(started)
    observed = metrics.registry.get_sample_value("heartbeat_latency_ms_sum")
    assert observed is not None
    assert observed >= 20
