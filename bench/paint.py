"""How soon the dashboard shows something, in a real Chromium on this machine.

    .venv/bin/python bench/paint.py [--loads 10]

For 3 and for 300 sessions, with an empty cache and with a filled one: from the moment at which the address is
entered, the first contentful paint, as the browser itself reports it, and the first frame that has rows of
sessions in it, which is what somebody came to see.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from playwright.async_api import Browser, BrowserContext, async_playwright

import bench_harness
from bench_harness import KEY, Connection

SIZES = (3, 300)
WATCH = """
    window.firstPaint = new Promise(resolve => {
        new PerformanceObserver(list => {
            for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
        }).observe({ type: "paint", buffered: true });
    });
    window.rowsShown = new Promise(resolve => {
        new MutationObserver((_changes, observer) => {
            if (!document.querySelector("[data-session]")) return;
            observer.disconnect();
            // The task after the beginning of the next frame comes when that frame has been drawn.
            requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
        }).observe(document, { childList: true, subtree: true });
    });
"""
TIMES = "Promise.all([window.firstPaint, window.rowsShown])"

Times = tuple[float, float]


async def fill(port: int, size: int, already: int) -> None:
    """Sessions with a plan of three tasks each, the first under way, until there are so many."""
    connection = await Connection.open(port)
    for number in range(already, size):
        where: Mapping[str, Any] = {"project_id": f"project-{number}"}
        session = await connection.ask(
            "POST", "/api/sessions", {**where, "machine_id": f"machine-{number % 20}"}
        )
        for name in ("Lay the ground", "Build the wall", "Put on the roof"):
            body = {**where, "session_id": session["session_id"], "task_name": name}
            task = await connection.ask("POST", "/api/tasks", body)
            if name == "Lay the ground":
                await connection.ask("PATCH", f"/api/tasks/{task['task_id']}", {"status": "in_progress"})
    connection.close()


async def load(context: BrowserContext, port: int) -> Times:
    """Open the dashboard in a new tab; milliseconds until the first paint and until the rows."""
    page = await context.new_page()
    await page.add_init_script(WATCH)
    await page.goto(f"http://127.0.0.1:{port}/dashboard#key={KEY}")
    painted, rows = await page.evaluate(TIMES)
    await page.close()
    return painted, rows


async def measure(browser: Browser, port: int, loads: int) -> tuple[list[Times], list[Times]]:
    """So many loads with a context of its own for each, and as many more in one that has seen the page."""
    cold: list[Times] = []
    for _ in range(loads):
        context = await browser.new_context()
        cold.append(await load(context, port))
        await context.close()
    context = await browser.new_context()
    await load(context, port)
    warm = [await load(context, port) for _ in range(loads)]
    await context.close()
    return cold, warm


def row(what: str, times: Sequence[Times]) -> list[str]:
    """A line of the table: median and slowest of both moments."""
    painted, rows = zip(*times, strict=True)
    return [what, *(f"{figure(each):.0f}" for each in (painted, rows) for figure in (statistics.median, max))]


async def run(port: int, loads: int) -> list[list[str]]:
    """All sizes, in a browser that has been warmed up by one load that does not count."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "this needs Chromium: apt-get install chromium"
    lines: list[list[str]] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        there = 0
        for size in SIZES:
            await fill(port, size, there)
            if there == 0:
                await measure(browser, port, 1)
            there = size
            cold, warm = await measure(browser, port, loads)
            lines += [row(f"{size} sessions, empty cache", cold), row(f"{size} sessions, filled cache", warm)]
        await browser.close()
    return lines


def main() -> None:
    """Measure on a server and a database that are gone afterwards."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--loads", type=int, default=10)
    chosen = arguments.parse_args()
    head = ["ms", "first paint", "slowest", "rows shown", "slowest"]
    with (
        bench_harness.mongod() as mongod,
        bench_harness.serve(mongod.uri, SCHEDULER="off") as (_, port),
    ):
        print(bench_harness.table(head, asyncio.run(run(port, chosen.loads))))


if __name__ == "__main__":
    main()
