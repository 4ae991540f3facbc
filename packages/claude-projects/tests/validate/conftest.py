"""Validations of one healthy server and of several broken ones, all at the same time."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from validate_harness import HEALTHY, Deployment, Validated, deploy, validate

from state_tracking_api.embedded import Mongod


@pytest.fixture(scope="module")
def deployments(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Deployment]]:
    """A server of each kind."""
    running = deploy(mongod.uri, tmp_path_factory.mktemp("deployments"))
    try:
        for deployment in running.values():
            deployment.await_answers()
        yield running
    finally:
        for process in {one.process for one in running.values()}:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def validations(
    deployments: dict[str, Deployment], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Validated]:
    """The quick validation, once against the healthy server and each of the broken ones."""
    return validate(deployments, tmp_path_factory.mktemp("validations"))


@pytest.fixture
def healthy(validations: dict[str, Validated]) -> Validated:
    """The validation of the healthy server, which still runs."""
    return validations[HEALTHY]


@pytest.fixture
def standing(deployments: dict[str, Deployment]) -> Deployment:
    """The healthy server, for tests that need none of the validations."""
    return deployments[HEALTHY]
