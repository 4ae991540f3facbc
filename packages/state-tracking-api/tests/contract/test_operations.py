"""operations: health, metrics, the documentation and the dashboard's page."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest

from api_harness.api import Api, expect, expect_error, moment
from api_harness.server import wait_until
from api_harness.servers import Servers

JSON_TYPE = "application/json"


def test_health_is_the_prds(anonymous: Api) -> None:
    health = expect(anonymous.get("/health"), 200)
    assert health.keys() == {"status", "timestamp", "uptime"}
    assert health["status"] == "ok"
    assert moment(health["timestamp"])
    assert health["uptime"] > 0


def test_detailed_health_is_the_prds_and_null_before_the_first_run(own: Servers) -> None:
    server = own.start(ENVIRONMENT="production")
    with Api(server.base_url, server.key) as api:
        health = expect(api.get("/health/detailed"), 200)
        assert health.keys() >= {"status", "timestamp", "uptime", "dependencies", "version", "environment"}
        assert (health["status"], health["environment"]) == ("ok", "production")
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", health["version"])
        assert moment(health["timestamp"])
        database, jobs = (health["dependencies"][name] for name in ("database", "background_jobs"))
        assert (database["status"], database["connected"]) == ("ok", True)
        assert 0 <= database["response_time_ms"] < 5000
        assert (jobs["status"], jobs["last_run"]) == ("ok", None)
        expect(api.post("/api/sessions/detect-failures"), 200)
        jobs = expect(api.get("/health/detailed"), 200)["dependencies"]["background_jobs"]
        assert jobs["status"] == "ok"


def test_the_last_run_of_the_jobs_is_kept_in_the_database(own: Servers) -> None:
    database = own.database()
    with_jobs = own.start(database, SCHEDULER="on", STALL_SCAN_INTERVAL_SECONDS="1")
    without = own.start(database)
    with_jobs.line_where(lambda line: "scan" in str(line) or "detect" in str(line), "a scan")
    with Api(without.base_url, without.key) as api:

        def last_run() -> str | None:
            return expect(api.get("/health/detailed"), 200)["dependencies"]["background_jobs"]["last_run"]

        # The line is written before it is stored.
        assert moment(wait_until(last_run, "the other server knows of it"))


def test_metrics_are_prometheus_text_with_the_prds_names(own: Servers) -> None:
    server = own.start()
    with Api(server.base_url, server.key) as api:
        session, *_ = (api.session() for _ in range(3))
        api.session_in("stalled")
        expect(api.act(session, "heartbeat"), 200)
        answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert re.search(r"^active_sessions_count 3(\.0)?$", text, re.MULTILINE)
    assert re.search(r"^stalled_sessions_count 1(\.0)?$", text, re.MULTILINE)
    assert re.search(r'^heartbeat_latency_ms_bucket\{.*le="100(\.0)?".*\} ', text, re.MULTILINE)
    assert re.search(r'^heartbeat_latency_ms_bucket\{.*le="\+Inf".*\} 1(\.0)?$', text, re.MULTILINE)
    assert "database_query_duration_ms_bucket" in text
    created = [line for line in text.splitlines() if line.startswith("api_requests_total{")]
    assert any('method="POST"' in line and 'endpoint="/api/sessions"' in line for line in created)
    assert session["session_id"] not in text, "the endpoint is the route, not the path"


@pytest.mark.parametrize("accept", [None, "*/*", JSON_TYPE, "text/html;q=0.5, application/json", "image/png"])
def test_docs_are_json_for_programs(anonymous: Api, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = anonymous.get("/api/docs", headers=headers)
    assert answer.headers["content-type"].startswith(JSON_TYPE)
    assert expect(answer, 200)["openapi"].startswith("3.1")


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "application/json;q=0.2, text/html;q=0.9"])
def test_docs_are_a_page_for_browsers(anonymous: Api, accept: str) -> None:
    answer = anonymous.get("/api/docs", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "<html" in answer.text.lower()


def test_the_document_says_that_it_varies(anonymous: Api) -> None:
    assert "accept" in anonymous.get("/api/docs").headers["vary"].lower()


REFERENCE = re.compile(r"""(?:src|href|action)\s*=\s*["']([^"']+)["']|url\(["']?([^"')]+)""", re.IGNORECASE)


def test_the_documentation_page_loads_nothing_from_other_hosts(anonymous: Api) -> None:
    page = anonymous.get("/api/docs", headers={"Accept": BROWSER})
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    here = str(anonymous.http.base_url)
    for match in REFERENCE.finditer(page.text):
        reference = match[1] or match[2]
        if reference.startswith(("data:", "#", "mailto:")):
            continue
        target = urljoin(str(page.url), reference)
        assert target.startswith(here), reference
    assert not re.search(r"""(import|fetch|new URL)\s*\(?\s*["']https?://""", page.text)


def test_what_the_documentation_page_loads_exists(anonymous: Api) -> None:
    page = anonymous.get("/api/docs", headers={"Accept": BROWSER})
    loaded = re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)\s*=\s*["']([^"']+)["']""", page.text)
    for reference in loaded:
        if not reference.startswith("data:"):
            answer = anonymous.get(urljoin(str(page.url), reference))
            assert answer.status_code == 200, reference
            assert not re.search(r"https?://(cdn|unpkg|fonts|cdnjs)\.", answer.text[:2_000_000])


def test_the_openapi_document_is_always_json(api: Api) -> None:
    answer = api.get("/api/openapi.json", headers={"Accept": "text/html"})
    assert answer.headers["content-type"].startswith(JSON_TYPE)
    assert expect(answer, 200) == expect(api.get("/api/docs"), 200)


def test_an_unknown_query_parameter_is_refused_here_too(api: Api) -> None:
    expect_error(api.get("/health/detailed?verbose=1"), 400)
