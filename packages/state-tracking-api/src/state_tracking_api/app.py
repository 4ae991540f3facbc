"""Everything put together: resources, routes, layers. The one place where that happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pymongo
from limits.errors import ConfigurationError as LimitsError
from pymongo.errors import PyMongoError
from starlette.applications import Starlette

from state_tracking_api import analytics, clock, log
from state_tracking_api.auth import Keyring
from state_tracking_api.background import end
from state_tracking_api.clock import Clock
from state_tracking_api.errors import ConfigurationError
from state_tracking_api.http import (
    dashboard,
    insight,
    machines,
    operations,
    recovery,
    sessions,
    tasks,
)
from state_tracking_api.http.dispatch import Dispatcher
from state_tracking_api.http.middleware import Asgi, Cors, Envelope, Errors, Guard
from state_tracking_api.http.route import LeanRoute
from state_tracking_api.jobs import Scheduler
from state_tracking_api.metrics import VERSION, Metrics, QueryTimer
from state_tracking_api.ratelimit import RateLimiter
from state_tracking_api.settings import Settings, Switch
from state_tracking_api.storage import Storage

DESCRIPTION = """\
Knows what runs, where, and how far it came: sessions send heartbeats, tasks are tracked, silence is noticed,
and a successor goes on from the last state.
"""


COUNTS_STORED_EVERY_SECONDS = 10
STORE_COUNTS_SECONDS = 1
# What the end may take once the requests are over, so that a database that does not answer does not hold it
# up; and what of that a slow one has for the last counts, which would be lost with the process.
END_SECONDS = 2.5
LAST_COUNTS_SECONDS = 2


@dataclass(frozen=True)
class Resources:
    """What lives as long as the process."""

    settings: Settings
    storage: Storage
    metrics: Metrics
    started: datetime


class Application(Starlette):
    """Starts and stops as Starlette does; requests go through our own layers alone."""

    layers: Asgi
    endpoints: Sequence[LeanRoute]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As an ASGI application."""
        if scope["type"] == "lifespan":
            await self.router(scope, receive, send)
        else:
            await self.layers(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of every endpoint."""
        # FastAPI writes it. Importing that is a large part of a start, and few ask for the document.
        from state_tracking_api.http import document  # noqa: PLC0415

        return document.build(
            self.endpoints,
            title="Claude Projects State Tracking API",
            version=VERSION,
            summary="Runtime state of long-running Claude orchestrations",
            description=DESCRIPTION,
        )


def create_app(settings: Settings, *, now: Clock = clock.now, **client_options: Any) -> Application:
    """The application for these settings; nothing connects before it is used.

    `now` is the clock of everything in it, `client_options` go to the MongoDB client. Where the lifespan
    protocol is run (a server, not Lambda), the database is set up in the background, the scheduler runs, and
    both end with it. `app.state.resources` has the parts.

    Raises ConfigurationError where an address in the settings cannot be used.
    """
    metrics = Metrics()
    with _usable("MONGODB_URI"):
        storage = Storage(settings, event_listeners=[QueryTimer(metrics)], **client_options)
    # Told at once, not only when somebody asks: of several workers the one that answers /metrics is any.
    storage.breaker.on_change = metrics.show_circuit
    resources = Resources(settings, storage, metrics, started=now())
    with _usable("RATE_LIMIT_STORAGE_URI"):
        limiter = RateLimiter(settings, metrics, storage.database)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        log.get().info(
            f"Server started, ENVIRONMENT={settings.environment}",
            environment=settings.environment,
            version=VERSION,
            scheduler=str(settings.scheduler),
        )
        background = [
            asyncio.create_task(storage.keep_preparing()),
            asyncio.create_task(_keep_counting(resources, now)),
        ]
        if settings.scheduler is Switch.ON:
            background.append(asyncio.create_task(Scheduler(storage, settings, now).run()))
        try:
            yield
        finally:
            until = asyncio.get_running_loop().time() + END_SECONDS
            # At once: the background jobs may have leases to give back, for which they wait, too.
            await asyncio.gather(end(*background), _store_heartbeats(resources, now, LAST_COUNTS_SECONDS))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await limiter.close()
                    await storage.close()
            log.get().info("Server stopped")

    app = Application(lifespan=lifespan)
    app.state.resources = resources
    # The most frequent first; fixed paths are found before patterns in any case.
    app.endpoints = (
        *sessions.router.routes,
        *tasks.router.routes,
        *machines.router.routes,
        *recovery.router.routes,
        *insight.router.routes,
        *operations.router.routes,
        *dashboard.routes,
        *operations.documentation(app.openapi),
    )
    inner = Dispatcher(app.endpoints, settings.request_timeout_ms / 1000, settings.db_timeout_ms / 1000)
    guard = Guard(inner, Keyring(settings.api_keys), limiter)
    app.layers = Envelope(Cors(Errors(guard), settings.cors_origins), resources, now)
    return app


@contextlib.contextmanager
def _usable(variable: str) -> Generator[None]:
    """Name the variable where a library refuses its value; the library's words may quote a password."""
    try:
        yield
    except (PyMongoError, LimitsError, ValueError, OSError):
        raise ConfigurationError(f"{variable} is not an address that can be used") from None


async def _keep_counting(resources: Resources, now: Clock) -> None:
    """Store now and then how many heartbeats came; counted in the database, they are so for all instances."""
    while True:
        await asyncio.sleep(COUNTS_STORED_EVERY_SECONDS)
        await _store_heartbeats(resources, now, STORE_COUNTS_SECONDS)


async def _store_heartbeats(resources: Resources, now: Clock, seconds: float) -> None:
    if resources.storage.breaker.state != "closed":
        return  # they are kept until it is: the failed ones above all must not be lost
    received, failed = resources.metrics.take_heartbeats()
    if received:
        try:
            with pymongo.timeout(seconds):
                await analytics.add_heartbeats(resources.storage, now(), received, failed)
        except PyMongoError:
            resources.metrics.put_back_heartbeats(received, failed)
