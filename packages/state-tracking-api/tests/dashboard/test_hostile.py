"""What users typed is text and never markup; and the policy is really there to stop what is not."""

from __future__ import annotations

from urllib.parse import quote

from playwright.async_api import Route
from playwright.async_api import expect as seen

from api_harness.api import Api, expect
from dashboard.visitors import Visitor, Visitors

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "javascript:document.title='owned'",
    "{{constructor.constructor('document.title=1')()}}",
    "&lt;b&gt; &amp; \u202eright to left\u202c",
    "'; DROP TABLE sessions; --",
)


async def test_hostile_text_is_shown_as_it_is_everywhere(visitor: Visitor, api: Api) -> None:
    sessions = []
    for number, text in enumerate(HOSTILE):
        machine = f"{text} machine {number}"
        api.machine(machine_id=machine, hostname=f"{text} host {number}", docker_slots=[1])
        session = api.session(
            project_id=f"{text} project {number}",
            machine_id=machine,
            docker_slot=1,
            metadata={text: {"value": text, "list": [text]}, "__proto__": text, "constructor": text},
        )
        api.task_in(session, "in_progress", task_name=f"{text} task {number}")
        sessions.append(session)
    await visitor.open()
    page = visitor.page
    for number, (text, session) in enumerate(zip(HOSTILE, sessions, strict=True)):
        # By its project: on the server that all files here share, others may fill the first page.
        await visitor.follow(f"/dashboard?project={quote(session['project_id'])}")
        row = visitor.row(session)
        for part in ("project", "machine", "task"):
            await seen(row).to_contain_text(f"{text} {part} {number}", use_inner_text=False)

    await visitor.follow("/dashboard/machines")
    for number, text in enumerate(HOSTILE):
        await seen(page.locator(".machine").filter(has_text=f"{text} machine {number}")).to_have_count(1)

    for session in sessions:
        expect(api.act(session, "mark-failed", {"error_message": session["project_id"]}), 200)
    for number, (text, session) in enumerate(zip(HOSTILE[:3], sessions, strict=False)):
        await visitor.follow(f"/dashboard/sessions/{session['session_id']}")
        await seen(page.get_by_role("heading", level=1)).to_have_text(f"{text} project {number}")
        await seen(page.locator(".failure")).to_have_text(f"{text} project {number}")
        await seen(page.get_by_role("list", name="Tasks")).to_contain_text(f"{text} task {number}")
        shown = await page.get_by_role("region", name="Metadata").locator("pre").text_content()
        assert shown is not None
        assert text.replace('"', '\\"') in shown
        assert '"__proto__"' in shown

    await visitor.follow("/dashboard/trends")
    await seen(page.get_by_role("region", name="Why sessions failed")).to_contain_text(HOSTILE[0])
    assert "owned" not in await page.title()
    assert (
        await page.locator("#app script, #app img, #app iframe, #app [onerror], #app [onload]").count() == 0
    )
    links = await page.eval_on_selector_all("a", "all => all.map(a => a.protocol)")
    assert set(links) == {"http:"}


async def test_a_hostile_address_is_only_an_address(visitor: Visitor) -> None:
    visitor.failures_are_expected = True
    await visitor.open(
        "/dashboard?project=%3Cscript%3Edocument.title%3D1%3C%2Fscript%3E&status=%3Cb%3E&page=-7"
    )
    field = visitor.page.get_by_label("Project", exact=True)
    await seen(field).to_have_value("<script>document.title=1</script>")
    await visitor.follow("/dashboard/sessions/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    gone = visitor.page.get_by_role("heading", name="This session does not exist")
    await seen(gone).to_be_visible()
    await visitor.follow("/dashboard")
    await visitor.follow("/dashboard/sessions/%zz")  # no encoding of anything
    await seen(gone).to_be_visible()


async def test_the_policy_stops_scripts_styles_markup_and_other_hosts(
    visitors: Visitors, visitor: Visitor
) -> None:
    """Shows that the silence of all other tests about the policy says something."""
    await visitor.open()
    visitors.all.remove(visitor)  # what follows is meant to be complained about
    page = visitor.page
    attempts = {
        "script-src-elem": "(s => { s.src = 'data:text/javascript,1'; document.head.append(s) })"
        "(document.createElement('script'))",
        "style-src-attr": "document.body.setAttribute('style', 'color: red')",
        "require-trusted-types-for": "document.body.innerHTML = '<b>markup</b>'",
        "connect-src": "fetch('https://example.org/')",
        "img-src": "new Image().src = 'https://example.org/a.png'",
    }
    for directive, attempt in attempts.items():
        violated = await page.evaluate(
            """attempt => new Promise(resolve => {
                const told = event => resolve(event.effectiveDirective);
                addEventListener('securitypolicyviolation', told, { once: true });
                (async () => (0, eval)(attempt))().catch(() => undefined);
            })""",
            attempt,
        )
        # Where evaluation itself is what the policy stops, nothing further is needed.
        assert violated in {directive, "script-src", "require-trusted-types-for"}, violated
    await visitor.leave()
    assert visitor.errors


async def test_no_page_may_hold_the_dashboard_in_a_frame(visitors: Visitors, visitor: Visitor) -> None:
    """Unseen in a frame, it would be clicked by whoever thinks that they click on something else."""
    visitors.all.remove(visitor)  # what follows is meant to be complained about
    page, dashboard = visitor.page, f"{visitor.base_url}/dashboard"

    async def game(route: Route) -> None:
        frame = f'<h1>A game</h1><iframe src="{dashboard}"></iframe>'
        await route.fulfill(content_type="text/html", body=frame)

    # Of the server's own origin, which a policy that let anybody frame it would let first.
    await page.route("**/game", game)
    async with page.expect_event("requestfailed", lambda request: request.url == dashboard) as refused:
        await page.goto(f"{visitor.base_url}/game")
    assert (await refused.value).failure == "net::ERR_BLOCKED_BY_RESPONSE"
    _, framed = page.frames
    assert await framed.locator("#app").count() == 0
    await visitor.leave()
