"""Writes docs/API.md from the OpenAPI document and the examples below.

    .venv/bin/python docs/reference/api_page.py

The examples stand in the order in which a reader can run them, one after another, and the tests do so. A
route without an example, and an example without a route, is an error.
"""

# ruff: noqa: INP001

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PAGE = Path(__file__).parents[1] / "API.md"
_KEY = '-H "X-API-Key: $CLAUDE_PROJECTS_API_KEY"'
_JSON = '-H "Content-Type: application/json"'

# What is asked of the API in each section: method, path, and the example as (variable, path, body).
# A variable keeps a field of the answer for the examples that follow.
_SESSION, _TASK, _MACHINE = "/api/sessions/{session_id}", "/api/tasks/{task_id}", "/api/machines/{machine_id}"
SECTIONS: list[tuple[str, str, list[tuple[str, str, Json]]]] = [
    (
        "Machines",
        (
            "Hosts on which sessions run. A session may also name a machine that is not registered; docker "
            "slots and maintenance need a registered one."
        ),
        [
            (
                "POST",
                "/api/machines",
                {
                    "body": {
                        "machine_id": "build-7",
                        "hostname": "build-7.example.com",
                        "docker_slots": [0, 1],
                    }
                },
            ),
            ("GET", "/api/machines", {"query": "status=online&limit=10"}),
            ("GET", _MACHINE, {}),
            ("PATCH", _MACHINE, {"body": {"docker_slots": [0, 1, 2]}}),
            ("POST", f"{_MACHINE}/heartbeat", {"body": {"metadata": {"load": 0.7}}}),
        ],
    ),
    (
        "Sessions",
        "One session is one run of an orchestration on one machine.",
        [
            (
                "POST",
                "/api/sessions",
                {
                    "keep": ("SESSION_ID", "session_id"),
                    "body": {
                        "project_id": "api-examples",
                        "machine_id": "build-7",
                        "docker_slot": 0,
                        "metadata": {"branch": "main"},
                    },
                },
            ),
            ("GET", "/api/sessions", {"query": "project_id=api-examples&status=active"}),
            ("GET", _SESSION, {}),
            ("PATCH", _SESSION, {"body": {"metadata": {"branch": None, "phase": "tests"}}}),
            ("POST", f"{_SESSION}/heartbeat", {"body": {"metadata": {"step": 3}}}),
        ],
    ),
    (
        "Tasks",
        (
            "What a session has to do. A task is claimed by taking it to `in_progress`; a second claim is "
            "refused with 400."
        ),
        [
            (
                "POST",
                "/api/tasks",
                {
                    "keep": ("TASK_ID", "task_id"),
                    "body": {
                        "session_id": "$SESSION_ID",
                        "project_id": "api-examples",
                        "task_name": "Mend the login",
                        "github_issue_id": "142",
                    },
                },
            ),
            ("GET", "/api/tasks", {"query": "session_id=$SESSION_ID"}),
            ("GET", _TASK, {}),
            ("PATCH", _TASK, {"body": {"status": "in_progress"}}),
        ],
    ),
    (
        "Silence and failure",
        "How silent sessions are found, and how a failure is reported.",
        [
            ("GET", "/api/sessions/health", {}),
            ("GET", f"{_SESSION}/health", {}),
            ("POST", "/api/sessions/detect-failures", {}),
            ("POST", f"{_SESSION}/mark-stalled", {}),
            ("GET", "/api/sessions/stalled", {}),
            ("POST", f"{_SESSION}/mark-failed", {"body": {"error_message": "The build host lost its disk"}}),
        ],
    ),
    (
        "Recovery",
        "How the work of a failed or stalled session goes on in a new one.",
        [
            ("GET", f"{_SESSION}/recovery-state", {}),
            ("POST", f"{_SESSION}/prepare-recovery", {"body": {"clear_machine_assignment": True}}),
            (
                "POST",
                f"{_SESSION}/recover",
                {"keep": ("SUCCESSOR_ID", "session_id"), "body": {"new_machine_id": "build-8"}},
            ),
            ("GET", f"{_SESSION}/events", {"query": "limit=20"}),
        ],
    ),
    (
        "Archive and cleanup",
        "Ended sessions are deleted after RETENTION_DAYS, unless they are archived.",
        [
            ("POST", f"{_SESSION}/archive", {}),
            ("GET", "/api/sessions/archived", {"query": "limit=10"}),
            ("POST", "/api/sessions/cleanup", {"query": "older_than_days=30"}),
            ("DELETE", "/api/sessions/cleanup", {"query": "older_than_days=30"}),
        ],
    ),
    (
        "Deleting",
        "What was made above goes away again.",
        [
            ("DELETE", _TASK, {}),
            ("DELETE", _SESSION, {"also": ["/api/sessions/$SUCCESSOR_ID"]}),
            ("DELETE", _MACHINE, {}),
        ],
    ),
    (
        "Operations",
        "For monitoring, for people and for programs that want to know the API itself.",
        [
            ("GET", "/health", {}),
            ("GET", "/health/detailed", {}),
            ("GET", "/metrics", {}),
            ("GET", "/api/analytics/summary", {"query": "project_id=api-examples"}),
            ("GET", "/dashboard", {}),
            ("GET", "/api/docs", {}),
            ("GET", "/api/openapi.json", {}),
        ],
    ),
]

# Objects that answers consist of, in the order in which they are shown.
OBJECTS = [
    *("Session", "Task", "Machine", "SessionHealth", "HealthSummary", "StalledSessions", "StalledSession"),
    *("RecoveryState", "Detected", "CleanedUp", "Timeline", "Event", "Health", "DetailedHealth", "ErrorBody"),
]

_INTRODUCTION = """\
# API

<!-- Written by docs/reference/api_page.py from the OpenAPI document. Change that, not this. -->

JSON over HTTP. The examples need `curl` and `python3`. They run from top to bottom, and the tests run them.
[`make run`](TUTORIAL.md) prints the two variables that they use:

```sh
export CLAUDE_PROJECTS_URL=http://127.0.0.1:3000 CLAUDE_PROJECTS_API_KEY=…
```

Some examples keep an id of the answer for later. This function reads one field of a JSON object:

```bash
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
```

The same description for programs: `GET /api/openapi.json` (OpenAPI 3.1). With a browser, `/api/docs` shows it
as a page on which every call can be tried.

## Authentication

Send a key in the `X-API-Key` header. Keys are UUIDs of version 4, and the server knows those in
[`API_KEYS`](CONFIGURATION.md). A name before the key (`API_KEYS=ci=…,laptop=…`) stands in logs, metrics and
timelines instead of the key.

| situation | answer |
| --- | --- |
| no key | 401 `API key required` |
| not a UUID of version 4 | 401 `Malformed API key` |
| a key that the server does not know | 401 `Invalid API key` |

No key is needed for `/health`, `/api/docs`, `/api/openapi.json` and for the page at `/dashboard`, which asks
for one.

## Rate limits

Each key may send RATE_LIMIT_PER_MINUTE requests (100 by default) in a window of 60 seconds. The window begins
with the key's first request. Every answer to a request with a key carries:

| header | meaning |
| --- | --- |
| `X-RateLimit-Limit` | requests in a window |
| `X-RateLimit-Remaining` | requests that are left in this one |
| `X-RateLimit-Reset` | when it ends, in seconds since 1970 (Unix time) |

Past the limit the answer is 429 with `Retry-After`, the number of seconds to wait.

## Conventions

- Times are ISO 8601 in UTC with milliseconds, and they are the server's.
- Every field of an object is always there. A field without a value is `null`; `metadata` is always an object.
- Unknown fields in a body and unknown query parameters are refused with 400: a spelling mistake in a filter
  must not return everything.
- Lists are `{"sessions" | "tasks" | "machines": […], "total", "limit", "offset"}`, newest first.
- `metadata` is merged as RFC 7396 says: a `null` removes the key. Up to 64 KiB and 20 levels.
- Every answer carries `X-Request-Id`. The log lines of the request have the same id as `request_id`.

## Errors

All errors look like this. `errors` is there on a 400 from validation, and lists every field that is wrong.

```json
{
  "statusCode": 400,
  "error": "Bad Request",
  "message": "Validation failed: project_id",
  "timestamp": "2026-01-19T12:00:00.000Z",
  "path": "/api/sessions",
  "request_id": "a3bb189e-8bf9-4888-9912-ace4e6543002",
  "errors": [{"field": "project_id", "message": "is required"}]
}
```

| code | meaning | what a client does |
| --- | --- | --- |
| 400 | wrong in itself, or for the state of its own resource | mend the request |
| 401 | no key, or one that does not fit | check the key |
| 404 | the session, task or machine does not exist | |
| 405, 413, 415 | wrong method; a body over 1 MiB; a body that is no JSON, or compressed | mend the request |
| 409 | it collides with another resource (`existing_session_id`), or has been overtaken (`recovered_by`) | stop: somebody else has the work |
| 429 | too many requests with this key | wait for `Retry-After` seconds |
| 500 | a defect of the server | report it with the `request_id` |
| 503 | the database is away | try again after `Retry-After` seconds |
| 504 | it took too long and was cancelled; it may have happened all the same | read, then try again |

## Versions

The API has one version, which `/health/detailed` tells. Fields and endpoints are added without notice, so
clients must ignore fields that they do not know. Whatever breaks a client comes under a new path prefix
(`/api/v2`), with the old one kept for at least RETENTION_DAYS, so that sessions that run come to their end.
"""  # noqa: E501


def _resolved(schema: Json, components: Json) -> Json:
    return components[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def _type(schema: Json, components: Json) -> str:
    if "anyOf" in schema:
        kinds = [_type(one, components) for one in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        found = components[name]
        if "enum" in found:
            return ", ".join(f"`{value}`" for value in found["enum"])
        return f"[{name}](#{name.lower()})" if name in OBJECTS else "object"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), components)}"
    bounds = _bounds(schema)
    kind = {"string": "text", "null": "`null`"}.get(schema.get("type", "any"), schema.get("type", "any"))
    if schema.get("format") == "date-time":
        kind = "time"
    return f"{kind}{bounds}"


def _bounds(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None and high < 2**31 - 1:
        return f", {low:g} to {int(high)}"
    if low is not None:
        return f", at least {low:g}"
    if "maxLength" in schema:
        return f", up to {schema['maxLength']} characters"
    return ""


def _described(schema: Json) -> str:
    own = schema.get("description")
    inner = next((one["description"] for one in schema.get("anyOf", []) if "description" in one), "")
    text = str(own or inner).replace("\n", " ").replace("|", "\\|")
    if schema.get("default") is not None:
        default = json.dumps(schema["default"])
        text = f"{text}{'; ' if text else ''}default {default}"
    return text


def _field_rows(schema: Json, components: Json) -> Iterator[str]:
    for name, one in schema.get("properties", {}).items():
        required = "yes" if name in schema.get("required", []) else ""
        yield f"| `{name}` | {_type(one, components)} | {required} | {_described(one)} |"


def _command(method: str, path: str, example: Json, *, public: bool) -> str:
    target = path.format(session_id="$SESSION_ID", task_id="$TASK_ID", machine_id="build-7")
    query = f"?{example['query']}" if "query" in example else ""
    commands: list[str] = []
    for one in [*example.get("also", []), target]:
        words = ["curl -sS --fail-with-body"]
        if method != "GET":
            words.append(f"-X {method}")
        words.append(f'"$CLAUDE_PROJECTS_URL{one}{query}"')
        lines = [" ".join(words)]
        if not public:
            lines.append(f"  {_KEY}")
        if "body" in example:
            lines[-1] += f" {_JSON}"
            lines.append(f"  -d {_quoted(example['body'])}")
        if "keep" in example:
            variable, name = example["keep"]
            lines[0] = f"{variable}=$({lines[0]}"
            lines[-1] += f" | field {name})"
        commands.append(" \\\n".join(lines))
    return "\n".join(commands)


def _quoted(body: Json) -> str:
    text = json.dumps(body, ensure_ascii=False)
    if "$" not in text:
        return f"'{text}'"
    return '"' + text.replace('"', '\\"') + '"'


def _operation(method: str, path: str, example: Json, document: Json) -> Iterator[str]:
    components: Json = document["components"]["schemas"]
    operation: Json = document["paths"][path][method.lower()]
    yield f"### {operation['summary']}\n"
    yield f"`{method} {path}`\n"
    if operation.get("description"):
        yield f"{' '.join(operation['description'].split())}\n"
    queries = [one for one in operation.get("parameters", []) if one["in"] == "query"]
    if queries:
        yield "| query | type | meaning |\n| --- | --- | --- |"
        for one in queries:
            yield f"| `{one['name']}` | {_type(one['schema'], components)} | {_described(one['schema'])} |"
        yield ""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        schema = next((one for one in body.get("anyOf", [body]) if "$ref" in one), body)
        yield "| field | type | required | meaning |\n| --- | --- | --- | --- |"
        yield from _field_rows(_resolved(schema, components), components)
        yield ""
    public = "public" in operation.get("tags", []) or path == "/dashboard"
    yield f"```bash\n{_command(method, path, example, public=public)}\n```\n"
    yield f"Answers: {_answers(operation, components)}.\n"


def _answers(operation: Json, components: Json) -> str:
    said: list[str] = []
    for code, answer in operation["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        if code.startswith("2") and schema:
            name = schema.get("$ref", "").rsplit("/", 1)[-1]
            if name.endswith("List"):
                said.append(f"{code} with a list")
                continue
            said.append(f"{code} with {_type(schema, components)}" if name in OBJECTS else code)
        elif not code.startswith("5"):
            said.append(code)
    return ", ".join(said)


def _examples(document: Json) -> Iterator[tuple[str, Json]]:
    """One example for each object, as of an active session that nobody had to recover."""
    for item in document["paths"].values():
        for operation in item.values():
            for answer in operation["responses"].values():
                content = answer.get("content", {}).get("application/json", {})
                name = content.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
                if name in OBJECTS and name != "ErrorBody" and "example" in content:
                    unset = ("completed_at", "recovered_from", "recovered_by", "stall_threshold_ms")
                    given = dict(content["example"])
                    yield name, given | {field: None for field in unset if field in given}


def written(document: Json) -> str:
    """The page. Raises ValueError where routes and examples are not the same."""
    exist = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    shown = {(method, path) for _, _, calls in SECTIONS for method, path, _ in calls}
    if exist != shown:
        raise ValueError(f"without example: {exist - shown}; without route: {shown - exist}")
    lines = [_INTRODUCTION]
    for title, text, calls in SECTIONS:
        lines.append(f"## {title}\n\n{text}\n")
        for method, path, example in calls:
            lines += _operation(method, path, example, document)
    lines.append("## Objects\n")
    components: Json = document["components"]["schemas"]
    examples = dict(_examples(document))
    for name in OBJECTS:
        schema = components[name]
        text = " ".join(schema.get("description", "").split())
        lines.append(f"### {name}\n\n{text}\n\n| field | type | meaning |\n| --- | --- | --- |")
        for field, one in schema["properties"].items():
            lines.append(f"| `{field}` | {_type(one, components)} | {_described(one)} |")
        lines.append("")
        if name in examples:
            lines.append(f"```json\n{json.dumps(examples[name], indent=2, ensure_ascii=False)}\n```\n")
    return "\n".join(lines).rstrip() + "\n"


def openapi() -> Json:
    """The OpenAPI document of the server in this checkout."""
    from uuid import uuid4  # noqa: PLC0415

    from state_tracking_api import settings  # noqa: PLC0415
    from state_tracking_api.app import create_app  # noqa: PLC0415

    app = create_app(settings.load(mongodb_uri="mongodb://127.0.0.1", api_keys=str(uuid4())))
    return app.openapi()


if __name__ == "__main__":
    PAGE.write_text(written(openapi()), encoding="utf-8")
