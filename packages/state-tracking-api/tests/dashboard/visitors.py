"""People with browser windows, who notice when the page misbehaves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

from api_harness.server import Server

SECONDS = 30
"""How long a test waits for something to appear."""

PHONE = {"width": 390, "height": 844}

_NOTE_QUESTIONS = """
(() => {
    const fetch = window.fetch;
    window.questions = [];
    window.fetch = async (path, ...more) => {
        const question = { path: new URL(path, location.href).pathname, asked: performance.now() };
        question.over = new Promise((over) => {
            question.end = () => over((question.answered = performance.now()));
        });
        window.questions.push(question);
        try {
            const answer = await fetch(path, ...more);
            const text = answer.text.bind(answer);
            answer.text = () => text().finally(question.end);  // ended before the page goes on with it
            return answer;
        } catch (error) {
            question.end();
            throw error;
        }
    };
})();
"""
"""The page notes when it asks for something and when it has read the answer, by the clock that it goes by."""


@dataclass(frozen=True)
class Question:
    """What a page with a clock of its own has asked for, and when: in seconds by that clock."""

    path: str
    asked: float
    answered: float | None


def gaps(questions: list[Question]) -> list[float]:
    """How long the page has waited after each answer until it asked again."""
    return [
        round(later.asked - earlier.answered, 3)
        for earlier, later in pairwise(questions)
        if earlier.answered is not None
    ]


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
        # Chromium writes a line for every answer that is no success; a test that causes such says so.
        self.failures_are_expected = False
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(f"thrown: {error}"))
        page.on("request", self._asked)

    def _asked(self, request: Request) -> None:
        self.requests.append(request)

    async def until_the_next_poll(self) -> None:
        """Let the page's own clock, which `clock` has taken over, jump to where it asks for news."""
        await self.page.clock.fast_forward(3_000)

    async def pass_time(self, seconds: int) -> None:
        """Let the page's own clock, which `clock` has taken over, go on second by second, at least so far.

        It also goes on by itself with the time that this takes, longer on a slow machine: when the page has
        asked for something, `questions` tells. After each second, what it has asked for is waited for: the
        server's time is not the page's.
        """
        for _ in range(seconds):
            await self.page.clock.run_for(1_000)
            await self.page.evaluate("new Promise(requestAnimationFrame)")
            await self.page.evaluate("Promise.all(questions.map((question) => question.over))")

    async def questions(self, path: str = "/api/") -> list[Question]:
        """What the page has asked for so far whose path begins like this, where `clock` is taken over."""
        noted = await self.page.evaluate(
            "questions.map(({ path, asked, answered }) => [path, asked / 1000, answered && answered / 1000])"
        )
        return [
            question for question in (Question(*each) for each in noted) if question.path.startswith(path)
        ]

    async def pass_time_until_asked(self, path: str, times: int, within: int) -> list[Question]:
        """Let time go on until the page has asked so many times for this, and return when it did.

        AssertionError where it has not done so after at least `within` seconds of its own time.
        """
        for _ in range(within):
            if len(found := await self.questions(path)) >= times:
                return found
            await self.pass_time(1)
        raise AssertionError(
            f"not asked {times} times for {path} within {within} s: {await self.questions()}"
        )

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
            await visitor.page.add_init_script(_NOTE_QUESTIONS)
        return visitor
