"""A real Chromium that looks at a real server; every look must leave nothing behind in the console."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, async_playwright, expect
from pymongo import MongoClient

from api_harness.api import Api
from api_harness.server import Server
from api_harness.servers import Document, Documents, Servers
from dashboard.scenes import Scene
from dashboard.visitors import SECONDS, Visitor, Visitors, new_context
from state_tracking_api.embedded import Mongod


@pytest.fixture(scope="package")
async def browser() -> AsyncGenerator[Browser]:
    """Debian's Chromium, for all tests here."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "these tests need Chromium: apt-get install chromium"
    # Playwright's own five seconds are less than the longest pause between two polls of a page in trouble.
    expect.set_options(timeout=SECONDS * 1_000)
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=Path(chromium),
            args=["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-sync"],
        )
        yield running
        await running.close()


@pytest.fixture(scope="package")
async def context(browser: Browser) -> AsyncGenerator[BrowserContext]:
    """Where the windows are opened that need nothing special."""
    shared = await new_context(browser)
    yield shared
    await shared.close()


@pytest.fixture
async def visitors(browser: Browser, context: BrowserContext) -> AsyncGenerator[Visitors]:
    """Windows that are closed, and asked whether all was well, when the test is over."""
    opened = Visitors(browser, context)
    yield opened
    for visitor in opened.all:
        await visitor.leave()
    for visitor in opened.all:
        visitor.assert_nothing_is_wrong()


@pytest.fixture
async def visitor(visitors: Visitors, server: Server) -> Visitor:
    """One window on the server that all share."""
    return await visitors.to(server)


@pytest.fixture
async def timed(visitors: Visitors, server: Server) -> Visitor:
    """The same, with a clock that the test moves."""
    return await visitors.to(server, clock=True)


# One server for all tests here instead of one a module: they look at projects and machines of their own.


@pytest.fixture(scope="package")
def servers(mongod: Mongod, mongo: MongoClient[Document]) -> Iterator[Servers]:
    """Servers and databases that all tests here share."""
    with Servers(mongod.uri, mongo) as running:
        yield running


@pytest.fixture(scope="package")
def database(servers: Servers) -> Documents:
    """The server's database, past the API."""
    return servers.database()


@pytest.fixture(scope="package")
def server(servers: Servers, database: Documents) -> Server:
    """The server, its scheduler off."""
    return servers.start(database)


@pytest.fixture(scope="package")
def api(server: Server) -> Iterator[Api]:
    """A client of the server, with its key."""
    with Api(server.base_url, server.key) as client:
        yield client


@pytest.fixture(scope="package")
def anonymous(server: Server) -> Iterator[Api]:
    """A client of the server, without a key."""
    with Api(server.base_url, None) as client:
        yield client


@pytest.fixture(scope="package")
def scene(api: Api, database: Documents) -> Scene:
    """Makes what there is to see on the module's server."""
    return Scene(api, database)
