"""How a key is compared with those that are configured."""

from __future__ import annotations

import hmac

import pytest
from pydantic import SecretStr

from state_tracking_api.auth import Keyring
from state_tracking_api.errors import Unauthorized
from state_tracking_api.settings import ApiKey

SECRETS = {
    "first": "1f0e9d8c-7b6a-4594-8372-615049382716",
    "second": "9c5a7b7e-3d5f-4e6a-8b1c-2f3d4e5f6a7b",
    "third": "3b7e0c5a-64f1-4f0e-9a3c-8f3a5a1f9d21",
}
STRANGER = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture
def keyring() -> Keyring:
    return Keyring([ApiKey(name=name, secret=SecretStr(secret)) for name, secret in SECRETS.items()])


@pytest.mark.parametrize("presented", [*SECRETS.values(), STRANGER], ids=[*SECRETS, "stranger"])
def test_every_configured_key_is_compared_in_constant_time_whichever_it_is(
    keyring: Keyring, presented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    in_constant_time = hmac.compare_digest

    def noted(configured: bytes, candidate: bytes) -> bool:
        compared.append((configured, candidate))
        return in_constant_time(configured, candidate)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    if presented == STRANGER:
        with pytest.raises(Unauthorized, match="Invalid API key"):
            keyring.identify(presented)
    else:
        assert SECRETS[keyring.identify(presented)] == presented
    assert compared == [(secret.encode(), presented.encode()) for secret in SECRETS.values()]


def test_nothing_but_that_comparison_lets_a_key_in(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    def different(_configured: bytes, _candidate: bytes) -> bool:
        return False

    monkeypatch.setattr(hmac, "compare_digest", different)
    for secret in SECRETS.values():
        with pytest.raises(Unauthorized, match="Invalid API key"):
            keyring.identify(secret)
