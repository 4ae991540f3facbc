"""What is left of a plan, told by metadata."""

from datetime import UTC, datetime
from typing import Any

from claude_projects.models import Session, Task
from claude_projects.outline import Outline, assign, done_by_plan, outline_of, plan_is_for
from claude_projects.plan import Definition, Program

NOW = datetime.now(UTC)


def program(*names: str) -> Program:
    return Program(
        project_id="p", name="plan", tasks=tuple(Definition(name=name, command="x") for name in names)
    )


def task(task_id: str, status: str, metadata: dict[str, Any]) -> Task:
    return Task(
        task_id=task_id,
        session_id="s1",
        project_id="p",
        task_name="n",
        status=status,
        metadata=metadata,
        created_at=NOW,
        updated_at=NOW,
    )


def tasks_of(outline: Outline, *statuses: str) -> list[Task]:
    return [
        task(f"t{item.index}", status, outline.task_metadata(item))
        for item, status in zip(outline.items, statuses, strict=False)
    ]


def session(metadata: dict[str, Any], recovered_from: str | None = None) -> Session:
    return Session(
        session_id="s1",
        project_id="p",
        machine_id="m",
        status="active",
        last_heartbeat=NOW,
        started_at=NOW,
        metadata=metadata,
        created_at=NOW,
        updated_at=NOW,
        recovered_from=recovered_from,
    )


def test_open_tasks_stand_for_what_is_not_done_in_the_order_of_the_plan() -> None:
    outline = Outline.of_program(program("a", "b", "c"))
    digests = [item.digest for item in outline.items]
    tasks = list(reversed(tasks_of(outline, "completed", "pending", "blocked")))
    assigned = assign(outline, {digests[0]}, tasks)
    assert [item.name for item in outline.left()] == ["b", "c"]
    assert outline.open_tasks == {digests[1]: "t1", digests[2]: "t2"}
    assert (assigned.done, assigned.useless) == ([], [])


def test_open_tasks_that_nobody_needs_are_named() -> None:
    before, now = Outline.of_program(program("a", "old")), Outline.of_program(program("a", "new"))
    tasks = [
        *tasks_of(before, "pending", "failed"),
        task("foreign", "pending", {}),
        *tasks_of(before, "pending"),
    ]
    tasks[-1] = task("double", "pending", tasks[-1].metadata)
    assigned = assign(now, set(), tasks)
    assert [one.task_id for one in assigned.useless] == ["t1", "foreign", "double"]
    assert now.open_tasks == {now.items[0].digest: "t0"}


def test_open_tasks_whose_work_is_done_elsewhere_are_named() -> None:
    outline = Outline.of_program(program("a", "b"))
    assigned = assign(outline, {outline.items[0].digest}, tasks_of(outline, "in_progress", "pending"))
    assert [one.task_id for one in assigned.done] == ["t0"]


def test_a_plan_is_read_back_from_the_metadata_of_its_session() -> None:
    outline = Outline.of_program(program("a", "b"))
    outline.done = {outline.items[0].digest}
    kept = session({"plan": outline.to_metadata("s1")})
    again = outline_of(kept, [])
    assert again is not None
    assert again.items == outline.items
    assert done_by_plan(kept) == outline.done


def test_a_plan_too_long_for_its_session_is_read_back_from_its_tasks() -> None:
    long = tuple(Definition(name=f"task {n}", prompt="x" * 2000, command="x") for n in range(100))
    outline = Outline.of_program(Program(project_id="p", name="plan", tasks=long))
    kept = session({"plan": outline.to_metadata(None)})
    assert kept.metadata["plan"]["tasks"] is None
    again = outline_of(kept, tasks_of(outline, *["pending"] * 100))
    assert again is not None
    assert again.items == outline.items


def test_an_inherited_plan_is_not_taken_for_the_sessions_own() -> None:
    outline = Outline.of_program(program("a"))
    assert plan_is_for(session({"plan": outline.to_metadata(None)}))
    assert plan_is_for(session({"plan": outline.to_metadata("s1")}, recovered_from="s0"))
    assert not plan_is_for(session({"plan": outline.to_metadata(None)}, recovered_from="s0"))
    assert not plan_is_for(session({"plan": outline.to_metadata("s0")}, recovered_from="s0"))


def test_nonsense_in_the_metadata_is_no_plan() -> None:
    for nonsense in ({}, {"plan": 1}, {"plan": {"name": "x"}}, {"plan": {"name": "x", "digests": [1]}}):
        assert outline_of(session(nonsense), []) is None
