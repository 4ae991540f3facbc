"""No violation that axe-core knows of, in any view, size and scheme; and what a machine cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Page
from playwright.async_api import expect as seen

from api_harness.api import Api, Json, expect, unique
from api_harness.server import Server
from dashboard.scenes import Scene
from dashboard.visitors import PHONE, Visitor, Visitors

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def sessions(scene: Scene, api: Api) -> Sequence[Json]:
    """Five sessions of all kinds, one of them recovered; and three silent ones one below the other."""
    made = scene.five()
    api.session_in("paused")
    machine = api.machine(machine_id=unique("machine"), docker_slots=[1, 2])
    for _ in range(3):
        api.session_in("stalled", machine_id=machine["machine_id"])
    return [*made, scene.recovered(made[2])]


async def violations(page: Page) -> list[Any]:
    # Colours that are still on their way to another state are not looked at.
    await page.evaluate(
        "Promise.allSettled(document.getAnimations().filter(a => Number.isFinite("
        "a.effect.getComputedTiming().endTime)).map(a => a.finished))"
    )
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE_SCRIPT)
    # Only what is wrong is put together and sent: a page has some hundred things that are right.
    return await page.evaluate(
        """async values => {
            const found = await axe.run({ resultTypes: ["violations"], runOnly: { type: "tag", values } });
            return found.violations.map(each => [
                each.id, each.nodes.slice(0, 5).map(node => node.target), each.nodes[0].failureSummary,
            ]);
        }""",
        RULES,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
async def test_axe_finds_nothing(
    visitors: Visitors, server: Server, sessions: Sequence[Json], size: str, scheme: str
) -> None:
    options: dict[str, Any] = {"viewport": PHONE} if size == "phone" else {}
    visitor = await (await visitors.to(server, color_scheme=scheme, **options)).open()
    page = visitor.page
    active, _, stalled, failed, *_ = sessions
    views = {
        "/dashboard": "[data-session]",
        "/dashboard?project=nobody": ".empty",
        f"/dashboard/sessions/{active['session_id']}": ".timeline .task",
        f"/dashboard/sessions/{stalled['session_id']}": ".chain",
        f"/dashboard/sessions/{failed['session_id']}": ".history li",
        "/dashboard/machines": ".machine",
        "/dashboard/trends": "figure.chart canvas",
    }
    for path, there in views.items():
        await visitor.go(path)
        await page.locator(there).first.wait_for()
        assert await violations(page) == [], path
    for details in await page.locator("details summary").all():
        await details.click()
    assert await violations(page) == []


@pytest.mark.slow
async def test_axe_finds_nothing_in_dialogs_and_results(
    visitor: Visitor, api: Api, sessions: Sequence[Json]
) -> None:
    session = api.session()
    page = visitor.page
    await visitor.open(f"/dashboard/sessions/{session['session_id']}")
    for action in ("Mark stalled", "Mark failed", "Recover"):
        await page.get_by_role("button", name=f"{action}…").click()
        await page.get_by_role("dialog").wait_for()
        assert await violations(page) == [], action
        await page.keyboard.press("Escape")
        if action == "Mark failed":
            expect(api.act(session, "mark-stalled"), 200)
    await page.get_by_role("button", name="Recover…").click()
    await page.get_by_role("dialog").get_by_role("button", name="Recover", exact=True).click()
    await page.locator(".result a").wait_for()
    assert await violations(page) == []


async def test_axe_finds_nothing_where_the_key_is_asked_for(visitor: Visitor, server: Server) -> None:
    await visitor.page.goto(f"{server.base_url}/dashboard")
    await visitor.page.get_by_label("Key", exact=True).fill("x")
    await visitor.page.keyboard.press("Enter")
    await seen(visitor.page.get_by_role("alert")).not_to_be_empty()
    assert await violations(visitor.page) == []


async def test_the_table_is_a_table_to_a_screen_reader_on_a_phone(
    visitors: Visitors, server: Server, sessions: Sequence[Json]
) -> None:
    session = sessions[0]
    # By its project: on the server that all files here share, others may fill the first page.
    visitor = await (await visitors.to(server, viewport=PHONE)).open(
        f"/dashboard?project={session['project_id']}"
    )
    table = visitor.page.get_by_role("table", name="Sessions")
    await seen(table.get_by_role("columnheader")).to_have_count(6)
    await seen(visitor.row(session)).to_have_role("row")
    await seen(visitor.row(session).get_by_role("cell")).to_have_count(6)


async def test_nothing_moves_for_who_asked_for_less_motion(
    visitors: Visitors, server: Server, sessions: Sequence[Json]
) -> None:
    visitor = await (await visitors.to(server, reduced_motion="reduce")).open()
    await visitor.page.locator(".beat-fill").first.wait_for()
    moving = await visitor.page.evaluate(
        "document.getAnimations().filter(a => a.effect.getComputedTiming().activeDuration > 0).length"
    )
    assert moving == 0
