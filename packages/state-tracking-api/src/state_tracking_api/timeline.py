"""What happened to a session, in order: its own transitions, its tasks', and its recent heartbeats.

The transitions stand in the documents that made them, written in the same write (see `lifecycle.event`). So
none is ever missing, and they go when their session goes.
"""

from __future__ import annotations

from operator import itemgetter

from state_tracking_api import sessions
from state_tracking_api.clock import iso
from state_tracking_api.errors import NotFound
from state_tracking_api.lifecycle import Document
from state_tracking_api.metadata import Json
from state_tracking_api.storage import Storage


async def of_session(storage: Storage, session_id: str, limit: int, offset: int) -> Json:
    """Events of a session and its tasks, oldest first, and the heartbeats that are remembered.

    Raises NotFound.
    """
    session = await storage.sessions.find_one({"session_id": session_id}, {"_id": 0, "events": 1, "beats": 1})
    if session is None:
        raise NotFound(f"Session {session_id} does not exist")
    events = [(event, event.get("task_id"), event.get("task_name")) for event in session.get("events", ())]
    fields = {"_id": 0, "task_id": 1, "task_name": 1, "events": 1}
    async for task in storage.tasks.find({"session_id": session_id}, fields):
        events += [(event, task["task_id"], task["task_name"]) for event in task.get("events", ())]
    events.sort(key=lambda item: item[0]["at"])
    shown = events[offset : offset + limit]
    return {
        "session_id": session_id,
        "events": [_presented(event, session_id, task_id, name) for event, task_id, name in shown],
        # One that was written together with others, in vain as it seemed, was written again by itself.
        "heartbeats": [iso(beat) for beat in dict.fromkeys(session.get("beats", ()))],
        "total": len(events),
        "limit": limit,
        "offset": offset,
    }


def _presented(event: Document, session_id: str, task_id: str | None, task_name: str | None) -> Json:
    before, after, actor, reason = itemgetter("from", "to", "actor", "reason")(event)
    since = event.get("silent_since")
    return {
        "at": iso(event["at"]),
        "kind": "session" if task_id is None else "task",
        "session_id": session_id,
        "task_id": task_id,
        "task_name": task_name,
        "from": before,
        "to": after,
        "actor": actor,
        "reason": reason,
        "silent_ms": None if since is None else sessions.milliseconds(event["at"] - since),
    }
