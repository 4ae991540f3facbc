"""What a process sends to the database, counted."""

from __future__ import annotations

from collections import Counter

from pymongo import monitoring


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
