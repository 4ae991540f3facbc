"""How routes are made, and the document of them: what is wrong with one is said when it is made."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from state_tracking_api.http import operations
from state_tracking_api.http.call import Call
from state_tracking_api.http.route import QueryModel, RequestModel, Router


class Body(RequestModel):
    pass


class Other(RequestModel):
    pass


class Filters(QueryModel):
    pass


async def misspelt(call: Call, session: str) -> None: ...
async def forgotten(call: Call) -> None: ...
async def two_bodies(call: Call, session_id: str, body: Body, other: Other) -> None: ...
async def complete(call: Call, session_id: str, query: Filters, body: Body) -> None: ...


@pytest.mark.parametrize("endpoint", [misspelt, forgotten, two_bodies])
def test_an_endpoint_that_does_not_fit_its_path_is_no_route(endpoint: Any) -> None:
    with pytest.raises(TypeError, match=r"^/x/\{session_id\}: "):
        Router().post("/x/{session_id}")(endpoint)


def test_a_router_gives_its_routes_what_all_of_them_have() -> None:
    router = Router(tags=["some"], include_in_schema=False)
    assert router.post("/x/{session_id}", tags=["more"], status_code=201)(complete) is complete
    (route,) = router.routes
    assert (route.methods, route.tags, route.answers_with) == ({"POST"}, ("some", "more"), 201)
    assert not route.include_in_schema


async def test_all_who_ask_for_the_document_at_once_share_the_making_of_it() -> None:
    made: list[int] = []

    def document() -> dict[str, Any]:
        made.append(1)
        time.sleep(0.05)  # the others are there by now; what is shown does not depend on it
        return {"openapi": "3.1.0"}

    openapi = next(r for r in operations.documentation(document) if r.path == "/api/openapi.json")
    answers = await asyncio.gather(*(openapi.endpoint(None) for _ in range(8)))
    assert {answer.body for answer in answers} == {b'{"openapi": "3.1.0"}'}
    assert len(made) == 1
