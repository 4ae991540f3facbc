"""The page and its assets, as the build in packages/dashboard left them in `static`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from starlette.responses import HTMLResponse

from state_tracking_api.errors import NotFound
from state_tracking_api.http.call import Answer, Call, Headers
from state_tracking_api.http.route import LeanRoute, Receive, Router

_MEDIA_TYPES = {
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
}

# Nothing inline, nothing from elsewhere, nobody's frame; and with Trusted Types no text becomes markup in any
# way that the browser knows of.
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_PAGE_HEADERS: Headers = [
    (b"content-security-policy", CONTENT_SECURITY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    # The page names its assets by their hashes, so only the page itself is ever asked for again.
    (b"cache-control", b"no-cache"),
]
_FOREVER = (b"cache-control", b"public, max-age=31536000, immutable")


class PageRoute(LeanRoute):
    """A route of the page: its query string is the page's own affair."""

    async def answer(
        self,
        call: Call,
        path: Mapping[str, str],
        query: bytes,
        headers: Mapping[bytes, bytes],
        receive: Receive,
    ) -> Any:
        """As every lean route, but the filters in the address are read by the page, not here."""
        del query
        answer = await super().answer(call, path, b"", headers, receive)
        tag = next((value for name, value in answer.headers if name == b"etag"), None)
        if tag is not None and headers.get(b"if-none-match") == tag:
            return Answer(b"", 304, answer.headers, answer.media_type)
        return answer


router = Router(PageRoute, tags=["operations", "public"])


@router.get("/dashboard", response_class=HTMLResponse, summary="The dashboard: what runs, what is silent")
async def dashboard(call: Call) -> Answer:
    """The page itself needs no key; it asks for one and polls with it."""
    del call
    return _page()


@router.get("/dashboard/", include_in_schema=False)
@router.get("/dashboard/machines", include_in_schema=False)
@router.get("/dashboard/trends", include_in_schema=False)
async def view(call: Call) -> Answer:
    """A view of the page under an address of its own."""
    del call
    return _page()


@router.get("/dashboard/sessions/{session_id}", include_in_schema=False)
async def session_view(call: Call, session_id: str) -> Answer:
    """The page of one session; whether there is such a session only the page finds out, with its key."""
    del call, session_id
    return _page()


@router.get("/dashboard/assets/{name}", include_in_schema=False)
async def asset(call: Call, name: str) -> Answer:
    """A file that the page names; its name has the hash of its content in it."""
    del call
    body = _assets().get(name)
    if body is None:
        raise NotFound(f"There is nothing at /dashboard/assets/{name}")
    return Answer(body, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=[_FOREVER])


@cache
def _page() -> Answer:
    body = (resources.files(__name__.rpartition(".")[0]) / "static" / "index.html").read_bytes()
    tag = b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
    return Answer(body, media_type=b"text/html; charset=utf-8", headers=[*_PAGE_HEADERS, (b"etag", tag)])


@cache
def _assets() -> Mapping[str, bytes]:
    """Every asset by name, read once; a name that is not among them leads to no file."""
    folder = resources.files(__name__.rpartition(".")[0]) / "static" / "assets"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
