"""The page of a session: its timeline, what happened, its chain, and what can be done with it."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from playwright.async_api import Route
from playwright.async_api import expect as seen

from api_harness.api import Api, Json, expect, unique
from api_harness.servers import Documents
from dashboard.scenes import Scene
from dashboard.visitors import Visitor


def address(session: Json) -> str:
    return f"/dashboard/sessions/{session['session_id']}"


async def press(visitor: Visitor, action: str, confirm: str | None = None) -> None:
    """Press an action's button, and the one that confirms it."""
    await visitor.page.get_by_role("button", name=f"{action}…").click()
    await visitor.page.get_by_role("dialog").get_by_role("button", name=confirm or action, exact=True).click()


async def test_the_timeline_draws_tasks_heartbeats_stalls_and_recoveries(
    visitor: Visitor, scene: Scene, api: Api
) -> None:
    project = "billing-migration"
    session = scene.orchestration(project, unique("machine"), done=2)
    expect(api.act(session, "mark-stalled"), 200)
    scene.age(session, minutes=30, silent_seconds=600)
    expect(api.recover(session), 201)
    await visitor.open(address(session))
    timeline = visitor.page.locator(".timeline")
    await seen(timeline.locator(".segment.is-active")).to_have_count(1)
    await seen(timeline.locator(".segment.is-stalled")).to_have_count(1)
    await seen(timeline.locator(".flag-stall")).to_have_count(1)
    await seen(timeline.locator(".flag-recovery")).to_have_count(1)
    assert await timeline.locator(".tick").count() >= 15
    await seen(timeline.locator(".task.is-completed")).to_have_count(2)
    await seen(timeline.locator(".task.is-failed")).to_have_count(1)
    lanes = timeline.get_by_role("list", name="Tasks").get_by_role("listitem")
    await seen(lanes).to_have_count(4)
    await seen(lanes.nth(3)).to_contain_text("handed on")
    successor = api.read_session(session)["recovered_by"]
    goes_on = lanes.nth(2).get_by_role("link", name=successor[:8])
    await seen(goes_on).to_have_attribute("href", f"/dashboard/sessions/{successor}")
    # In the order of time, one after the other.
    lefts = [(await box.bounding_box() or {"x": 0})["x"] for box in await timeline.locator(".task").all()]
    assert lefts == sorted(lefts)
    assert len(set(lefts)) == 3


async def test_what_happened_is_told_with_who_and_why(visitor: Visitor, api: Api) -> None:
    session = api.session()
    task = api.task_in(session, "in_progress", task_name="Dig the hole")
    api.act(session, "mark-failed", {"error_message": "the spade broke"})
    await visitor.open(address(session))
    history = visitor.page.get_by_role("region", name="What happened")
    for text in ("Dig the hole", "In progress", "Failed", "the spade broke", "by key tests"):
        await seen(history).to_contain_text(text)
    assert task["task_name"] == "Dig the hole"


async def test_tasks_that_were_added_together_are_told_together(visitor: Visitor, api: Api) -> None:
    session = api.session()
    for name in ("dig", "fill", "plant"):
        api.task(session, task_name=name)
    await visitor.open(address(session))
    history = visitor.page.get_by_role("region", name="What happened").get_by_role("listitem")
    await seen(history).to_have_text([re.compile("3 tasks added"), re.compile("Session Active")])


async def test_what_happened_is_asked_for_again_where_it_did_not_come(timed: Visitor, api: Api) -> None:
    """Also where the session stays as it is, so that no poll brings any news."""
    session = api.session_in("completed")
    events = f"**/api/sessions/{session['session_id']}/events*"
    timed.failures_are_expected = True
    await timed.page.route(events, lambda route: route.abort(), times=1)
    await timed.open(address(session))
    history = timed.page.get_by_role("region", name="What happened")
    await timed.pass_time(16)
    await seen(history.get_by_role("listitem").first).to_contain_text("Completed")


async def test_the_result_of_an_action_does_not_wait_for_the_next_poll(visitor: Visitor, api: Api) -> None:
    """Not even where a poll was under way, which knows nothing of it; the next one is a minute away."""
    session = api.session()
    page = visitor.page
    released = asyncio.Event()
    held: list[Route] = []

    async def slowed(route: Route) -> None:
        answer = await route.fetch()
        told = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "1", "date": ""}
        told["x-ratelimit-reset"] = str(int(time.time()) + 60)
        held.append(route)
        if len(held) == 2:
            await released.wait()
        await route.fulfill(response=answer, headers={**answer.headers, **told})

    await page.route(f"**/api/dashboard/sessions/{session['session_id']}", slowed)
    await visitor.open(address(session))
    async with page.expect_request("**/api/dashboard/sessions/*"):
        await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    async with page.expect_response("**/mark-stalled"):
        await press(visitor, "Mark stalled")
    released.set()
    await seen(page.locator(".head .pill")).to_have_text("Stalled")
    assert len(held) == 3


@pytest.mark.slow
async def test_the_page_follows_its_session(timed: Visitor, api: Api) -> None:
    session = api.session()
    task = api.task(session, task_name="Dig the hole")
    await timed.open(address(session))
    lane = timed.page.get_by_role("list", name="Tasks").get_by_role("listitem")
    await seen(lane).to_contain_text("not started")
    api.set_task(task, "in_progress")
    await timed.until_the_next_poll()
    await seen(lane.locator(".task.is-in_progress")).to_have_count(1)
    api.set_task(task, "completed")
    api.set_session(session, "completed")
    await timed.until_the_next_poll()
    await seen(lane.locator(".task.is-completed")).to_have_count(1)
    await seen(timed.page.locator(".head .pill")).to_have_text("Completed")


async def test_marking_stalled_and_recovering_by_button(visitor: Visitor, api: Api) -> None:
    session = api.session()
    api.task_in(session, "completed", task_name="first")
    api.task_in(session, "pending", task_name="second")
    machine = api.machine(docker_slots=[1, 2, 3])
    api.session(machine_id=machine["machine_id"], docker_slot=2)
    await visitor.open(address(session))
    page = visitor.page
    await press(visitor, "Mark stalled")
    await seen(page.locator(".result")).to_contain_text("marked stalled")
    await seen(page.locator(".result")).to_be_focused()
    assert api.read_session(session)["status"] == "stalled"

    await page.get_by_role("button", name="Recover…").click()
    dialog = page.get_by_role("dialog", name="Recover this session?")
    where = dialog.get_by_label("On which machine?")
    await seen(where).to_have_value(session["machine_id"])
    await where.fill(machine["machine_id"])
    await seen(dialog).to_contain_text("Free there: 1, 3")
    await dialog.get_by_label("Docker slot").fill("2")
    visitor.failures_are_expected = True
    await dialog.get_by_role("button", name="Recover", exact=True).click()
    await seen(dialog.get_by_role("alert")).to_contain_text("slot")  # the API's own words; nothing is lost
    await dialog.get_by_label("Docker slot").fill("3")
    await dialog.get_by_role("button", name="Recover", exact=True).click()
    await seen(page.locator(".result")).to_contain_text("Recovered: the work goes on")
    successor = api.read_session(api.read_session(session)["recovered_by"])
    assert (successor["machine_id"], successor["docker_slot"]) == (machine["machine_id"], 3)
    await seen(page.locator(".head .pill")).to_have_text(re.compile("Completed.*handed over"))

    chain = page.get_by_role("navigation", name="Predecessors and successors").get_by_role("link")
    await seen(chain).to_have_count(2)
    await page.locator(".result").get_by_role("link").click()
    await page.wait_for_url(f"**{address(successor)}")
    await seen(page.locator(".head .pill")).to_have_text("Active")
    await seen(page.get_by_role("list", name="Tasks").get_by_role("listitem")).to_contain_text(["second"])


async def test_marking_failed_asks_why_and_archiving_keeps_it(visitor: Visitor, api: Api) -> None:
    session = api.session()
    await visitor.open(address(session))
    page = visitor.page
    await page.get_by_role("button", name="Mark failed…").click()
    dialog = page.get_by_role("dialog", name="Mark this session failed?")
    await dialog.get_by_role("button", name="Mark failed", exact=True).click()
    assert api.read_session(session)["status"] == "active"  # not without a reason
    await dialog.get_by_label("Why?").fill("wrong branch")
    await dialog.get_by_role("button", name="Mark failed", exact=True).click()
    await seen(page.locator(".failure")).to_have_text("wrong branch")
    assert api.read_session(session)["metadata"]["error_message"] == "wrong branch"
    await press(visitor, "Archive")
    await seen(page.locator(".head .pill")).to_have_text(re.compile("Failed.*archived"))
    await seen(page.get_by_role("button", name="Archive…")).to_have_count(0)
    assert api.read_session(session)["metadata"]["archived"] is True


async def test_nothing_happens_without_confirmation(visitor: Visitor, api: Api) -> None:
    session = api.session()
    await visitor.open(address(session))
    page = visitor.page
    button = page.get_by_role("button", name="Mark failed…")
    await button.click()
    await seen(page.get_by_role("dialog")).to_be_visible()  # before that, the key would close nothing
    await page.keyboard.press("Escape")
    await seen(page.get_by_role("dialog")).to_have_count(0)
    await seen(button).to_be_focused()
    await button.click()
    await page.get_by_role("button", name="Cancel").click()
    await seen(page.get_by_role("dialog")).to_have_count(0)
    assert api.read_session(session)["status"] == "active"
    assert not [request for request in visitor.requests if request.method != "GET"]


async def test_a_session_that_is_gone_says_so(timed: Visitor, api: Api) -> None:
    session = api.session()
    await timed.open(address(session))
    timed.failures_are_expected = True
    api.delete(f"/api/sessions/{session['session_id']}")
    await timed.until_the_next_poll()
    await seen(timed.page.get_by_role("heading", name="This session does not exist")).to_be_visible()


async def test_a_silent_session_is_shown_as_stalled_before_it_is_marked(
    visitor: Visitor, scene: Scene, api: Api, database: Documents
) -> None:
    session = scene.orchestration("docs-refresh", unique("machine"), done=1)
    scene.age(session, minutes=20, silent_seconds=400)
    await visitor.open(address(session))
    await seen(visitor.page.locator(".head .pill")).to_have_text("Stalled")
    await seen(visitor.page.locator(".segment.presumed")).to_have_count(1)
    await seen(visitor.page.locator(".unheard")).to_have_count(1)  # of the task that was under way
    await seen(visitor.page.get_by_role("button", name="Mark stalled…")).to_be_visible()
