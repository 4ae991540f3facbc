"""API keys: who is calling (PRD 1.3)."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from state_tracking_api.errors import Unauthorized
from state_tracking_api.settings import ApiKey, is_uuid4

CHALLENGE = {"WWW-Authenticate": 'ApiKey realm="state-tracking-api", header="X-API-Key"'}


class Keyring:
    """The configured keys."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(key.name, key.secret.get_secret_value().encode()) for key in keys]

    def identify(self, presented: str | None) -> str:
        """Name of the key that was presented, in any letter case.

        Raises Unauthorized with one of the PRD's three messages. Every configured key is compared, each in
        constant time, so that the time taken tells nothing about them.
        """
        if not presented:
            raise Unauthorized("API key required", headers=CHALLENGE)
        if not is_uuid4(presented):
            raise Unauthorized("Malformed API key", headers=CHALLENGE)
        candidate = presented.lower().encode()
        found: str | None = None
        for name, secret in self._keys:
            if hmac.compare_digest(secret, candidate):
                found = name
        if found is None:
            raise Unauthorized("Invalid API key", headers=CHALLENGE)
        return found


def masked(presented: str | None) -> str | None:
    """A key as it may stand in a log: enough to find it again, not enough to use it."""
    if not presented:
        return None
    return f"{presented[:4]}…" if len(presented) > 8 else "…"
