"""Reading Prometheus' text format with Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from api_harness.api import Api


class Exposition:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def values(self, sample: str, **labels: str) -> list[float]:
        """The values of every sample of this name that has these labels, and maybe others."""
        return [
            found.value
            for family in self.families.values()
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        ]

    def value(self, sample: str, **labels: str) -> float:
        """The value of the one sample with these labels."""
        [value] = self.values(sample, **labels)
        return value

    def labels(self, sample: str, label: str) -> set[str]:
        """Every value of a label."""
        return {
            found.labels[label]
            for family in self.families.values()
            for found in family.samples
            if found.name == sample
        }


def read_metrics(api: Api) -> Exposition:
    """GET /metrics."""
    answer = api.get("/metrics")
    assert answer.status_code == 200, answer.text
    return Exposition(answer.text)


def metric(api: Api, sample: str, **labels: str) -> float:
    """One sample of /metrics as it is now."""
    return read_metrics(api).value(sample, **labels)


def reaches(api: Api, sample: str, value: float, **labels: str) -> Callable[[], bool]:
    """A probe for whether a sample has this value."""
    return lambda: metric(api, sample, **labels) == value
