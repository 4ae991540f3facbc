"""A key is replaced while its clients work, and not one of their requests fails."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from itertools import count

import httpx
import pytest

from api_harness.api import Api, expect
from api_harness.server import Server, wait_until
from api_harness.servers import Servers

CALLERS = 4


class Client:
    """A process that heartbeats without a pause, with the key that it has been given.

    Its heartbeats go to the instances by turns. Where one of them is gone, the next one gets it, as by a load
    balancer: a heartbeat may be sent twice.
    """

    def __init__(
        self, instances: list[Server], session_id: str, key: str, told: Callable[[int], None]
    ) -> None:
        self.key = key
        self.beaten = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(instances, session_id, told))
        self._thread.start()

    def _run(self, instances: list[Server], session_id: str, told: Callable[[int], None]) -> None:
        with httpx.Client(timeout=30, trust_env=False) as http:
            for number in count():
                if self._over.is_set():
                    return
                base_url = instances[number % len(instances)].base_url
                url = f"{base_url}/api/sessions/{session_id}/heartbeat"
                try:
                    told(http.post(url, headers={"X-API-Key": self.key}).status_code)
                except httpx.TransportError:
                    continue
                self.beaten += 1

    def end(self) -> None:
        """Let the last heartbeat finish."""
        self._over.set()
        self._thread.join(30)


@pytest.mark.slow
def test_a_key_is_rotated_on_two_instances_under_load_and_nobody_is_refused(own: Servers) -> None:
    database = own.database()
    old, new = str(uuid.uuid4()), str(uuid.uuid4())
    instances: list[Server] = []

    def roll(keys: str) -> None:
        """Replace the instances one after the other, as a rolling deployment does."""
        for _ in range(2):
            fresh = own.start(database, API_KEYS=keys)
            instances.append(fresh)
            if len(instances) > 2:
                instances.pop(0).stop()

    roll(f"old={old}")
    with Api(instances[0].base_url, old) as api:
        sessions = [api.session()["session_id"] for _ in range(CALLERS)]
    statuses: list[int] = []
    clients = [Client(instances, session_id, old, statuses.append) for session_id in sessions]

    def all_beat(times: int = 3) -> None:
        wanted = [(client, client.beaten + times) for client in clients]
        wait_until(lambda: all(client.beaten >= least for client, least in wanted), "every client beats on")

    try:
        all_beat()
        roll(f"old={old},new={new}")
        all_beat()
        for client in clients:
            client.key = new
        all_beat()
        roll(f"new={new}")
        all_beat()
    finally:
        for client in clients:
            client.end()
    assert set(statuses) == {200}
    with Api(instances[0].base_url, old) as outside:
        expect(outside.get("/api/sessions"), 401)
