"""Polling: cheap where nothing changes, slow where nobody looks, honest where nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest
from playwright.async_api import Route
from playwright.async_api import expect as seen

from api_harness.api import Api
from api_harness.server import Server, free_port
from api_harness.servers import Servers
from dashboard.visitors import Visitor, Visitors

VIEW = "/api/dashboard/overview"


async def test_an_unchanged_view_costs_a_304(timed: Visitor, api: Api) -> None:
    session = api.session()
    api.set_session(session, "paused")
    await timed.open(f"/dashboard?project={session['project_id']}")
    async with timed.page.expect_response(lambda answer: VIEW in answer.url) as caught:
        await timed.until_the_next_poll()
    answer = await caught.value
    assert answer.status == 304
    assert (await answer.request.all_headers())["if-none-match"]
    await seen(timed.row(session)).to_contain_text("Paused")


async def test_one_request_a_poll_and_few_seconds_between_two(timed: Visitor) -> None:
    await timed.open()
    before = len(timed.polls("/api/"))
    await timed.pass_time(30)
    assert 6 <= len(timed.polls("/api/")) - before <= 11


async def test_a_hidden_tab_asks_once_a_minute_and_at_once_when_it_is_seen_again(timed: Visitor) -> None:
    page = timed.page
    await timed.open()
    await page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await timed.pass_time(5)  # the one that was due already
    before = len(timed.polls(VIEW))
    await timed.pass_time(50)
    assert len(timed.polls(VIEW)) == before
    await timed.pass_time(12)
    assert len(timed.polls(VIEW)) == before + 1
    async with page.expect_request(lambda request: VIEW in request.url):
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', { configurable: true, get: () => false })"
        )
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


class Door:
    """A port of its own before a server, which refuses connections while it is shut."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = free_port()
        self._listener: asyncio.Server | None = None
        self._inside: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Let through whoever comes."""
        self._listener = await asyncio.start_server(self._let_through, "127.0.0.1", self.port)

    async def shut(self) -> None:
        """End all connections, and accept no others: as where the process has ended."""
        assert self._listener is not None
        self._listener.close()
        for writer in self._inside:
            writer.transport.abort()
        await self._listener.wait_closed()

    async def _let_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection("127.0.0.1", self.server.port)
        self._inside |= {writer, onwards}
        await asyncio.gather(self._pass_on(reader, onwards), self._pass_on(there, writer))
        self._inside -= {writer, onwards}

    async def _pass_on(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                to.write(data)
                await to.drain()
        to.close()


@pytest.mark.slow
async def test_it_says_when_the_api_is_away_and_goes_on_when_it_is_back(
    visitors: Visitors, server: Server, api: Api
) -> None:
    session = api.session()
    door = Door(server)
    await door.open()
    visitor = await visitors.to(server)
    visitor.base_url = f"http://127.0.0.1:{door.port}"
    await visitor.open(f"/dashboard?project={session['project_id']}")
    visitor.failures_are_expected = True
    row = visitor.row(session)
    await seen(row).to_be_visible()
    await door.shut()
    trouble = visitor.page.get_by_role("status").filter(has_text="The API is not answering")
    await seen(trouble).to_contain_text("What is shown is from")
    await seen(visitor.page.locator(".pulse.dead")).to_contain_text("old")
    await seen(row).to_be_visible()
    # What is not known is not shown as silence: time goes on, and the bar stands still.
    said = await row.locator(".beat-text").inner_text()
    old = await visitor.page.locator(".pulse.dead").inner_text()
    await seen(visitor.page.locator(".pulse.dead")).not_to_have_text(old)
    assert await row.locator(".beat-text").inner_text() == said
    await door.open()
    await seen(visitor.page.locator(".pulse.live")).to_be_visible()
    await seen(trouble).to_have_count(0)
    await visitor.page.close()
    await door.shut()


async def test_a_key_that_is_used_up_is_waited_for(visitors: Visitors, own: Servers) -> None:
    server = own.start(RATE_LIMIT_PER_MINUTE="3")
    visitor = await visitors.to(server)
    visitor.failures_are_expected = True
    with Api(server.base_url, server.key) as api:
        for _ in range(3):
            api.get("/api/sessions")
    await visitor.page.goto(f"{server.base_url}/dashboard#key={server.key}")
    said = visitor.page.get_by_role("status").filter(has_text="used up its requests")
    await seen(said).to_contain_text("Next try in")


@pytest.mark.parametrize(
    ("remaining", "ends_in", "wait"),
    [
        pytest.param(4, 60, 30, id="never more than half of what is left"),
        # As where five windows are open: half a minute has gone by, and half of the requests.
        pytest.param(50, 30, 12, id="less where all who use the key would need all of it"),
        pytest.param(80, 30, 3, id="as always where there is enough"),
    ],
)
async def test_the_page_leaves_requests_of_its_key_to_others(
    timed: Visitor, remaining: int, ends_in: int, wait: int
) -> None:
    page = timed.page

    async def told(route: Route) -> None:
        answer = await route.fetch()
        now = await page.evaluate("Date.now()")
        budget = {
            "x-ratelimit-limit": "100",
            "x-ratelimit-remaining": str(remaining),
            "x-ratelimit-reset": str(now // 1000 + ends_in),
            "date": "",
        }
        await route.fulfill(response=answer, headers={**answer.headers, **budget})

    await page.route(f"**{VIEW}*", told)
    await timed.open()
    await seen(page.locator(".pulse")).to_have_text("live" if wait == 3 else re.compile("live every"))
    before = len(timed.polls(VIEW))
    await timed.pass_time(wait * 3 // 4)
    assert len(timed.polls(VIEW)) == before
    await timed.pass_time(wait // 2 + 1)
    assert len(timed.polls(VIEW)) == before + 1


async def test_a_view_that_is_asked_for_less_often_is_not_called_old_in_between(
    visitors: Visitors, server: Server
) -> None:
    # Within one of the steps by which the window of the trends moves on, whatever the server's clock says.
    visitor = await visitors.to(server, clock="2026-01-01T00:01:00Z")
    page = visitor.page

    async def timeless(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, headers={**answer.headers, "date": ""})

    await page.route("**/api/dashboard/trends*", timeless)
    await visitor.open("/dashboard/trends")
    await page.locator(".stat").first.wait_for()
    before = len(visitor.polls("/api/dashboard/trends"))
    await visitor.pass_time(26)
    assert len(visitor.polls("/api/dashboard/trends")) == before
    # As it is now: soon the next answer comes, and makes anything right.
    assert await page.locator(".pulse").inner_text() == "live"
    assert await page.locator(".trouble").count() == 0
