"""People with browser windows, who notice when the page misbehaves."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

from api_harness.server import Server

SECONDS = 30
"""How long a test waits for something to appear."""

PHONE = {"width": 390, "height": 844}


async def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """What is one person's: cache, storage, language; `options` are Playwright's."""
    context = await browser.new_context(locale="en-GB", timezone_id="UTC", **options)
    context.set_default_timeout(SECONDS * 1_000)
    return context


class Visitor:
    """Somebody with a browser window; leaving asserts that the page behaved.

    Nothing may have been written to the console as an error (a violated content security policy is), nothing
    thrown, and no other host asked.
    """

    def __init__(self, page: Page, server: Server, *, shares_context: bool) -> None:
        self.context = page.context
        self._shares_context = shares_context
        self.page = page
        self.server = server
        self.base_url = server.base_url
        self.errors: list[str] = []
        self.requests: list[Request] = []
        self._under_way: set[Request] = set()
        # Chromium writes a line for every answer that is no success; a test that causes such says so.
        self.failures_are_expected = False
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(f"thrown: {error}"))
        page.on("request", self._asked)
        page.on("requestfinished", self._answered)
        page.on("requestfailed", self._answered)

    def _asked(self, request: Request) -> None:
        self.requests.append(request)
        self._under_way.add(request)

    def _answered(self, request: Request) -> None:
        self._under_way.discard(request)

    async def until_the_next_poll(self) -> None:
        """Let the page's own clock, which `clock` has taken over, jump to where it asks for news."""
        await self.page.clock.fast_forward(3_000)

    async def pass_time(self, seconds: int) -> None:
        """Let the page's own clock, which `clock` has taken over, go on second by second.

        After each one, what the page has asked for is waited for: the server's time is not the page's.
        """
        for _ in range(seconds):
            await self.page.clock.run_for(1_000)
            await self.page.evaluate("new Promise(requestAnimationFrame)")
            while self._under_way:
                await self.page.wait_for_event("requestfinished", timeout=SECONDS * 1_000)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type not in {"error", "warning"}:
            return
        if self.failures_are_expected and message.text.startswith("Failed to load resource"):
            return
        self.errors.append(message.text)

    async def open(self, path: str = "/dashboard") -> Self:
        """Open a view with the key in the fragment, as the link that `make run` prints has it."""
        await self.page.goto(f"{self.base_url}{path}#key={self.server.key}")
        await self.page.locator(".pulse.live").wait_for()
        return self

    async def leave(self) -> None:
        """Close the window, and the context where it was made for this window alone."""
        await (self.page.close() if self._shares_context else self.context.close())

    async def go(self, path: str) -> None:
        """Go to another view as a link does it, without loading the page anew."""
        await self.page.evaluate(
            """path => {
                history.pushState(null, "", path);
                dispatchEvent(new PopStateEvent("popstate"));
                return new Promise(requestAnimationFrame);  // by then the view before is gone
            }""",
            path,
        )

    async def follow(self, path: str) -> None:
        """Load another view in the same tab, which has the key by now."""
        await self.page.goto(f"{self.base_url}{path}")
        await self.page.locator(".pulse.live").wait_for()

    def row(self, session: dict[str, Any]) -> Any:
        """The row of a session in the overview."""
        return self.page.locator(f'[data-session="{session["session_id"]}"]')

    def polls(self, path: str) -> list[Request]:
        """The requests so far whose path begins like this."""
        return [request for request in self.requests if urlsplit(request.url).path.startswith(path)]

    def assert_nothing_is_wrong(self) -> None:
        assert self.errors == []
        elsewhere = {request.url for request in self.requests if not request.url.startswith(self.base_url)}
        assert elsewhere == set()


class Visitors:
    """Opens windows for one test.

    Args:
        browser: where they are opened.
        shared: the context of windows that need nothing special. Each is a tab that keeps its own key, and
            what tabs could share, the tests assert to be empty; a context for each would cost as much again.
    """

    def __init__(self, browser: Browser, shared: BrowserContext) -> None:
        self._browser = browser
        self._shared = shared
        self.all: list[Visitor] = []

    async def to(self, server: Server, *, clock: str | bool = False, **options: Any) -> Visitor:
        """A window on a server.

        Args:
            server: whose dashboard it looks at.
            clock: whether the test moves the page's clock, or from when on.
            options: Playwright's for a context.
        """
        shares = not clock and not options
        context = self._shared if shares else await new_context(self._browser, **options)
        visitor = Visitor(await context.new_page(), server, shares_context=shares)
        self.all.append(visitor)
        if clock:
            await visitor.page.clock.install(time=clock if isinstance(clock, str) else None)
        return visitor
