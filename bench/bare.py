"""A bare ASGI application: what uvicorn alone costs for an answer of a size. `bare.py PORT`.

The size in bytes is the first part of the path: /560/api/sessions is answered with 560 of them.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from typing import Any

import uvicorn


@cache
def answer(size: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two messages of an answer, made once for each size."""
    headers = [(b"content-type", b"application/json"), (b"content-length", size.encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return start, {"type": "http.response.body", "body": b"x" * int(size)}


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Answer everything with so many bytes."""
    if scope["type"] == "http":
        await receive()
        for message in answer(scope["path"].split("/", 2)[1]):
            await send(message)


if __name__ == "__main__":
    config = uvicorn.Config(
        bare, port=int(sys.argv[1]), access_log=False, log_config=None, server_header=False, lifespan="off"
    )
    asyncio.run(uvicorn.Server(config).serve())
