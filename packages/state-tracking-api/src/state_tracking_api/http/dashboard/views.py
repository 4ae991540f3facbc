"""What the page polls: a view in one request each, 304 where it has not changed.

They belong to the page and change with it, so they are no part of the documented API.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from state_tracking_api import overview
from state_tracking_api.http.call import Answer, Call, encode
from state_tracking_api.http.insight import Summarise, summarised
from state_tracking_api.http.models import MESSAGE_LENGTH, Offset, SessionId, WholeNumber
from state_tracking_api.http.route import LeanRoute, QueryModel, Receive, Router
from state_tracking_api.http.sessions import existing
from state_tracking_api.lifecycle import MachineStatus, SessionStatus
from state_tracking_api.metadata import Json

DEFAULT_LIMIT = 50
MAX_LIMIT = 100


class ConditionalRoute(LeanRoute):
    """A GET with an ETag: 304 and no body to whoever has that answer already (RFC 9110, 13.1.2)."""

    async def answer(
        self,
        call: Call,
        path: Mapping[str, str],
        query: bytes,
        headers: Mapping[bytes, bytes],
        receive: Receive,
    ) -> Any:
        """As every lean route, then compared with If-None-Match."""
        body = encode(await super().answer(call, path, query, headers, receive))
        tag = b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
        carried = [
            (b"etag", tag),
            # The data of one key, in no cache that is shared, and in none without asking.
            (b"cache-control", b"private, no-cache"),
            (b"vary", b"X-API-Key"),
        ]
        if _has(headers.get(b"if-none-match", b""), tag):
            return Answer(b"", 304, carried)
        return Answer(body, headers=carried)


def _has(condition: bytes, tag: bytes) -> bool:
    """Whether If-None-Match names the tag; compared weakly, as the RFC says."""
    return any(part.strip().removeprefix(b"W/") == tag for part in condition.split(b","))


router = Router(ConditionalRoute, tags=["operations"], include_in_schema=False)


class Filters(QueryModel):
    """Which sessions, and which part of the list."""

    project_id: str | None = Field(default=None, min_length=1, max_length=MESSAGE_LENGTH)
    machine_id: str | None = Field(default=None, min_length=1, max_length=MESSAGE_LENGTH)
    status: SessionStatus | None = None
    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    offset: Offset = 0


class MachineFilters(QueryModel):
    """Which machines, and which part of the list."""

    status: MachineStatus | None = None
    limit: Annotated[int, WholeNumber] = Field(default=MAX_LIMIT, ge=1, le=MAX_LIMIT)
    offset: Offset = 0


@router.get("/api/dashboard/overview", summary="Sessions, who needs somebody first, and counts")
async def all_sessions(call: Call, query: Filters) -> Json:
    """Everything that the overview shows."""
    return await overview.overview(
        call.storage,
        call.now,
        call.settings.stall_threshold,
        project_id=query.project_id,
        machine_id=query.machine_id,
        status=query.status,
        limit=query.limit,
        offset=query.offset,
    )


@router.get("/api/dashboard/names", summary="Projects and machines to filter by")
async def all_names(call: Call) -> Json:
    """Asked for once, not with every poll: it looks at every session's key."""
    return await overview.names(call.storage)


@router.get("/api/dashboard/sessions/{session_id}", summary="A session, its tasks and its chain")
async def one_session(call: Call, session_id: SessionId) -> Json:
    """Everything that the page of a session shows, its events excepted."""
    return await overview.detail(call.storage, existing(session_id), call.now, call.settings.stall_threshold)


@router.get("/api/dashboard/machines", summary="Machines and the sessions on them")
async def all_machines(call: Call, query: MachineFilters) -> Json:
    """Everything that the page of machines shows."""
    return await overview.fleet(
        call.storage,
        call.now,
        call.settings.stall_threshold,
        status=query.status,
        limit=query.limit,
        offset=query.offset,
    )


@router.get("/api/dashboard/trends", summary="The success metrics, where they have changed")
async def trends(call: Call, query: Summarise) -> Json:
    """As `/api/analytics/summary`, without the moment of asking: that alone would change every answer."""
    summary = await summarised(call, query)
    return {name: value for name, value in summary.items() if name != "until"}
