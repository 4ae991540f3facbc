"""Routes of machines (PRD 2.3)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from state_tracking_api import machines
from state_tracking_api.http.call import Answer, Call
from state_tracking_api.http.models import (
    Machine,
    MachineId,
    MachineList,
    Metadata,
    Name,
    Offset,
    WholeNumber,
    errors,
)
from state_tracking_api.http.route import QueryModel, RequestModel, Router
from state_tracking_api.lifecycle import MachineStatus
from state_tracking_api.metadata import Json

router = Router(tags=["machines"])

DEFAULT_LIMIT = 50
MAX_LIMIT = 100
MAX_SLOTS = 1024

Slots = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31 - 1)]],
    Field(max_length=MAX_SLOTS, json_schema_extra={"uniqueItems": True}),
]


def _unique(slots: list[int] | None) -> list[int] | None:
    if slots is not None and len(set(slots)) < len(slots):
        raise ValueError("must not name a slot twice")
    return slots


class RegisterMachine(RequestModel):
    """Registers a machine, or registers it again."""

    hostname: Name
    docker_slots: Slots
    machine_id: Name | None = Field(default=None, description="Made up by the server where it is left out")
    metadata: Metadata | None = None

    _slots_are_unique = field_validator("docker_slots")(_unique)


class PatchMachine(RequestModel):
    """Changes a machine; at least one field."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    status: Annotated[MachineStatus | None, Field(strict=False)] = None
    docker_slots: Slots | None = None
    metadata: Metadata | None = Field(default=None, description="Merged as RFC 7396 says")

    _slots_are_unique = field_validator("docker_slots")(_unique)

    @model_validator(mode="after")
    def _says_something(self) -> PatchMachine:
        if self.status is None and self.docker_slots is None and self.metadata is None:
            raise ValueError("must have at least one of status, docker_slots, metadata")
        return self


class MachineHeartbeat(RequestModel):
    """What a machine's heartbeat may bring along."""

    metadata: Metadata | None = Field(default=None, description="Merged as RFC 7396 says")


class ListMachines(QueryModel):
    """Filters of the list of machines."""

    status: MachineStatus | None = None
    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    offset: Offset = 0


@router.post(
    "/api/machines",
    status_code=201,
    response_model=Machine,
    responses={200: {"model": Machine, "description": "It was registered before"}, **errors(409)},
    summary="Register a machine",
)
async def register(call: Call, body: RegisterMachine) -> Answer:
    """The same id and hostname again updates it; the id under another hostname is a conflict."""
    machine, created = await machines.register(
        call.storage,
        call.stamp,
        hostname=body.hostname,
        docker_slots=body.docker_slots,
        machine_id=body.machine_id,
        metadata=body.metadata,
    )
    return Answer(machines.presented(machine), 201 if created else 200)


@router.get("/api/machines", response_model=MachineList, summary="List machines, newest first")
async def listed(call: Call, query: ListMachines) -> Json:
    """By status, or all of them."""
    filters: dict[str, Any] = query.model_dump(include={"status"}, exclude_none=True, mode="json")
    found, total = await machines.page(call.storage, filters, query.limit, query.offset)
    shown = [machines.presented(machine) for machine in found]
    return {"machines": shown, "total": total, "limit": query.limit, "offset": query.offset}


# Clients choose machine ids, so an id may have a slash in it: it takes all of the path that is left.
@router.post(
    "/api/machines/{machine_id:path}/heartbeat",
    response_model=Machine,
    responses=errors(404),
    summary="Say that a machine lives",
)
async def heartbeat(call: Call, machine_id: MachineId, body: MachineHeartbeat | None = None) -> Json:
    """Offline becomes online, and `active_sessions` is brought in line with the sessions."""
    patch = body.metadata if body else None
    return machines.presented(await machines.heartbeat(call.storage, machine_id, call.stamp, patch=patch))


@router.get(
    "/api/machines/{machine_id:path}", response_model=Machine, responses=errors(404), summary="Read a machine"
)
async def read(call: Call, machine_id: MachineId) -> Json:
    """The whole machine."""
    return machines.presented(await machines.get(call.storage, machine_id))


@router.patch(
    "/api/machines/{machine_id:path}",
    response_model=Machine,
    responses=errors(404, 409),
    summary="Change a machine",
)
async def patch(call: Call, machine_id: MachineId, body: PatchMachine) -> Json:
    """409 where a live session holds a slot that would be taken away."""
    changed = await machines.patch(
        call.storage,
        machine_id,
        call.stamp,
        status=body.status,
        docker_slots=body.docker_slots,
        patch=body.metadata,
    )
    return machines.presented(changed)


@router.delete(
    "/api/machines/{machine_id:path}",
    status_code=204,
    responses=errors(404, 409),
    summary="Delete a machine",
)
async def delete(call: Call, machine_id: MachineId) -> None:
    """409 while it has live sessions."""
    await machines.delete(call.storage, machine_id, call.stamp)
