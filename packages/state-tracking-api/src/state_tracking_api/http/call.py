"""What belongs to one request: when it came, who calls, and what its answer will carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import msgspec
from bson import DBRef

from state_tracking_api.clock import iso
from state_tracking_api.lifecycle import Stamp
from state_tracking_api.metrics import Metrics
from state_tracking_api.settings import Settings
from state_tracking_api.storage import Storage

Headers = list[tuple[bytes, bytes]]

# The key under which the ASGI scope carries the Call.
SCOPE_KEY = "claude_projects.call"


class Resources(Protocol):
    """What lives as long as the process."""

    @property
    def storage(self) -> Storage:
        """The database."""
        ...

    @property
    def settings(self) -> Settings:
        """The environment."""
        ...

    @property
    def metrics(self) -> Metrics:
        """What is counted."""
        ...

    @property
    def started(self) -> datetime:
        """When the process started."""
        ...


@dataclass(slots=True)
class Call:
    """One request under way."""

    resources: Resources
    request_id: str
    now: datetime
    # The route's template once it is known, for logs and metrics; never the raw path, which has ids in it.
    endpoint: str = "unmatched"
    key: str | None = None
    accept: str = ""
    # Left out of the log by sampling, unless something goes wrong.
    quiet: bool = False
    # Whether the answer has begun to be sent: from then on it can't become another one.
    begun: bool = False
    headers: Headers = field(default_factory=list)

    @property
    def storage(self) -> Storage:
        """The database."""
        return self.resources.storage

    @property
    def settings(self) -> Settings:
        """The environment."""
        return self.resources.settings

    @property
    def stamp(self) -> Stamp:
        """When and by whom, for what this request writes."""
        return Stamp(self.now, f"key:{self.key}")


@dataclass(slots=True, frozen=True)
class Answer:
    """An answer that is not simply 200 with JSON."""

    body: Any = None
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    media_type: bytes = b"application/json"


def _encodable(value: Any) -> Any:
    if isinstance(value, int):  # bson.Int64
        return int(value)
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, DBRef):  # an object with the keys $ref and $id in somebody's metadata
        return dict(value.as_doc())
    raise TypeError(f"{type(value).__name__} in an answer")


encode = msgspec.json.Encoder(enc_hook=_encodable).encode
