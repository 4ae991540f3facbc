"""The documents say what the requirements ask for, and nothing that is not so (PRD 5.4)."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest
from docs_harness import KEY, ROOT

from state_tracking_api.app import create_app
from state_tracking_api.metrics import Metrics
from state_tracking_api.settings import Settings, load

SERVER = ROOT / "packages/state-tracking-api/src/state_tracking_api"
OURS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Neither of the other two has commands for the machine that runs the tests.
PLAYED_OR_MARKED = [page for page in OURS if page.stem not in {"DEPLOYMENT", "plan-file"}]
LANGUAGES = {"bash", "sh", "text", "json", "toml", "yaml", "python"}


def text(name: str) -> str:
    """A document."""
    return (ROOT / name).read_text(encoding="utf-8")


def headings(name: str) -> str:
    """The headings of a document, a line each."""
    return "\n".join(re.findall(r"^#+ .*", text(name), re.MULTILINE))


@pytest.mark.prd("5.4.a")
def test_the_readme_has_all_sections() -> None:
    for section in ("Start", "Architecture", "Technology", "Development", "Documentation"):
        assert f"## {section}" in headings("README.md")
    readme = text("README.md")
    for said in ("make run", "make test", "You need", *(f"docs/{name}.md" for name in ("API", "DEPLOYMENT"))):
        assert said in readme


@pytest.mark.prd("5.4.b")
def test_the_deployment_guide_has_every_step() -> None:
    page = text("docs/DEPLOYMENT.md")
    for said in (
        "Node.js",
        "pnpm",
        "Atlas",
        "senvn",
        "ertificate",
        "pnpm deploy:prod",
        "ollback",
        "hecklist",
    ):
        assert said in page


@pytest.mark.prd("5.4.c")
def test_the_api_page_has_a_curl_example_for_every_endpoint() -> None:
    document = create_app(load(mongodb_uri="mongodb://127.0.0.1", api_keys=KEY)).openapi()
    sections = re.split(r"^### ", text("docs/API.md"), flags=re.MULTILINE)
    for path, item in document["paths"].items():
        for method in item:
            own = [one for one in sections if f"\n`{method.upper()} {path}`\n" in one]
            assert len(own) == 1, f"{method} {path}"
            assert "```bash\n" in own[0]
            assert "curl " in own[0]
    for section in ("Authentication", "Rate limits", "Errors", "Versions"):
        assert f"## {section}" in headings("docs/API.md")


@pytest.mark.prd("5.4.d")
def test_troubleshooting_has_the_common_issues() -> None:
    found = headings("docs/TROUBLESHOOTING.md")
    for issue in (
        "not receiving heartbeats",
        "Stalled sessions are not detected",
        "High latency on the heartbeat endpoint",
        "Authentication failures",
    ):
        assert issue in found


@pytest.mark.prd("5.4.e")
def test_runbooks_have_incidents_and_maintenance() -> None:
    found = headings("docs/RUNBOOKS.md")
    for procedure in (
        "Incident: the API is down",
        "Incident: database connection failures",
        "Maintenance: rotate API keys",
        "Maintenance: scale MongoDB",
        "Maintenance: back up and restore",
    ):
        assert procedure in found


@pytest.mark.prd("5.4.f")
def test_the_architecture_diagram_shows_every_component_and_the_heartbeat() -> None:
    assert "](docs/images/architecture.svg)" in text("README.md")
    assert "](images/architecture.svg)" in text("docs/index.md")
    drawn = ET.fromstring(text("docs/images/architecture.svg"))  # noqa: S314 - our own file
    shown = {"".join(one.itertext()) for one in drawn.iter("{http://www.w3.org/2000/svg}text")}
    parts = {"VS Code Extension", "API Gateway", "Lambda", "MongoDB", "Atlas", "EventBridge", "CloudWatch"}
    assert parts | {"heartbeat", "findOneAndUpdate"} <= shown
    # From the machine to the gateway, to the function, to the database.
    ways = [one for one in drawn.iter("{http://www.w3.org/2000/svg}path") if one.get("class") == "beat"]
    assert len(ways) == 3


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        found = page.parent / path if path else page
        assert found.exists(), f"{target} in {page.name}"
        if anchor:
            assert anchor in anchors(found), f"{target} in {page.name}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    found = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PLAYED_OR_MARKED, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^ *```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    exist = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics().registry.collect()
    }
    page = text("docs/MONITORING.md")
    table = page[page.index("| metric | kind |") : page.index("| `name` of `success_metric`")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == exist


def test_every_log_event_is_documented_and_every_documented_one_exists() -> None:
    exist: set[str] = set()
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and _logs(ast.unparse(node.func)):
                exist.add(_message(node.args[0]))
    exist.discard("")
    page = text("docs/MONITORING.md")
    table = page[page.index("| message | level |") :]
    told = {
        one.rstrip("…") for one in re.findall(r"^\| `([^`]+)` \| (?:INFO|WARN|ERROR)", table, re.MULTILINE)
    }
    assert exist == told


def _logs(function: str) -> bool:
    return (
        function in {"write", "_log"}
        or re.fullmatch(r"log\.get\(\)\.(info|warning|error|exception)", function) is not None
    )


def _message(argument: ast.expr) -> str:
    if isinstance(argument, ast.Constant):
        return str(argument.value)
    if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
        return str(argument.values[0].value)
    return ""  # handed on by a function that is looked at itself


def test_alerts_and_panels_use_existing_metrics_only() -> None:
    exist = {
        f"{family.name}{end}" for family in Metrics().registry.collect() for end in ("", "_total", "_bucket")
    }
    rules = text("docs/monitoring/alerts.yml")
    board = json.loads(text("docs/monitoring/grafana-dashboard.json"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = set(
        re.findall(r"\b(\w+_(?:count|total|bucket|state|outage|metric|info))\b", rules + str(expressions))
    )
    assert used <= exist
    assert len(used) >= 8


def test_every_alert_is_documented() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", text("docs/monitoring/alerts.yml")))
    page = text("docs/MONITORING.md")
    table = page[page.index("| alert | when |") : page.index("### Grafana")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == alerts


def test_every_alert_is_seen_to_fire_in_the_tests_of_promtool() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", text("docs/monitoring/alerts.yml")))
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts: \[\{", text("docs/monitoring/alerts_test.yml"))
    assert set(fired) == alerts


def test_every_runbook_of_an_alert_exists() -> None:
    for page, anchor in re.findall(r"runbook: (\S+)#(\S+)", text("docs/monitoring/alerts.yml")):
        assert anchor in anchors(ROOT / page), anchor


def test_promtool_accepts_the_alerts_and_their_tests() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    for arguments in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(
            [promtool, *arguments], cwd=ROOT / "docs/monitoring", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alarm_of_the_deployment_is_documented() -> None:
    infra = text("infra/alarms.ts")
    alarms = set(re.findall(r"alarm\(\s*\"(\w+)\"", infra)) | set(re.findall(r"\"(\w+Alarm)\"", infra))
    page = text("docs/MONITORING.md")
    assert len(alarms) >= 8
    assert {one for one in alarms if f"| `{one}` |" not in page} == set()


def test_every_default_is_the_documented_one() -> None:
    rows = dict(
        re.findall(r"^\| `([A-Z_]+)` \| `?([^|`]*)`? \|", text("docs/CONFIGURATION.md"), re.MULTILINE)
    )
    for name, one in Settings.model_fields.items():
        if one.is_required():
            continue
        default: Any = one.default
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        said = (
            ",".join(map(str, cast("tuple[Any, ...]", default)))
            if isinstance(default, tuple)
            else str(default)
        )
        assert rows[name.upper()].lower() == said.lower(), name


def test_the_fifteen_open_questions_are_answered() -> None:
    numbers = re.findall(r"^\*\*(\d+)\. ", text("docs/OPEN_QUESTIONS.md"), re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 16))


def test_the_generated_documents_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/reference/check.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", text("docs/SECURITY.md")))
    exist = {
        name
        for folder in ("packages", "tests")
        for path in (ROOT / folder).glob("**/test_*.py")
        for name in re.findall(
            r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert len(named) > 20
    assert named - exist == set()
    of_the_extension = re.findall(r"“([^”]+)” \(the extension\)", text("docs/SECURITY.md"))
    files = (ROOT / "packages/vscode-extension/test").glob("**/*.test.ts")
    theirs = "".join(path.read_text(encoding="utf-8") for path in files)
    assert of_the_extension
    assert [title for title in of_the_extension if f'("{title}"' not in theirs] == []
