"""A bare ASGI application: what uvicorn alone costs for an answer of a session's size. `bare.py PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn

BODY = b"x" * 560
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Answer everything with the same bytes."""
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    config = uvicorn.Config(
        bare, port=int(sys.argv[1]), access_log=False, log_config=None, server_header=False, lifespan="off"
    )
    asyncio.run(uvicorn.Server(config).serve())
