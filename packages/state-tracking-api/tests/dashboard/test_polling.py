"""Polling: cheap where nothing changes, slow where nobody looks, honest where nothing comes."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest
from playwright.async_api import Route
from playwright.async_api import expect as seen
from ports import free_port

from api_harness.api import Api
from api_harness.server import Server
from api_harness.servers import Servers
from dashboard.visitors import Visitor, Visitors, gaps

VIEW = "/api/dashboard/overview"
TRENDS = "/api/dashboard/trends"
LOOK = """[
    (performance.now() - questions.findLast(({ path }) => path.includes("trends")).answered) / 1000,
    document.querySelector(".pulse").innerText,
    document.querySelectorAll(".trouble").length,
]"""
"""How many seconds old the last answer about trends is, what the header says to that, and any trouble."""


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
    polls = await timed.pass_time_until_asked(VIEW, 7, within=40)
    assert all(3 <= gap <= 5 for gap in gaps(polls)), polls
    others = [question.path for question in await timed.questions() if question.path != VIEW]
    assert others == ["/api/dashboard/names"], "for the filters, once"


async def test_a_hidden_tab_asks_once_a_minute_and_at_once_when_it_is_seen_again(timed: Visitor) -> None:
    page = timed.page
    await timed.open()
    await page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    before = len(await timed.questions(VIEW))
    # The first may have been due already, and after that one a minute goes by.
    polls = await timed.pass_time_until_asked(VIEW, before + 2, within=130)
    *_, gap = gaps(polls)
    assert 60 <= gap <= 75, polls
    async with page.expect_request(lambda request: VIEW in request.url):
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', { configurable: true, get: () => false })"
        )
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    *_, gap = gaps(await timed.questions(VIEW))
    assert gap < 60


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


async def test_a_key_that_is_used_up_is_waited_for(own: Servers, visitors: Visitors) -> None:
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
    [gap, *_] = gaps(await timed.pass_time_until_asked(VIEW, 2, within=2 * wait))
    # The window of the key ends while its answer is on its way: the later that arrives, the shorter the wait.
    assert 0.75 * wait <= gap <= 1.25 * wait + 1


async def test_a_view_that_is_asked_for_less_often_is_not_called_old_in_between(
    visitors: Visitors, server: Server
) -> None:
    # Within one of the steps by which the window of the trends moves on, whatever the server's clock says.
    visitor = await visitors.to(server, clock="2026-01-01T00:01:00Z")
    page = visitor.page

    async def timeless(route: Route) -> None:
        # Nor when the key's requests are counted anew: the page would take that to be months away.
        answer = await route.fetch()
        told = {"date", "x-ratelimit-reset"}
        headers = {name: value for name, value in answer.headers.items() if name not in told}
        await route.fulfill(response=answer, headers=headers)

    await page.route(f"**{TRENDS}*", timeless)
    await visitor.open("/dashboard/trends")
    await page.locator(".stat").first.wait_for()
    looks: list[tuple[float, str, int]] = []
    for _ in range(32):
        await visitor.pass_time(1)
        looks.append(tuple(await page.evaluate(LOOK)))
    [gap, *_] = gaps(await visitor.pass_time_until_asked(TRENDS, 2, within=10))
    assert 30 <= gap <= 40
    # From when on what is asked for every few seconds is called old, until the next answer makes it right.
    assert {look[1:] for look in looks if 17 <= look[0] < 30} == {("live", 0)}, looks
