"""The page and its assets as they come over HTTP, and whether the built files belong to their sources."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from api_harness.api import Api, expect, expect_error

REPOSITORY = Path(__file__).parents[4]
SOURCES = REPOSITORY / "packages/dashboard"
STATIC = REPOSITORY / "packages/state-tracking-api/src/state_tracking_api/http/dashboard/static"

VIEWS = (
    "/dashboard",
    "/dashboard/",
    "/dashboard/machines",
    "/dashboard/trends",
    "/dashboard/sessions/0f8fad5b-d9cb-469f-a165-70867728950e",
)


def assets(page: str) -> set[str]:
    return set(re.findall(r'(?:src|href)="(/dashboard/assets/[^"]+)"', page))


def test_every_view_is_the_same_page_and_needs_no_key(anonymous: Api) -> None:
    pages = {anonymous.get(path).text for path in VIEWS}
    assert len(pages) == 1
    answer = anonymous.get("/dashboard")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_the_policy_allows_files_of_this_server_and_nothing_else(anonymous: Api) -> None:
    policy = anonymous.get("/dashboard").headers["content-security-policy"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["require-trusted-types-for"] == "'script'"
    assert directives["trusted-types"] == "'none'"
    assert set(directives.values()) <= {"'none'", "'self'", "'script'"}
    assert "unsafe" not in policy


def test_there_is_no_inline_script_or_style(anonymous: Api) -> None:
    page = anonymous.get("/dashboard").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page)


def test_filters_in_the_address_are_no_concern_of_the_server(anonymous: Api) -> None:
    answer = anonymous.get("/dashboard?project=a&status=failed&anything=else&project=b")
    assert answer.status_code == 200


def test_an_unchanged_page_is_not_sent_again(anonymous: Api) -> None:
    tag = anonymous.get("/dashboard").headers["etag"]
    again = anonymous.get("/dashboard", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"]


def test_assets_are_named_by_their_content_and_cached_for_good(anonymous: Api) -> None:
    named = assets(anonymous.get("/dashboard").text)
    assert len(named) >= 3
    for path in named:
        answer = anonymous.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert re.search(r"-[\w-]{8}\.(js|css|svg)$", path)
    kinds = {anonymous.get(path).headers["content-type"].split(";")[0] for path in named}
    assert kinds == {"text/javascript", "text/css", "image/svg+xml"}


def test_the_first_view_weighs_less_than_100_kilobytes(anonymous: Api) -> None:
    page = anonymous.get("/dashboard")
    weight = len(page.content) + sum(len(anonymous.get(path).content) for path in assets(page.text))
    assert weight < 100_000


def test_no_other_file_can_be_had(anonymous: Api) -> None:
    for name in ("nothing.js", "..%2Findex.html", "%2e%2e%2f%2e%2e%2fpage.py", "sources.sha256"):
        expect_error(anonymous.get(f"/dashboard/assets/{name}"), 404)
    expect_error(anonymous.get("/dashboard/nowhere"), 404)


def test_the_built_files_belong_to_the_sources() -> None:
    """The same rule as packages/dashboard/scripts/stamp.mjs; needs no Node."""
    files = [file.relative_to(SOURCES).as_posix() for file in (SOURCES / "src").rglob("*") if file.is_file()]
    files += ["index.html", "package.json", "tsconfig.json", "vite.config.ts"]
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\n{hashlib.sha256((SOURCES / name).read_bytes()).hexdigest()}\n".encode())
    stamp = (STATIC / "sources.sha256").read_text().strip()
    assert stamp == digest.hexdigest(), "the sources have changed since: run `make dashboard`"


def test_the_page_is_in_the_document_and_its_views_are_not(api: Api) -> None:
    paths = expect(api.get("/api/openapi.json"), 200)["paths"]
    assert "security" not in paths["/dashboard"]["get"]
    assert not [path for path in paths if path.startswith("/api/dashboard")]
