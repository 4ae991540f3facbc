"""The function as it would be deployed, under AWS's runtime client, on a real database."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pymongo
import pytest
from ports import free_port
from pymongo import MongoClient

from aws.lambda_harness import KEY, ROOT, Event, Function, Outcome, Package, Start, http_event
from operations.failpoints import failpoint
from state_tracking_api.embedded import Mongod
from state_tracking_api.jobs import JOBS

# The first test waits for the package: dependencies are fetched, everything is compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Mongo = MongoClient[dict[str, Any]]
Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def function(instances: Start) -> Function:
    """An instance that most tests share; what they want to find, they make."""
    return instances()


@pytest.fixture(scope="module")
def call(function: Function) -> Call:
    """`call(method, path, body)` with the key, on the shared instance."""
    return caller(function)


def caller(function: Function, key: str = KEY) -> Call:
    """`call(method, path, body)` on an instance."""

    def request(method: str, path: str, body: object = None, **more: Any) -> Outcome:
        headers = {"X-API-Key": key, **more.pop("headers", {})}
        return function.invoke(http_event(method, path, body, headers=headers, **more))

    return request


def session(project: str = "project") -> dict[str, str]:
    """A body for POST /api/sessions that collides with no other."""
    return {"project_id": project, "machine_id": f"machine-{uuid4()}"}


def test_every_endpoint_answers(call: Call) -> None:
    asked: set[tuple[str, str]] = set()

    def ask(method: str, path: str, body: object = None, status: int = 200, **more: Any) -> Outcome:
        names = {name: more.pop(name) for name in ("session_id", "task_id", "machine_id") if name in more}
        answer = call(method, path.format(**names), body, **more)
        assert answer.status == status, f"{method} {path}: {answer.text}"
        asked.add((method, path))
        return answer

    assert ask("GET", "/health").json["status"] == "ok"
    assert ask("GET", "/health/detailed").json["dependencies"]["database"]["connected"] is True
    assert "active_sessions_count" in ask("GET", "/metrics").text
    assert ask("GET", "/api/docs").json["openapi"].startswith("3.1")
    assert "<html" in ask("GET", "/api/docs", headers={"Accept": "text/html"}).text
    page = ask("GET", "/dashboard", headers={"Accept": "text/html"})
    assert page.headers["content-type"].partition(";")[0] == "text/html"
    scripts = re.findall(r'src="(/dashboard/[^"]+\.js)"', page.text)
    assert [call("GET", script).status for script in scripts] == [200] * len(scripts) != []

    body = session()
    machine: dict[str, Any] = {"machine_id": body["machine_id"]}
    ask("POST", "/api/machines", {"hostname": "host", "docker_slots": [1], **machine}, status=201)
    assert machine["machine_id"] in ask("GET", "/api/machines").text
    assert ask("PATCH", "/api/machines/{machine_id}", {"docker_slots": [1, 2]}, **machine).status == 200
    assert ask("GET", "/api/machines/{machine_id}", **machine).json["docker_slots"] == [1, 2]

    made = ask("POST", "/api/sessions", body, status=201).json
    one: dict[str, Any] = {"session_id": made["session_id"]}
    beat = ask("POST", "/api/machines/{machine_id}/heartbeat", **machine)
    assert beat.json["active_sessions"] == [made["session_id"]]
    assert ask("GET", "/api/sessions/{session_id}", **one).json["project_id"] == "project"
    patched = ask("PATCH", "/api/sessions/{session_id}", {"metadata": {"a": 1}}, **one)
    assert patched.json["metadata"] == {"a": 1}
    assert ask("POST", "/api/sessions/{session_id}/heartbeat", **one).json["status"] == "active"
    assert ask("GET", "/api/sessions/{session_id}/health", **one).json["is_healthy"] is True
    listed = ask("GET", "/api/sessions", query={"project_id": "project", "limit": "1"})
    assert (len(listed.json["sessions"]), listed.json["limit"]) == (1, 1)

    work = {**one, "project_id": "project", "task_name": "one"}
    task: dict[str, Any] = {"task_id": ask("POST", "/api/tasks", work, status=201).json["task_id"]}
    assert ask("GET", "/api/tasks", query=one).json["total"] == 1
    assert ask("PATCH", "/api/tasks/{task_id}", {"status": "in_progress"}, **task).json["started_at"]
    assert ask("GET", "/api/tasks/{task_id}", **task).json["status"] == "in_progress"

    assert "marked_stalled" in ask("POST", "/api/sessions/detect-failures").json
    assert ask("POST", "/api/sessions/{session_id}/mark-stalled", **one).json["status"] == "stalled"
    assert ask("GET", "/api/sessions/health").json["stalled_sessions"] == 1
    assert one["session_id"] in ask("GET", "/api/sessions/stalled").text
    failed = ask("POST", "/api/sessions/{session_id}/mark-failed", {"error_message": "gone"}, **one)
    assert failed.json["status"] == "failed"
    assert ask("GET", "/api/sessions/{session_id}/recovery-state", **one).json["in_progress_tasks"] == []
    prepared = ask("POST", "/api/sessions/{session_id}/prepare-recovery", {}, **one)
    assert len(prepared.json["failed_tasks"]) == 1
    successor = ask(
        "POST", "/api/sessions/{session_id}/recover", {"new_machine_id": "another"}, status=201, **one
    )
    assert successor.json["recovered_from"] == one["session_id"]
    # Or it would be found silent by whatever test comes minutes later.
    ended = {"session_id": successor.json["session_id"]}
    assert ask("PATCH", "/api/sessions/{session_id}", {"status": "completed"}, **ended).json["completed_at"]
    assert ask("GET", "/api/sessions/{session_id}/events", **one).json["events"]
    assert ask("POST", "/api/sessions/{session_id}/archive", **one).json["metadata"]["archived"] is True
    assert ask("GET", "/api/sessions/archived").json["total"] == 1
    assert ask("GET", "/api/analytics/summary").status == 200
    for method in ("POST", "DELETE"):
        swept = ask(method, "/api/sessions/cleanup", query={"older_than_days": "30"})
        assert swept.json == {"deleted_sessions": 0, "deleted_tasks": 0}
    for path, ids in (("/api/tasks/{task_id}", task), ("/api/sessions/{session_id}", one)):
        ask("DELETE", path, status=204, **ids)
    ask("DELETE", "/api/machines/{machine_id}", status=204, **machine)

    document = ask("GET", "/api/openapi.json").json
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert documented - asked == set()


@pytest.fixture(scope="session")
def aws_example(packaging: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Event]:
    """AWS's own example events, of its command line for such functions: `aws_example("ScheduledEvent", …)`.

    The names in them get the values that are given, as that command line does it.
    """
    target = tmp_path_factory.mktemp("events")
    lock = ROOT / "infra" / "requirements-events.lock"
    install = [packaging.uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    packaging.run([*install, "--only-binary", ":all:", "--require-hashes", "--requirement", str(lock)])
    folder = target / "samcli" / "lib" / "generated_sample_events" / "events"

    def example(path: str, /, **values: str) -> Event:
        names = {"account_id": "123456789012", "dns_suffix": "us-east-1.amazonaws.com", **values}
        template = (folder / f"{path}.json").read_text()
        return json.loads(re.sub(r"\{\{\{(\w+)\}\}\}", lambda name: names[name[1]], template))

    return example


def http_example(aws_example: Callable[..., Event], path: str, body: str) -> Event:
    """AWS's example of an event of an HTTP API: a POST, base64, cookies, an authorizer and more."""
    encoded = base64.b64encode(body.encode()).decode()
    return aws_example("apigateway/HttpApi", method="POST", path=path, stage="$default", body=encoded)


def test_awss_own_example_of_a_request_is_answered(
    function: Function, aws_example: Callable[..., Event]
) -> None:
    event = http_example(aws_example, "path/to/resource", '{"test":"body"}')
    answer = function.invoke(event)
    assert (answer.status, answer.json["path"]) == (404, "/path/to/resource")
    assert UUID(answer.headers["x-request-id"]).version == 4
    assert function.logged(gateway_request_id=event["requestContext"]["requestId"], status=404)


def test_awss_own_example_of_a_request_makes_a_session(
    function: Function, aws_example: Callable[..., Event]
) -> None:
    body = json.dumps({**session(), "metadata": {"name": "Größe ✓"}}, ensure_ascii=False)
    event = http_example(aws_example, "api/sessions", body)
    event["headers"] |= {"X-API-Key": KEY, "content-type": "application/json"}
    refused = function.invoke(event)
    assert refused.status == 400
    assert [error["field"] for error in refused.json["errors"]] == ["parameter1", "parameter2"]
    made = function.invoke({**event, "rawQueryString": "", "queryStringParameters": None})
    assert made.status == 201, made.text
    assert made.json["metadata"] == {"name": "Größe ✓"}


def test_awss_own_example_of_a_schedule_names_no_job_and_does_so_in_our_event(
    function: Function, aws_example: Callable[..., Event]
) -> None:
    event = aws_example("cloudwatch/ScheduledEvent", partition="aws", region="us-east-1", rule="ExampleRule")
    outcome = function.invoke(event)
    assert outcome.error is not None
    assert "There is no job" in outcome.error["errorMessage"]
    assert function.logged(level="ERROR", lambda_request_id=outcome.request_id)
    assert function.invoke({**event, "job": "detect-failures"}).result["marked_stalled"] == 0


# What other ways of running the server need, or other requests than the first.
NOT_AT_START = {
    *(
        "uvicorn",
        "uvloop",
        "httptools",
        "httpx",
        "redis",
        "dns",
        "multiprocessing",
        "unittest",
        "jinja2",
        "yaml",
    ),
    *(
        "fastapi",
        "fastapi_swagger",
        "pydantic.v1",
        "state_tracking_api.cli",
        "state_tracking_api.server",
        "state_tracking_api.embedded",
    ),
}


def test_nothing_is_imported_for_the_first_request_that_it_does_not_need(instances: Start) -> None:
    function = instances(PYTHONPROFILEIMPORTTIME="1")
    assert caller(function)("POST", "/api/sessions", session()).status == 201
    imported = set(re.findall(r"import time:\s+\d+ \|\s+\d+ \|\s+(\S+)", function.log))
    assert {"pymongo", "starlette"} <= imported
    assert imported & NOT_AT_START == set()


def test_metrics_say_that_they_are_one_instances(call: Call) -> None:
    answer = call("GET", "/metrics")
    assert answer.status == 200
    assert answer.text.startswith("# Counters and histograms are this one instance's")
    assert "\nactive_sessions_count " in answer.text


def test_a_preflight_is_answered_by_the_function_with_the_request_id(function: Function) -> None:
    asked = {"Origin": "vscode-webview://x", "Access-Control-Request-Method": "POST"}
    answer = function.invoke(http_event("OPTIONS", "/api/sessions", headers=asked))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert UUID(answer.headers["x-request-id"]).version == 4


def test_production_answers_carry_hsts(call: Call) -> None:
    assert "max-age=" in call("GET", "/health").headers["strict-transport-security"]


def test_the_start_is_logged_with_environment_and_release(function: Function, call: Call) -> None:
    call("GET", "/health")
    (started,) = function.logged(message="Function started, ENVIRONMENT=production")
    assert started["level"] == "INFO"
    assert started["context"]["release"] == "0123abc"
    assert function.logged(message="Database is set up")


def test_the_secrets_come_from_the_package_and_not_from_the_configuration(package: Package) -> None:
    configured = json.dumps(package.function)
    assert "mongodb" not in configured
    assert KEY not in configured


def test_the_log_has_the_callers_address_and_not_the_edges(instances: Start) -> None:
    function = instances()
    for header, address in {
        "198.51.100.10:46532": "198.51.100.10",
        "2001:db8::7:46532": "2001:db8::7",
    }.items():
        headers = {"X-API-Key": str(uuid4()), "CloudFront-Viewer-Address": header}
        assert function.invoke(http_event("GET", "/api/sessions", headers=headers)).status == 401
        assert function.logged(message="Authentication failed", address=address)


def test_without_an_edge_the_callers_address_is_the_gateways_word_for_it(instances: Start) -> None:
    function = instances(VIEWER_ADDRESS_HEADER="")
    headers = {"X-API-Key": str(uuid4()), "CloudFront-Viewer-Address": "198.51.100.99:1"}
    function.invoke(http_event("GET", "/api/sessions", headers=headers, source="203.0.113.99"))
    assert function.logged(message="Authentication failed", address="203.0.113.99")
    assert not [line for line in function.lines if "198.51.100.99" in line]


def test_one_line_holds_the_ids_of_api_gateway_and_function(function: Function) -> None:
    event = http_event("GET", "/health")
    answer = function.invoke(event)
    (line,) = function.logged(request_id=answer.headers["x-request-id"], endpoint="/health", status=200)[-1:]
    metrics = [
        record
        for record in function.logged(request_id=answer.headers["x-request-id"])
        if "_aws" in record
        and record["context"]["gateway_request_id"] == event["requestContext"]["requestId"]
    ]
    assert line
    assert len(metrics) == 1
    assert UUID(metrics[0]["context"]["lambda_request_id"])


def test_metrics_are_written_in_the_embedded_format(instances: Start) -> None:
    function = instances()
    call = caller(function)
    made = call("POST", "/api/sessions", session())
    call("POST", f"/api/sessions/{made.json['session_id']}/heartbeat")
    lines = function.logged(Function="state-tracking-api-test", at_least=2)
    for line in lines:
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "StateTrackingApi"
        assert directive["Dimensions"] == [["Function"]]
        assert abs(line["_aws"]["Timestamp"] / 1000 - time.time()) < 60
        for metric in directive["Metrics"]:
            assert isinstance(line[metric["Name"]], int | float | list)
    first, heartbeat = lines
    assert first["ColdStart"] == 1
    assert first["DatabaseQueryDuration"]
    assert "ColdStart" not in heartbeat
    assert heartbeat["HeartbeatLatency"] > 0
    assert "HeartbeatLatency" not in first


def connections(mongo: Mongo) -> set[str]:
    """The function's connections to the database, by their ends."""
    pipeline = [{"$currentOp": {"allUsers": True, "idleConnections": True}}]
    found = mongo.admin.aggregate(pipeline)
    return {op["client"] for op in found if op.get("appName") == "state-tracking-api" and "client" in op}


def test_repeated_invocations_use_one_client_and_its_connections(own_mongo: Mongo, alone: Function) -> None:
    call = caller(alone)
    for _ in range(3):
        call("POST", "/api/sessions", session())
    before = connections(own_mongo)
    for _ in range(20):
        assert call("POST", "/api/sessions", session()).status == 201
        alone.invoke({"job": "report-health"})
    assert connections(own_mongo) == before
    assert 1 <= len(before) <= 6


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[list[Mongod]]:
    """A database that only this test uses; the one in the list is stopped at the end."""
    running = [Mongod.start(tmp_path / "mongod", parameters={"enableTestCommands": "1"})]
    try:
        yield running
    finally:
        running[-1].stop()


@pytest.fixture
def own_mongo(own_mongod: list[Mongod]) -> Iterator[Mongo]:
    """A connection to it, past the function."""
    with MongoClient[dict[str, Any]](own_mongod[0].uri, tz_aware=True) as client:
        yield client


# Without SST's links a function takes its secrets from the environment.
def unlinked(mongodb_uri: str) -> dict[str, str]:
    """Environment of an instance on another database than the one in the package."""
    return {"SST_KEY_FILE": "", "MONGODB_URI": mongodb_uri, "API_KEYS": KEY}


@pytest.fixture
def alone(instances: Start, own_mongod: list[Mongod]) -> Function:
    """An instance on that database."""
    return instances(**unlinked(own_mongod[0].uri))


@dataclass(frozen=True)
class Frozen:
    """An instance that was frozen with its connections open, and a session that it had made."""

    function: Function
    session_id: str
    since: float


@pytest.fixture(scope="module", autouse=True)
def frozen(instances: Start) -> Frozen:
    """Frozen before the first test, so that the others pass the time until it is asked again."""
    function = instances()
    made = caller(function)("POST", "/api/sessions", session())
    function.freeze()
    return Frozen(function, made.json["session_id"], time.monotonic())


def test_a_database_restarted_while_the_function_is_frozen_is_found_again(
    alone: Function, own_mongod: list[Mongod]
) -> None:
    call = caller(alone)
    made = call("POST", "/api/sessions", session())
    alone.freeze()
    before = own_mongod[0]
    before.stop()
    own_mongod.append(Mongod.start(before.data_dir, port=before.port))
    alone.thaw()
    assert call("GET", f"/api/sessions/{made.json['session_id']}").status == 200
    assert call("POST", f"/api/sessions/{made.json['session_id']}/heartbeat").status == 200


def test_the_function_starts_while_the_database_is_away_and_finds_it_when_it_comes(
    instances: Start, tmp_path: Path
) -> None:
    port = free_port()
    uri = f"mongodb://127.0.0.1:{port}/?replicaSet=rs0&directConnection=true&serverSelectionTimeoutMS=2000"
    function = instances(**unlinked(uri))
    call = caller(function)
    assert call("GET", "/health").status == 200
    assert call("POST", "/api/sessions", session()).status == 503
    reported = function.invoke({"job": "report-health"})
    assert reported.result["dependencies"]["database"]["status"] == "error"
    assert function.logged(DatabaseUp=0)
    assert function.logged(level="ERROR", message="The database does not answer")
    with Mongod.start(tmp_path / "mongod", port=port):
        assert call("POST", "/api/sessions", session()).status == 201


def test_every_job_of_the_server_has_a_schedule_that_the_function_understands(
    package: Package, function: Function
) -> None:
    targets = [r["inputs"]["target"] for r in package.graph["resources"] if "scheduler/schedule" in r["type"]]
    events = [json.loads(target["input"]) for target in targets]
    assert sorted(event["job"] for event in events) == sorted([*JOBS, "report-health"])
    for event in events:
        assert function.invoke(event).error is None


def test_heartbeats_are_counted_in_the_database_though_no_timer_runs(instances: Start, mongo: Mongo) -> None:
    database = f"lambda-{uuid4().hex[:12]}"
    function = instances(MONGODB_DATABASE=database)
    call = caller(function)
    made = call("POST", "/api/sessions", session())
    assert call("POST", f"/api/sessions/{made.json['session_id']}/heartbeat").status == 200
    (hour,) = mongo[database]["heartbeat_counts"].find()
    assert (hour["received"], hour["failed"]) == (1, 0)


def test_heartbeats_that_a_request_had_no_time_to_store_are_stored_with_the_next_job(
    instances: Start, mongo: Mongo
) -> None:
    database = f"lambda-{uuid4().hex[:12]}"
    function = instances(MONGODB_DATABASE=database)
    made = caller(function)("POST", "/api/sessions", session())
    beat = http_event(
        "POST", f"/api/sessions/{made.json['session_id']}/heartbeat", headers={"X-API-Key": KEY}
    )
    assert function.invoke(beat, timeout=2).status == 200
    assert mongo[database]["heartbeat_counts"].count_documents({}) == 0
    function.invoke({"job": "report-health"})
    (hour,) = mongo[database]["heartbeat_counts"].find()
    assert hour["received"] == 1


def test_a_scheduled_job_runs_and_says_what_it_did(instances: Start, mongo: Mongo) -> None:
    database = f"lambda-{uuid4().hex[:12]}"
    function = instances(MONGODB_DATABASE=database, STALL_THRESHOLD_MS="1")
    made = caller(function)("POST", "/api/sessions", session())
    scan = function.invoke({"job": "detect-failures"})
    assert scan.error is None
    assert scan.result["session_ids"] == [made.json["session_id"]]
    (line,) = function.logged(message="Background job executed", job_name="detect-failures")
    assert line["context"]["sessions_affected"] == 1
    assert function.logged(JobRuns=1)
    assert function.invoke({"job": "cleanup"}).result == {"deleted_sessions": 0, "deleted_tasks": 0}
    assert mongo[database]["jobs"].count_documents({"last_run": {"$exists": True}}) == 2


def test_the_health_report_feeds_alarms_and_dashboard(instances: Start, mongo: Mongo) -> None:
    database = f"lambda-{uuid4().hex[:12]}"
    function = instances(MONGODB_DATABASE=database)
    call = caller(function)
    call("POST", "/api/sessions", session())
    assert function.invoke({"job": "report-health"}).result["status"] == "ok"
    (line,) = function.logged(DatabaseUp=1)
    assert (line["BackgroundJobsUp"], line["ActiveSessions"], line["StalledSessions"]) == (1, 1, 0)
    assert (line["ConsistencyViolations"], line["SuspectedOutage"]) == (0, 0)
    machine = call("POST", "/api/machines", {"hostname": "host", "docker_slots": [1]}).json
    ghost = {"$push": {"active_sessions": str(uuid4())}}
    mongo[database]["machines"].update_one({"machine_id": machine["machine_id"]}, ghost)
    function.invoke({"job": "check-consistency"})
    function.invoke({"job": "report-health"})
    assert function.logged(DatabaseUp=1, at_least=2)[-1]["ConsistencyViolations"] == 1


def test_a_job_that_runs_out_of_time_fails_before_lambda_ends_it_and_is_an_error_line(
    alone: Function, own_mongo: Mongo
) -> None:
    caller(alone)("POST", "/api/sessions", session())
    fail(own_mongo, "find", blockConnection=True, blockTimeMS=3000)
    outcome = alone.invoke({"job": "detect-failures"}, timeout=3)
    assert outcome.error is not None
    assert outcome.seconds < 3
    assert alone.logged(level="ERROR", message="Invocation failed", job_name="detect-failures")
    assert alone.invoke({"job": "detect-failures"}).error is None


def test_an_event_that_nobody_understands_fails_the_invocation_and_is_an_error_line(
    function: Function,
) -> None:
    outcome = function.invoke({"job": "nonsense"})
    assert outcome.error is not None
    assert outcome.error["errorType"] == "ValueError"
    (line,) = function.logged(level="ERROR", lambda_request_id=outcome.request_id)
    assert line["message"] == "Invocation failed"
    assert set(line) == {"timestamp", "level", "message", "context"}
    assert "There is no job" in line["context"]["exception"]


def fail(mongo: Mongo, command: str, **how: object) -> None:
    """Let the database fail the function's next command of that name."""
    data = {"failCommands": [command], "appName": "state-tracking-api", **how}
    mongo.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data})


def test_an_error_that_nobody_foresaw_is_a_500_and_an_error_line(alone: Function, own_mongo: Mongo) -> None:
    call = caller(alone)
    call("POST", "/api/sessions", session())
    fail(own_mongo, "find", errorCode=8000)
    answer = call("GET", f"/api/sessions/{uuid4()}")
    assert answer.status == 500
    assert answer.json["error"] == "Internal Server Error"
    (line,) = alone.logged(message="Unhandled exception")
    assert set(line) == {"timestamp", "level", "message", "context"}
    assert line["level"] == "ERROR"
    assert line["context"]["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" in line["context"]["exception"]
    assert call("GET", "/health/detailed").status == 200


def test_a_request_past_its_time_is_a_504_before_lambda_ends_it(
    instances: Start, own_mongod: list[Mongod], own_mongo: Mongo
) -> None:
    function = instances(**unlinked(own_mongod[0].uri), REQUEST_TIMEOUT_MS="1500", DB_TIMEOUT_MS="5000")
    call = caller(function)
    call("POST", "/api/sessions", session())
    fail(own_mongo, "find", blockConnection=True, blockTimeMS=3000)
    answer = call("GET", f"/api/sessions/{uuid4()}")
    assert answer.status == 504
    assert call("POST", "/api/sessions", session()).status == 201


def test_a_transaction_whose_end_is_lost_is_ended_before_the_answer_goes_out(
    instances: Start, own_mongod: list[Mongod], own_mongo: Mongo
) -> None:
    """Nothing runs after it: the session would be locked for a minute, or until another event came."""
    # The one connection is lost with the commit, so that ending the transaction takes a new one.
    uri = f"{own_mongod[0].uri}&maxPoolSize=1"
    function = instances(**unlinked(uri), MONGODB_DATABASE="left-open", REQUEST_TIMEOUT_MS="1500")
    call = caller(function)
    made = call("POST", "/api/sessions", session()).json["session_id"]
    own_mongo.admin.command({"setParameter": 1, "transactionLifetimeLimitSeconds": 3600})
    failed = f"/api/sessions/{made}/mark-failed", {"error_message": "gone"}
    ends = {"failCommands": ["commitTransaction", "abortTransaction"], "closeConnection": True}
    with failpoint(own_mongo, "failCommand", appName="state-tracking-api", **ends):
        assert call("POST", *failed).status == 504
        function.freeze()
        late_evidence = {"$set": {"metadata": {"found": "late"}}}
        with pymongo.timeout(20):
            sessions = own_mongo["left-open"]["sessions"]
            assert sessions.update_one({"session_id": made}, late_evidence).modified_count == 1
    function.thaw()
    again = call("POST", *failed)
    assert (again.status, again.json["metadata"]["found"]) == (200, "late")


def test_two_instances_count_a_keys_requests_together(instances: Start) -> None:
    environment = {"MONGODB_DATABASE": f"lambda-{uuid4().hex[:12]}", "RATE_LIMIT_PER_MINUTE": "6"}
    one, two = instances(**environment), instances(**environment)
    answers = [
        caller(function)("GET", "/api/sessions") for function in (one, two, one, two, one, two, one, two)
    ]
    assert [answer.status for answer in answers] == [200] * 6 + [429] * 2, one.log + two.log
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers[:6]] == list("543210")
    assert int(answers[-1].headers["retry-after"]) <= 61


def test_a_linked_storage_for_the_rate_limit_is_used_and_redis_is_in_the_package(
    instances: Start, tmp_path: Path, mongod: Mongod
) -> None:
    links = {
        "MongodbUri": {"value": mongod.uri},
        "ApiKeys": {"value": KEY},
        "RateLimitStorageUri": {"value": f"redis://127.0.0.1:{free_port()}"},
    }
    # As SST's build encrypts them.
    seal = (
        "const { createCipheriv } = require('crypto');"
        "const cipher = createCipheriv('aes-256-gcm', Buffer.alloc(32, 7), Buffer.alloc(12));"
        "const sealed = [cipher.update(process.argv[2]), cipher.final(), cipher.getAuthTag()];"
        "require('fs').writeFileSync(process.argv[1], Buffer.concat(sealed));"
    )
    subprocess.run(["node", "-e", seal, str(tmp_path / "links"), json.dumps(links)], check=True)
    key = base64.b64encode(bytes([7] * 32)).decode()
    function = instances(SST_KEY_FILE=str(tmp_path / "links"), SST_KEY=key)
    assert caller(function)("GET", "/api/sessions").status == 200
    assert function.logged(message="Rate limit storage is away; requests pass")


def test_a_wrong_configuration_stops_the_start_names_the_variable_and_is_an_error_line(
    instances: Start,
) -> None:
    function = instances(STALL_THRESHOLD_MS="-1")
    assert function.api.asked.wait(30)
    assert function.api.init_error is not None
    assert "STALL_THRESHOLD_MS" in function.api.init_error["errorMessage"]
    (line,) = function.logged(level="ERROR")
    assert set(line) == {"timestamp", "level", "message", "context"}
    assert line["message"] == "Function could not start"
    assert "STALL_THRESHOLD_MS" in line["context"]["exception"]
    assert KEY not in function.log


def test_a_freeze_of_30_seconds_does_no_harm(frozen: Frozen) -> None:
    # What is left of the freeze itself; it is no wait for anything.
    time.sleep(max(0.0, frozen.since + 30 - time.monotonic()))
    frozen.function.thaw()
    assert caller(frozen.function)("POST", f"/api/sessions/{frozen.session_id}/heartbeat").status == 200
