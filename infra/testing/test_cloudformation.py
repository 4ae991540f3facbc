"""The stack against AWS's own schemas, by cfn-lint; a fault seeded into the template must be found.

Run by `make test-infra` in the environment of infra/requirements-test.lock; the graph comes on stdin.
"""

from __future__ import annotations

import copy
import json
import sys
import unittest
from collections.abc import Callable
from typing import Any

from cfnlint.api import lint
from cfnlint.config import ManualArgs
from cloudformation import template

GRAPH = json.load(sys.stdin)
Resources = dict[str, Any]


def complaints(document: dict[str, Any]) -> list[str]:
    """What cfn-lint says of a template, warnings included."""
    return [
        f"{found.rule.id} {found.message}"
        for found in lint(json.dumps(document), config=ManualArgs(regions=["us-east-1"]))
    ]


def set_property(resource: str, name: str, value: object) -> Callable[[Resources], None]:
    """A fault: one property of one resource gets another value."""

    def seed(resources: Resources) -> None:
        properties = resources[resource]["Properties"]
        *path, last = name.split(".")
        for step in path:
            properties = properties[int(step) if step.isdecimal() else step]
        assert last in properties, f"{resource} has no {name}"
        properties[last] = value

    return seed


FAULTS: dict[str, Callable[[Resources], None]] = {
    "a retention that CloudWatch does not know": set_property("ServerLogGroup", "RetentionInDays", 31),
    "less memory than Lambda has": set_property("ServerFunction", "MemorySize", 64),
    "a timeout longer than Lambda allows": set_property("ServerFunction", "Timeout", 901),
    "a runtime that does not exist": set_property("ServerFunction", "Runtime", "python3.99"),
    "an architecture that does not exist": set_property("ServerFunction", "Architectures", ["arm"]),
    "a cron expression with five fields": set_property(
        "CleanupScheduleExpression", "ScheduleExpression", "cron(0 2 * * *)"
    ),
    "a rate in the wrong number": set_property(
        "DetectFailuresScheduleExpression", "ScheduleExpression", "rate(1 minutes)"
    ),
    "an alarm's comparison that does not exist": set_property("Database", "ComparisonOperator", "LessThan"),
    "an alarm's statistic that does not exist": set_property("Database", "Statistic", "Median"),
    "missing data treated in an unknown way": set_property("Database", "TreatMissingData", "alarm"),
    "a viewer protocol policy that does not exist": set_property(
        "EdgeDistribution", "DistributionConfig.DefaultCacheBehavior.ViewerProtocolPolicy", "redirect"
    ),
    "a TLS version that CloudFront does not have": set_property(
        "EdgeDistribution", "DistributionConfig.ViewerCertificate.MinimumProtocolVersion", "TLSv1.4"
    ),
    "a policy with an unknown effect": set_property(
        "ServerRole", "Policies.0.PolicyDocument.Statement.0.Effect", "Permit"
    ),
}


class CloudFormation(unittest.TestCase):
    """AWS's schemas accept the stack and notice what is wrong in it."""

    def test_the_stack_is_valid_by_aws_schemas(self) -> None:
        document = template(GRAPH)
        self.assertGreater(len(document["Resources"]), 30)
        self.assertEqual(complaints(document), [])

    def test_a_seeded_fault_is_found(self) -> None:
        for name, seed in FAULTS.items():
            with self.subTest(name):
                document = copy.deepcopy(template(GRAPH))
                seed(document["Resources"])
                self.assertNotEqual(complaints(document), [], name)


if __name__ == "__main__":
    unittest.main()
