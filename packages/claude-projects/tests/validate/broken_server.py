"""Real servers with one thing wrong with each, made by wrapping the real application from outside.

python broken_server.py DEFECT=PORT …      the environment is that of `state-tracking-api serve`

They share a process, since what a process costs is its start; each has a database of its own.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import uvicorn

from state_tracking_api import settings
from state_tracking_api.app import create_app

Asgi = Callable[[Any, Any, Any], Awaitable[None]]

# More than a heartbeat may take (500 ms), less than what a request under load may (1000 ms).
DELAY_SECONDS = 0.52


def with_open_doors(app: Asgi) -> Asgi:
    """Authentication off: whoever comes is let in."""
    key = settings.load().api_keys[0].secret.get_secret_value().encode()

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            others = [pair for pair in scope["headers"] if pair[0] != b"x-api-key"]
            scope = {**scope, "headers": [*others, (b"x-api-key", key)]}
        await app(scope, receive, send)

    return wrapped


def with_slow_heartbeats(app: Asgi) -> Asgi:
    """A wrong 95th percentile."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/heartbeat"):
            await asyncio.sleep(DELAY_SECONDS)
        await app(scope, receive, send)

    return wrapped


def with_many_successors(app: Asgi) -> Asgi:
    """Recovery that is not idempotent: who calls again gets another new session."""

    async def answer_of(scope: Any, body: bytes) -> tuple[int, list[Any], bytes]:
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return messages[0]["status"], messages[0]["headers"], content

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/recover"):
            await app(scope, receive, send)
            return
        body = (await receive())["body"]
        status, headers, content = await answer_of(scope, body)
        if status == 200:
            again = {
                "project_id": json.loads(content)["project_id"],
                "machine_id": f"{json.loads(body)['new_machine_id']}-{uuid4()}",
            }
            kept = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
            target = {**scope, "path": "/api/sessions", "raw_path": b"/api/sessions", "headers": kept}
            status, headers, content = await answer_of(target, json.dumps(again).encode())
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return wrapped


def with_patience_wanted(app: Asgi) -> Asgi:
    """No defect: a rate limit that refuses every seventh request with a key for a second."""
    count = 0

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        nonlocal count
        count += scope["type"] == "http" and any(name == b"x-api-key" for name, _ in scope["headers"])
        if scope["type"] != "http" or count % 7:
            await app(scope, receive, send)
            return
        count += 1
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        body = {"statusCode": 429, "error": "Too Many Requests", "message": "More than a test permits"}
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    return wrapped


def with_a_forgotten_session(app: Asgi) -> Asgi:
    """One heartbeat, the fifth, is for a session that does not exist; all others are right."""
    beats = 0

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        nonlocal beats
        if scope["type"] == "http" and scope["path"].endswith("/heartbeat"):
            beats += 1
            if beats == 5:
                path = f"/api/sessions/{uuid4()}/heartbeat"
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return wrapped


DEFECTS: dict[str, Callable[[Asgi], Asgi]] = {
    "authentication-off": with_open_doors,
    "slow-heartbeats": with_slow_heartbeats,
    "many-successors": with_many_successors,
    "impatient": with_patience_wanted,
    "forgetful": with_a_forgotten_session,
    # The job is kept from running by the server's own switch; nothing needs to be wrapped.
    "detection-off": lambda app: app,
}


class Server(uvicorn.Server):
    """A server among others, so that the signals of the process are not its own."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def broken(defect: str, port: int) -> Server:
    """The real application, broken."""
    overrides = {"scheduler": "off"} if defect == "detection-off" else {}
    real = create_app(settings.load(mongodb_database=f"validate-{defect}", **overrides))
    config = uvicorn.Config(
        DEFECTS[defect](real), host="127.0.0.1", port=port, log_config=None, lifespan="on"
    )
    return Server(config)


async def serve(servers: list[Server]) -> None:
    """Serve until SIGTERM."""

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    await asyncio.gather(*(server.serve() for server in servers))


if __name__ == "__main__":
    asyncio.run(
        serve([broken(defect, int(port)) for defect, port in (one.split("=") for one in sys.argv[1:])])
    )
