"""The key: taken out of the address at once, kept for the tab only, sent as a header and nowhere else."""

from __future__ import annotations

import uuid

import pytest
from playwright.async_api import expect as seen

from api_harness.server import Server
from dashboard.visitors import Visitor, Visitors

KEPT = "Object.values(sessionStorage).concat(Object.values(localStorage), document.cookie)"


async def test_the_link_with_the_key_opens_the_dashboard_and_loses_the_key_at_once(visitor: Visitor) -> None:
    page = visitor.page
    # What the address bar said at the first moment at which the page could be asked.
    await page.add_init_script("addEventListener('DOMContentLoaded', () => { window.first = location.href })")
    await visitor.open("/dashboard?status=failed")
    assert await page.evaluate("location.href") == f"{visitor.server.base_url}/dashboard?status=failed"
    assert await page.evaluate("window.first") == f"{visitor.server.base_url}/dashboard?status=failed"
    assert await page.evaluate("history.length") <= 2


async def test_the_key_is_in_the_tabs_storage_and_in_no_other_place(visitor: Visitor) -> None:
    await visitor.open()
    page, key = visitor.page, visitor.server.key
    assert await page.evaluate("Object.values(sessionStorage)") == [key]
    assert await page.evaluate("localStorage.length") == 0
    assert await visitor.context.cookies() == []
    assert key not in await page.content()
    await page.reload()
    await page.locator(".pulse.live").wait_for()
    other = await visitor.context.new_page()
    await other.goto(f"{visitor.server.base_url}/dashboard")
    await seen(other.get_by_role("heading", name="API key")).to_be_visible()


async def test_the_key_reaches_the_server_as_a_header_and_no_log(visitor: Visitor) -> None:
    await visitor.open()
    await visitor.follow("/dashboard/machines")
    key = visitor.server.key
    assert not [request.url for request in visitor.requests if key in request.url and "#" not in request.url]
    asked = visitor.polls("/api/")
    assert asked
    assert all(request.headers["x-api-key"] == key for request in asked)
    assert not [request for request in visitor.polls("/dashboard") if "x-api-key" in request.headers]
    assert not [line for line in visitor.server.lines if key in str(line)]


async def test_without_a_key_it_is_asked_for_once(visitor: Visitor, server: Server) -> None:
    page = visitor.page
    await page.goto(f"{server.base_url}/dashboard?status=active")
    field = page.get_by_label("Key", exact=True)
    await seen(field).to_be_focused()
    await field.fill("not a key")
    await field.press("Enter")
    await seen(page.get_by_role("alert")).to_contain_text("That is not a key")
    await field.fill(server.key.upper())
    await field.press("Enter")
    await page.locator(".pulse.live").wait_for()
    assert await page.evaluate("location.pathname + location.search") == "/dashboard?status=active"
    await page.reload()
    await page.locator(".pulse.live").wait_for()


async def test_a_key_that_opens_nothing_is_forgotten_and_said_so(visitor: Visitor, server: Server) -> None:
    visitor.failures_are_expected = True
    page = visitor.page
    await page.goto(f"{server.base_url}/dashboard#key={uuid.uuid4()}")
    await seen(page.get_by_role("alert")).to_have_text("Invalid API key.")
    assert await page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("said", ["%", "0f8fad5b"])
async def test_a_link_that_was_cut_off_asks_for_the_key(visitor: Visitor, server: Server, said: str) -> None:
    page = visitor.page
    await page.goto(f"{server.base_url}/dashboard#key={said}")
    await seen(page.get_by_role("alert")).to_have_text("The link did not carry a whole key.")
    assert await page.evaluate("location.hash") == ""


async def test_forgetting_the_key_leaves_nothing_behind(visitors: Visitors, server: Server) -> None:
    visitor = await (await visitors.to(server)).open()
    await visitor.page.get_by_role("button", name="Forget key").click()
    await seen(visitor.page.get_by_role("heading", name="API key")).to_be_visible()
    assert not [value for value in await visitor.page.evaluate(KEPT) if value]
