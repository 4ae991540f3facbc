"""Machines with their slots and their maintenance; and what the numbers of a day look like."""

from __future__ import annotations

import re

from playwright.async_api import expect as seen

from api_harness.api import Api, expect, unique
from dashboard.scenes import Scene
from dashboard.visitors import Visitor


async def test_a_machine_shows_its_slots_used_and_free(visitor: Visitor, api: Api) -> None:
    machine = api.machine(machine_id=unique("machine"), docker_slots=[1, 2, 3, 4])
    there = {"machine_id": machine["machine_id"]}
    used = api.session(**there, docker_slot=2)
    loose = api.session_in("paused", **there)
    await visitor.open("/dashboard/machines")
    card = visitor.page.locator(f'[data-machine="{machine["machine_id"]}"]')
    await seen(card).to_contain_text("3 of 4 slots free")
    slots = card.get_by_role("list", name="Docker slots").get_by_role("listitem")
    await seen(slots).to_have_text(
        [re.compile("1 free"), re.compile(r"2 .*active"), re.compile("3"), re.compile("4")]
    )
    await seen(card.get_by_role("list", name="Sessions").get_by_role("listitem")).to_have_text(
        [
            re.compile(f"Active: {used['project_id']}.*slot 2"),
            re.compile(f"Paused: {loose['project_id']}.*no slot"),
        ]
    )
    await seen(card.get_by_role("link", name="2 live sessions")).to_be_visible()
    await slots.nth(1).get_by_role("link").click()
    await visitor.page.wait_for_url(f"**/dashboard/sessions/{used['session_id']}")


async def test_maintenance_is_begun_and_ended_by_button(visitor: Visitor, api: Api) -> None:
    # A slash belongs to the id, in the address as well.
    machine = api.machine(machine_id=unique("rack/7 & <b>"))
    await visitor.open("/dashboard/machines")
    page = visitor.page
    card = page.locator(".machine").filter(has_text=machine["machine_id"])
    for action, status, word in (
        ("Begin maintenance", "maintenance", "Maintenance"),
        ("End maintenance", "online", "Online"),
    ):
        await card.get_by_role("button", name=action).click()
        await page.get_by_role("dialog").get_by_role("button", name=action).click()
        await seen(card.locator(".pill").first).to_have_text(word)
        assert api.read_machine(machine)["status"] == status
    await seen(page.locator(".result")).to_contain_text("online again")


async def test_machines_are_filtered_by_state_in_the_address(visitor: Visitor, api: Api) -> None:
    resting = api.machine(machine_id=unique("machine"))
    working = api.machine(machine_id=unique("machine"))
    expect(api.patch(f"/api/machines/{resting['machine_id']}", json={"status": "maintenance"}), 200)
    await visitor.open("/dashboard/machines")
    await visitor.page.get_by_role("link", name="Maintenance", exact=True).click()
    await visitor.page.wait_for_url("**/dashboard/machines?status=maintenance")
    await seen(visitor.page.locator(f'[data-machine="{working["machine_id"]}"]')).to_have_count(0)
    await seen(visitor.page.locator(f'[data-machine="{resting["machine_id"]}"]')).to_be_visible()


async def test_trends_are_drawn_and_told_in_numbers(visitor: Visitor, api: Api, scene: Scene) -> None:
    project, plan = unique("project"), ["dig", "fill", "plant"]
    for number in range(3):
        session = scene.orchestration(project, unique("machine"), done=3, plan=plan)
        api.set_session(session, "completed")
        scene.age(session, minutes=60 * (number + 2), silent_seconds=3_000 * (number + 1))
    stalled = scene.orchestration(project, unique("machine"), done=1, plan=plan)
    api.act(stalled, "mark-stalled")
    scene.age(stalled, minutes=50, silent_seconds=1_200)
    expect(api.recover(stalled), 201)
    failed = api.session(project_id=project)
    api.act(failed, "mark-failed", {"error_message": "out of <i>credit</i>"})
    await visitor.open(f"/dashboard/trends?project={project}")
    page = visitor.page
    stats = page.locator(".stat")
    await seen(stats.filter(has_text="Time to detect")).to_contain_text(re.compile(r"3 min"))
    await seen(stats.filter(has_text="Recovery rate")).to_contain_text("1 of 2")
    charts = page.locator("figure.chart")
    await seen(charts.locator("canvas")).to_have_count(3)
    await seen(page.get_by_role("region", name="Why sessions failed")).to_contain_text("out of <i>credit</i>")
    await seen(page.get_by_role("region", name="Durations")).to_contain_text("median")
    await charts.first.get_by_text("Numbers").click()
    row = charts.first.get_by_role("row")
    assert await row.count() >= 24
    drawn = await charts.first.locator("canvas").evaluate(
        "canvas => new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data.buffer).some(pixel => pixel !== 0)"
    )
    assert drawn
    await page.get_by_role("link", name="7 days").click()
    await page.wait_for_url("**/dashboard/trends?project=*&window=7d")
    await seen(page.locator("figure.chart canvas").first).to_be_visible()


async def test_charts_follow_the_systems_colours(visitor: Visitor, api: Api) -> None:
    api.session()
    await visitor.open("/dashboard/trends")
    canvas = visitor.page.locator("figure.chart canvas").first
    await seen(canvas).to_be_visible()
    light = await canvas.evaluate("canvas => canvas.toDataURL()")
    await visitor.page.emulate_media(color_scheme="dark")
    await visitor.page.wait_for_function(
        "light => document.querySelector('figure.chart canvas')?.toDataURL() !== light", arg=light
    )
