"""Takes the pictures of the dashboard, into a folder: `python …/tests/dashboard/screenshots.py FOLDER`.

Desktop and phone width, dark and light, with 0, 5 and 300 sessions, on a server and a database of its own.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[3] / "tests")]

from playwright.async_api import Browser, FloatRect, Page, ViewportSize, async_playwright  # noqa: E402
from pymongo import MongoClient  # noqa: E402

from api_harness.api import Api, Json, expect  # noqa: E402
from api_harness.server import Server  # noqa: E402
from dashboard.scenes import Scene  # noqa: E402
from state_tracking_api.embedded import Mongod  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
SIZES: dict[str, ViewportSize] = {
    "desktop": {"width": 1360, "height": 860},
    "phone": {"width": 390, "height": 844},
}
SCHEMES = ("light", "dark")


async def visit(page: Page, address: str, picture: Path, *, full: bool = False) -> None:
    """Open an address, wait until its data is there, and take its picture."""
    await page.goto(address)
    await page.locator(".pulse.live").wait_for()
    await page.locator(".loading").first.wait_for(state="detached")
    await page.evaluate("document.fonts.ready")
    # Nothing is on its way any more.
    await page.evaluate("Promise.allSettled(document.getAnimations().map(a => a.finished))")
    if full:
        await page.screenshot(path=picture, full_page=True)
        return
    # No more than there is to see.
    last = await page.evaluate(
        "document.querySelector('main').lastElementChild.getBoundingClientRect().bottom"
    )
    size = page.viewport_size
    assert size is not None
    clip: FloatRect = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], last + 24)}
    await page.screenshot(path=picture, clip=clip)


async def series(browser: Browser, server: Server, out: Path, amount: str, views: dict[str, str]) -> None:
    """Every view in every size and scheme."""
    for size, viewport in SIZES.items():
        for scheme in SCHEMES:
            context = await browser.new_context(
                viewport=viewport,
                color_scheme=scheme,
                device_scale_factor=2 if size == "phone" else 1,
                locale="en-GB",
            )
            page = await context.new_page()
            await page.goto(f"{server.base_url}/dashboard#key={server.key}")
            for view, path in views.items():
                picture = out / f"{view}-{amount}-{size}-{scheme}.png"
                await visit(
                    page, f"{server.base_url}{path}", picture, full=size == "phone" and amount != "300"
                )
            await context.close()


async def main(out: Path) -> None:
    """Make everything from nothing."""
    with tempfile.TemporaryDirectory() as folder, Mongod.start(Path(folder)) as mongod:
        mongo: MongoClient[Json] = MongoClient(mongod.uri, tz_aware=True)
        settings = {"MONGODB_URI": mongod.uri, "MONGODB_DATABASE": "pictures"}
        with mongo, Server.start(**settings) as server, Api(server.base_url, server.key) as api:
            scene = Scene(api, mongo["pictures"])
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                empty = {
                    "overview": "/dashboard",
                    "machines": "/dashboard/machines",
                    "trends": "/dashboard/trends",
                }
                await series(browser, server, out, "0", empty)
                active, second, stalled, *_ = scene.five()
                views = {
                    "overview": "/dashboard",
                    "session": f"/dashboard/sessions/{active['session_id']}",
                    "stalled": f"/dashboard/sessions/{stalled['session_id']}",
                    "machines": "/dashboard/machines",
                }
                await series(browser, server, out, "5", views)
                scene.three_hundred()
                # That took minutes, in which these have not been heard of.
                for waiting in (active, second):
                    expect(api.act(waiting, "heartbeat"), 200)
                successor = scene.recovered(stalled)
                views = {
                    "overview": "/dashboard",
                    "recovered": f"/dashboard/sessions/{stalled['session_id']}",
                    "successor": f"/dashboard/sessions/{successor['session_id']}",
                    "machines": "/dashboard/machines",
                    "trends": "/dashboard/trends",
                }
                await series(browser, server, out, "300", views)
                await browser.close()


if __name__ == "__main__":
    chosen = Path(sys.argv[1])
    chosen.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(chosen))
