"""Lambda without AWS: the package that SST zips, under AWS's own runtime client, and the service it talks to.

What is real: the zip and its encrypted secrets, the interpreter, `awslambdaric`, the process that is frozen
and thawed, the database. What stands in for AWS is `RuntimeApi`, the HTTP service that the runtime client
fetches events (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html).
"""

from __future__ import annotations

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from uuid import uuid4

ROOT = Path(__file__).parents[4]
# The key that the tests' packages hold.
KEY = "6f1d0f4e-35c9-4a35-9f3c-0d7e2b1a9c55"
Event = dict[str, Any]


@dataclass
class Outcome:
    """What the function made of an event."""

    result: Any = None
    error: dict[str, Any] | None = None
    seconds: float = 0.0
    # The invocation's, under which the function logs.
    request_id: str = ""

    @property
    def status(self) -> int:
        """Status code of an HTTP answer."""
        assert self.error is None, self.error
        return int(self.result["statusCode"])

    @property
    def headers(self) -> dict[str, str]:
        """Headers of an HTTP answer."""
        return self.result["headers"]

    @property
    def json(self) -> Any:
        """Body of an HTTP answer."""
        return json.loads(self.text)

    @property
    def text(self) -> str:
        """Body of an HTTP answer as text."""
        body = self.result.get("body", "")
        return base64.b64decode(body).decode() if self.result.get("isBase64Encoded") else body


@dataclass
class _Invocation:
    event: Event
    id: str = field(default_factory=lambda: str(uuid4()))
    timeout: float = 30.0
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome = field(default_factory=Outcome)


class RuntimeApi(ThreadingHTTPServer):
    """The service of one function instance: hands out events one by one, takes results and errors."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.waiting: queue.Queue[_Invocation | None] = queue.Queue()
        self.current: _Invocation | None = None
        self.asked = threading.Event()
        self.init_error: dict[str, Any] | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A function that is killed while it waits for its next event is how each of them ends."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: RuntimeApi  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.set()
        invocation = self.server.waiting.get()
        if invocation is None:  # the end: nothing more will come
            self.close_connection = True
            return
        self.server.current = invocation
        body = json.dumps(invocation.event).encode()
        self.send_response(200)
        self.send_header("Lambda-Runtime-Aws-Request-Id", invocation.id)
        deadline = int((time.time() + invocation.timeout) * 1000)
        self.send_header("Lambda-Runtime-Deadline-Ms", str(deadline))
        arn = "arn:aws:lambda:us-east-1:123456789012:function:state-tracking-api-test"
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", arn)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if self.path.endswith("/init/error"):
            self.server.init_error = body
            self.server.asked.set()
            return
        invocation = self.server.current
        assert invocation is not None
        if self.path.endswith("/error"):
            invocation.outcome.error = body
        else:
            invocation.outcome.result = body
        invocation.done.set()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


class Function:
    """One instance of the function. As a context manager it is stopped at the end."""

    def __init__(
        self, python: str, task_root: Path, runtime: Path, handler: str, env: Mapping[str, str]
    ) -> None:
        self.api = RuntimeApi()
        threading.Thread(target=self.api.serve_forever, daemon=True).start()
        self.lines: list[str] = []
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "PYTHONPATH": os.pathsep.join([str(task_root), str(runtime)]),
            "LAMBDA_TASK_ROOT": str(task_root),
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self.api.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "state-tracking-api-test",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "AWS_REGION": "us-east-1",
            **env,
        }
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", "awslambdaric", handler],
            cwd=task_root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def invoke(self, event: Event, timeout: float = 30.0, deadline: float = 60.0) -> Outcome:
        """Give the instance an event and wait for what it makes of it.

        `timeout` is what the function is told it has; `deadline` is how long this waits, both in seconds.
        """
        invocation = _Invocation(event, timeout=timeout)
        began = time.perf_counter()
        self.api.waiting.put(invocation)
        end = time.monotonic() + deadline
        while not invocation.done.wait(0.2):
            assert self.process.poll() is None, f"the function ended:\n{self.log}"
            assert self.api.init_error is None, (
                f"the function did not start: {self.api.init_error}\n{self.log}"
            )
            assert time.monotonic() < end, f"no answer within {deadline} s:\n{self.log}"
        invocation.outcome.request_id = invocation.id
        invocation.outcome.seconds = time.perf_counter() - began
        return invocation.outcome

    def first(self, event: Event) -> float:
        """Seconds from the start of the process to its first answer."""
        self.invoke(event)
        return time.perf_counter() - self.started

    def freeze(self) -> None:
        """What Lambda does between two invocations: the process does not run at all."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The end of `freeze`."""
        self.process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """Everything that the instance has written."""
        return "\n".join(self.lines)

    def logged(self, *, at_least: int = 1, **wanted: object) -> list[dict[str, Any]]:
        """The JSON lines whose fields, at the top or in the context, have these values.

        Waits up to 20 seconds for so many of them: the pipe may be behind the answer.
        """
        end = time.monotonic() + 20
        while True:
            found: list[dict[str, Any]] = []
            for line in [line for line in self.lines if line.startswith("{")]:
                record = json.loads(line)
                fields = {**record.get("context", {}), **record}
                if all(fields.get(name) == value for name, value in wanted.items()):
                    found.append(record)
            if len(found) >= at_least or time.monotonic() > end:
                return found
            time.sleep(0.02)

    def stop(self) -> None:
        """End the instance."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.api.waiting.put(None)
        self.api.shutdown()
        self.api.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Package:
    """What SST has zipped and what it would configure the function with."""

    archive: Path
    graph: dict[str, Any]

    @property
    def function(self) -> dict[str, Any]:
        """The function's configuration."""
        return next(r["inputs"] for r in self.graph["resources"] if r["name"] == "ServerFunction")

    def extract(self, target: Path) -> Path:
        """Unpack the archive into `target`, as Lambda does into /var/task."""
        with zipfile.ZipFile(self.archive) as archive:
            archive.extractall(target)
        return target


Start = Callable[..., Function]


def http_event(
    method: str,
    path: str,
    body: object = None,
    *,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    source: str = "203.0.113.7",
) -> Event:
    """An event of an HTTP API, payload format 2.0.

    https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
    """
    event: Event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": urlencode(query or {}),
        "headers": {
            "host": "claude-projects.truapi.com",
            "user-agent": "harness",
            "x-forwarded-for": f"{source}, 130.176.0.1",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
            **{name.lower(): value for name, value in (headers or {}).items()},
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "a1b2c3d4e5",
            "domainName": "claude-projects.truapi.com",
            "domainPrefix": "claude-projects",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": source,
                "userAgent": "harness",
            },
            "requestId": f"gateway-{uuid4()}",
            "routeKey": "$default",
            "stage": "$default",
            "time": "22/Nov/2026:19:00:00 +0000",
            "timeEpoch": 1795374000000,
        },
        "isBase64Encoded": False,
    }
    if body is not None:
        event["headers"]["content-type"] = "application/json"
        event["body"] = json.dumps(body)
    return event
