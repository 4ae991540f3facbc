"""The two clients offer the same calls."""

import inspect

from claude_projects import AsyncClient, Client, calls
from claude_projects.exchange import Call


def test_every_call_is_a_method_of_both_clients() -> None:
    described = {
        name
        for name, one in inspect.getmembers(calls, inspect.isfunction)
        if not name.startswith("_")
        and inspect.signature(one).return_annotation is not inspect.Signature.empty
        and getattr(inspect.signature(one).return_annotation, "__origin__", None) is Call
    }
    assert len(described) > 25
    for kind in (Client, AsyncClient):
        assert {name for name in vars(kind) if name in described} == described
        assert all(getattr(kind, name).__doc__ for name in described)
