"""The overview: what it shows, how it follows what happens, and what its address keeps."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect as seen

from api_harness.api import Api, ago, expect, unique
from api_harness.servers import Documents
from dashboard.visitors import Visitor


async def test_a_row_shows_where_a_session_is_and_how_far(visitor: Visitor, api: Api) -> None:
    session = api.session(docker_slot=4)
    api.task_in(session, "completed", task_name="Lay the ground")
    api.task_in(session, "in_progress", task_name="Build the wall")
    api.task_in(session, "pending", task_name="Put on the roof")
    await visitor.open()
    row = visitor.row(session)
    for text in (
        "Active",
        session["project_id"],
        session["machine_id"],
        "slot 4",
        "Build the wall",
        "1 of 3",
    ):
        await seen(row).to_contain_text(text)
    meter = row.get_by_role("meter", name="Time since the last heartbeat")
    assert await meter.get_attribute("aria-valuemax") == "180000"
    await seen(row.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "1 of 3 tasks done")


async def test_the_heartbeat_bar_lives(visitor: Visitor, api: Api, database: Documents) -> None:
    session = api.session()
    database["sessions"].update_one(
        {"session_id": session["session_id"]}, {"$set": {"last_heartbeat": ago(seconds=150)}}
    )
    await visitor.open()
    beat = visitor.row(session).locator(".beat")
    await seen(beat).to_have_class(re.compile(r"\blate\b"))
    await seen(beat).to_contain_text(re.compile(r"2 min [345]\d s"))  # late until three minutes have gone by
    text = await beat.inner_text()
    await seen(beat).not_to_have_text(text)  # it counts without any news from the server
    expect(api.act(session, "heartbeat"), 200)
    await seen(beat).to_have_class(re.compile(r"\bfresh\b"))


@pytest.mark.slow
async def test_what_happens_is_seen_without_a_reload(timed: Visitor, api: Api) -> None:
    project = unique("project")
    await timed.open(f"/dashboard?project={project}")
    await seen(timed.page.get_by_text("No session matches")).to_be_visible()
    session = api.session(project_id=project)
    row = timed.row(session)
    await timed.until_the_next_poll()
    await seen(row).to_contain_text("Active")
    api.set_session(session, "paused")
    await timed.until_the_next_poll()
    await seen(row).to_contain_text("Paused")
    await seen(timed.page.locator('[aria-live="polite"]')).to_contain_text("is paused")
    api.act(session, "mark-failed", {"error_message": "it broke in two"})
    await timed.until_the_next_poll()
    await seen(row).to_contain_text("Failed")
    await seen(row).to_contain_text("it broke in two")
    await seen(timed.page).to_have_title(re.compile(r"^\(\d+\) "))
    api.delete(f"/api/sessions/{session['session_id']}")
    await timed.until_the_next_poll()
    await seen(row).to_have_count(0)


async def test_an_address_with_filters_can_be_shared(visitor: Visitor, api: Api) -> None:
    project, machine = unique("project"), unique("machine")
    wanted = api.session_in("stalled", project_id=project, machine_id=machine)
    others = [
        api.session(project_id=project, machine_id=machine),
        api.session_in("stalled", project_id=project),
        api.session_in("stalled", machine_id=machine),
    ]
    await visitor.open(f"/dashboard?project={project}&machine={machine}&status=stalled")
    await seen(visitor.row(wanted)).to_be_visible()
    for other in others:
        await seen(visitor.row(other)).to_have_count(0)
    await seen(visitor.page.get_by_label("Project", exact=True)).to_have_value(project)
    await seen(visitor.page.get_by_role("link", name="1 Stalled")).to_have_attribute("aria-current", "true")


async def test_filters_change_the_address_and_the_back_button_undoes_them(visitor: Visitor, api: Api) -> None:
    session = api.session_in("failed")
    await visitor.open()
    page = visitor.page
    await page.get_by_label("Project", exact=True).fill(session["project_id"])
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/dashboard?project={session['project_id']}")
    await page.get_by_role("link", name=re.compile(r"^\d+ Failed$")).click()
    await page.wait_for_url("**/dashboard?project=*&status=failed")
    await seen(page.locator("[data-session]")).to_have_count(1)
    await page.go_back()
    await page.wait_for_url(f"**/dashboard?project={session['project_id']}")
    await page.get_by_role("link", name="Clear filters").click()
    await page.wait_for_url("**/dashboard")
    assert await page.get_by_label("Project", exact=True).input_value() == ""


async def test_a_project_is_chosen_among_those_that_there_are(visitor: Visitor, api: Api) -> None:
    session = api.session()
    await visitor.open(f"/dashboard?machine={session['machine_id']}")
    option = visitor.page.locator(f'datalist option[value="{session["project_id"]}"]')
    await seen(option).to_have_count(1)


async def test_a_long_list_is_paged(visitor: Visitor, api: Api) -> None:
    machine = unique("machine")
    for _ in range(52):
        api.session(machine_id=machine)
    await visitor.open(f"/dashboard?machine={machine}")
    page = visitor.page
    await seen(page.locator("[data-session]")).to_have_count(50)
    await seen(page.get_by_role("navigation", name="Pages")).to_contain_text(
        re.compile("1.50 of 52 sessions")
    )
    await page.get_by_role("link", name="Next").click()
    await seen(page.locator("[data-session]")).to_have_count(2)
    await page.wait_for_url("**&page=2")


async def test_everything_is_reached_by_keyboard(visitor: Visitor, api: Api) -> None:
    session = api.session()
    await visitor.open(f"/dashboard?project={session['project_id']}")
    page = visitor.page
    await seen(visitor.row(session)).to_be_visible()
    await page.keyboard.press("Tab")
    await seen(page.get_by_role("link", name="Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    for _ in range(12):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.className") == "row-link":
            break
    await seen(visitor.row(session).get_by_role("link")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/dashboard/sessions/{session['session_id']}")
    # Not at the top of the document, where everything before the content would have to be gone through again.
    await seen(page.get_by_role("main")).to_be_focused()


async def test_the_way_back_shows_what_was_there_and_asks_only_for_what_is_new(
    visitor: Visitor, api: Api
) -> None:
    session = api.session_in("paused")
    page = visitor.page
    await visitor.open(f"/dashboard?project={session['project_id']}")
    await visitor.row(session).get_by_role("link").click()
    await seen(page.get_by_role("heading", level=1)).to_have_text(session["project_id"])
    async with page.expect_response("**/api/dashboard/overview*") as caught:
        await page.go_back()
    answer = await caught.value
    assert answer.status == 304
    await seen(visitor.row(session)).to_contain_text("Paused")


async def test_no_width_makes_the_page_scroll_sideways(visitor: Visitor, api: Api) -> None:
    session = api.session(
        project_id=unique("p" * 400), machine_id=unique("m" * 400), metadata={"k" * 900: "v" * 900}
    )
    api.task_in(session, "failed", task_name="t" * 500)
    api.machine(machine_id=unique("n" * 400), docker_slots=list(range(60)))
    await visitor.open()
    views = ("", f"/sessions/{session['session_id']}", "/machines", "/trends")
    for view in views:
        await visitor.follow(f"/dashboard{view}")
        await seen(visitor.page.locator(".loading")).to_have_count(0)
        for width in (320, 390, 768, 1360):
            await visitor.page.set_viewport_size({"width": width, "height": 800})
            wider = await visitor.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, (view, width)
