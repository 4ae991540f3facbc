"""A server that most tests share, and machines to work on."""

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from claude_projects import Client
from claude_projects.exchange import Retry
from client_harness.command import Machine
from client_harness.server import KEY, Server
from client_harness.wire import Wire
from state_tracking_api.embedded import Mongod


@pytest.fixture(scope="module")
def server(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that nobody harms. Sessions are stalled after three minutes, unless a test says otherwise."""
    running = Server(mongod.uri, "shared", tmp_path_factory.mktemp("server") / "log")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def nervous(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that nobody harms, and that calls sessions stalled after 3 seconds."""
    running = Server(
        mongod.uri,
        "nervous",
        tmp_path_factory.mktemp("nervous") / "log",
        STALL_THRESHOLD_MS="3000",
        STALL_SCAN_INTERVAL_SECONDS="1",
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def frail(mongod: Mongod, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, to be killed; started."""
    running = Server(mongod.uri, f"frail-{uuid.uuid4().hex[:8]}", tmp_path / "server.log")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server.url, KEY) as made:
        yield made


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A wire to the shared server."""
    made = Wire(server.port)
    yield made
    made.close()


@pytest.fixture
def wired(wire: Wire) -> Iterator[Client]:
    """A client at the end of the wire, with short pauses."""
    with Client(wire.url, KEY, retry=Retry(attempts=4, base=0.001)) as made:
        yield made


@pytest.fixture
def project() -> str:
    """A project of the test's own."""
    return f"project-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Makes machines: ``machines(server.url)`` or ``machines(server.url, environment={...})``."""
    made: list[Machine] = []

    def machine(url: str, name: str | None = None, **more: object) -> Machine:
        name = name or f"machine-{uuid.uuid4().hex[:8]}"
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        made.append(Machine(home, url, name, **more))  # pyright: ignore[reportArgumentType]
        return made[-1]

    yield machine
    for one in made:
        one.clear()
