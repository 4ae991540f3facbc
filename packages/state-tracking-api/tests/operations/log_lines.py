"""Reading a server's real standard output."""

from __future__ import annotations

from typing import Any

import httpx

from api_harness.server import Server

Line = dict[str, Any]


def request_id(answer: httpx.Response) -> str:
    """The id under which the log has this answer's request."""
    return answer.headers["x-request-id"]


def lines_of(server: Server, answer: httpx.Response) -> list[Line]:
    """Every line about the request that was answered so, in order, once the last one has been written."""
    identifier = request_id(answer)

    def is_last(line: Line) -> bool:
        return line["message"] == "Request handled" and line["context"].get("request_id") == identifier

    server.line_where(is_last, f"the last line about request {identifier}")
    return [line for line in list(server.lines) if line["context"].get("request_id") == identifier]


def the_line(lines: list[Line], message: str) -> Line:
    """The one line with this message."""
    found = [line for line in lines if line["message"] == message]
    assert len(found) == 1, f"{len(found)} lines say {message!r}: {lines}"
    return found[0]


def logged(server: Server, answer: httpx.Response, message: str) -> Line:
    """The one line with this message about the request that was answered so."""
    return the_line(lines_of(server, answer), message)


def written(server: Server, message: str, **context: object) -> Line:
    """A line with this message and context, past or to come."""
    return server.line_where(
        lambda line: line["message"] == message and context.items() <= line["context"].items(),
        f"{message} {context}",
    )
