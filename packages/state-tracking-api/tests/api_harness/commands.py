"""What a process sends to the database, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from pymongo import monitoring

from api_harness.api import uuid4
from state_tracking_api import settings
from state_tracking_api.storage import Storage


class Commands(monitoring.CommandListener):
    """How often each command was sent, by its name and, where it is about one, its collection."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()

    def on(self, collection: str) -> dict[str, int]:
        """How often each command on a collection was sent."""
        ending = f" {collection}"
        return {name.removesuffix(ending): n for name, n in self.sent.items() if name.endswith(ending)}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        about = event.command.get(event.command_name)
        self.sent[f"{event.command_name} {about}" if isinstance(about, str) else event.command_name] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Nothing."""


@asynccontextmanager
async def counted(commands: Commands, uri: str, database: str, **configured: Any) -> AsyncGenerator[Storage]:
    """A database as one server process has it, its setting up left out of the count."""
    options = settings.load(mongodb_uri=uri, mongodb_database=database, api_keys=uuid4(), **configured)
    storage = Storage(options, event_listeners=[commands])
    try:
        await storage.prepare()
        commands.sent.clear()
        yield storage
    finally:
        await storage.close()
