"""Sessions, machines and tasks to look at, made through the API; only their past is written to the database.

The API takes its own clock for everything, so what happened hours ago has to be moved there afterwards.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from api_harness.api import Api, Json, expect
from api_harness.servers import Documents

PLANS = {
    "checkout-redesign": [
        "Read the present checkout and its tests",
        "Write the address step",
        "Write the payment step",
        "Move the old orders over",
        "Translate the new texts",
        "Run the end-to-end tests",
        "Write the release notes",
    ],
    "billing-migration": [
        "Take stock of the invoices",
        "Write the import of ledger entries",
        "Reconcile March against the bank",
        "Switch the nightly job over",
    ],
    "search-relevance": [
        "Collect the judged queries",
        "Index titles and bodies apart",
        "Tune the weights",
        "Compare with the baseline",
        "Write up the findings",
    ],
    "docs-refresh": ["List pages without an owner", "Rewrite the quick start", "Check every link"],
    "flaky-tests": ["Find the ten worst", "Fix or quarantine them", "Watch a day of builds"],
}
REASONS = [
    "claude exited with code 1: usage limit reached",
    "Tests failed: 3 of 412",
    "git push was refused: the branch is protected",
    "Connection to the package registry timed out",
]
MACHINES = {"builder-01": 4, "builder-02": 4, "builder-03": 6, "gpu-01": 2, "laptop-mara": 0}


class Scene:
    """Fills one server; the same seed gives the same picture."""

    def __init__(self, api: Api, database: Documents, seed: int = 7) -> None:
        self.api = api
        self.database = database
        self.dice = random.Random(seed)  # noqa: S311 - a picture, no secret

    def machines(self) -> None:
        """Five registered machines, one of them in maintenance."""
        for name, slots in MACHINES.items():
            self.api.machine(
                machine_id=name, hostname=f"{name}.local", docker_slots=list(range(1, slots + 1))
            )
        expect(self.api.patch("/api/machines/gpu-01", json={"status": "maintenance"}), 200)

    def orchestration(
        self,
        project: str,
        machine: str,
        *,
        done: int,
        running: bool = True,
        failed: int = 0,
        slot: int | None = None,
        plan: list[str] | None = None,
    ) -> Json:
        """A session whose first `done` tasks are completed, the next `failed` failed, the next under way."""
        session = self.api.session(
            project_id=project,
            machine_id=machine,
            metadata={
                "plan": f"{project}.toml",
                "agent": "claude -p",
                "branch": f"work/{project}",
                "pid": 41_733,
            },
            **({} if slot is None else {"docker_slot": slot}),
        )
        names = plan or PLANS[project]
        tasks = [self.api.task(session, task_name=name) for name in names]
        for task in tasks[: done + failed]:
            self.api.set_task(task, "in_progress")
        for task in tasks[:done]:
            self.api.set_task(task, "completed")
        for task in tasks[done : done + failed]:
            expect(
                self.api.patch(
                    f"/api/tasks/{task['task_id']}",
                    json={"status": "failed", "error_message": self.dice.choice(REASONS)},
                ),
                200,
            )
        if running and done + failed < len(tasks):
            self.api.set_task(tasks[done + failed], "in_progress")
        return session

    def age(self, session: Json, *, minutes: float, silent_seconds: float, beat_seconds: float = 60) -> None:
        """Let the session have begun `minutes` ago, its tasks one after the other, its last beat lately."""
        found = self._session(session)
        created = found["created_at"]
        now = max([created, *self._stamps(found)])
        start = now - timedelta(minutes=minutes)
        last = now - timedelta(seconds=silent_seconds)
        ended = found["completed_at"] is not None
        beats = []
        beat = last
        while beat > start and len(beats) < 60:
            beats.append(beat)
            beat -= timedelta(seconds=beat_seconds * self.dice.uniform(0.97, 1.03))
        events = found["events"]
        for index, event in enumerate(events):
            event["at"] = start if index == 0 else now - timedelta(seconds=silent_seconds * 0.1)
            if event["to"] == "stalled":
                # What the scheduler would have found, which waits for nobody to move the clock.
                delay = timedelta(seconds=180 + self.dice.uniform(0.1, 1.4))
                event |= {"at": last + delay, "silent_since": last, "actor": "job:detect-failures"}
                event["reason"] = "no heartbeat"
        change: dict[str, Any] = {
            "created_at": start,
            "started_at": start,
            "last_heartbeat": last,
            "beats": sorted(beats),
            "events": events,
        }
        if ended:
            change["completed_at"] = last
            events[-1]["at"] = last
        self.database["sessions"].update_one({"session_id": session["session_id"]}, {"$set": change})
        self._spread_tasks(session["session_id"], start, last)

    def _move_last_event(self, session: Json, after: timedelta) -> None:
        """Let the last thing that happened to the session have happened this long after the one before it."""
        events = self._session(session)["events"]
        events[-1]["at"] = events[-2]["at"] + after
        change: dict[str, Any] = {"events": events}
        if events[-1]["to"] == "completed":
            change["completed_at"] = events[-1]["at"]
        self.database["sessions"].update_one({"session_id": session["session_id"]}, {"$set": change})

    def _session(self, session: Json) -> Json:
        found = self.database["sessions"].find_one({"session_id": session["session_id"]})
        assert found is not None
        return found

    def _stamps(self, found: Json) -> list[Any]:
        return [found["last_heartbeat"], found["updated_at"]]

    def _spread_tasks(self, session_id: str, start: Any, end: Any) -> None:
        tasks = list(self.database["tasks"].find({"session_id": session_id}).sort("created_at", 1))
        begun = [task for task in tasks if task["started_at"] is not None]
        weights = [self.dice.uniform(0.5, 2.0) for _ in begun]
        at = start + timedelta(seconds=2)
        length = (end - at) / (sum(weights) or 1)
        for index, task in enumerate(tasks):
            made = start + timedelta(milliseconds=40 * index + 10)
            change: dict[str, Any] = {"created_at": made, "events": [{**task["events"][0], "at": made}]}
            if task in begun:
                finish = at + length * weights[begun.index(task)]
                change["started_at"] = at
                if task["completed_at"] is not None:
                    change["completed_at"] = finish
                moments = [change["created_at"], at, finish]
                change["events"] = [
                    {**event, "at": moment} for event, moment in zip(task["events"], moments, strict=False)
                ]
                at = finish
            self.database["tasks"].update_one({"_id": task["_id"]}, {"$set": change})

    def five(self) -> list[Json]:
        """One session of each kind: stalled, failed, two at work, one completed."""
        self.machines()
        active = self.orchestration("checkout-redesign", "builder-01", done=3, slot=1)
        self.age(active, minutes=52, silent_seconds=14)
        second = self.orchestration("search-relevance", "builder-02", done=1, slot=2)
        self.age(second, minutes=17, silent_seconds=118)
        stalled = self.orchestration("billing-migration", "builder-01", done=2, slot=2)
        self.api.act(stalled, "mark-stalled")
        self.age(stalled, minutes=38, silent_seconds=610)
        failed = self.orchestration("flaky-tests", "builder-03", done=1, failed=1, running=False, slot=1)
        self.api.act(failed, "mark-failed", {"error_message": REASONS[0]})
        self.age(failed, minutes=26, silent_seconds=900)
        done = self.orchestration("docs-refresh", "laptop-mara", done=3)
        self.api.set_session(done, "completed")
        self.age(done, minutes=75, silent_seconds=3_000)
        return [active, second, stalled, failed, done]

    def recovered(self, session: Json, machine: str = "builder-03") -> Json:
        """Recover the session on another machine and let its successor do a task and be at the next one."""
        successor = expect(self.api.recover(session, new_machine_id=machine), 201)
        tasks = list(reversed(self.api.tasks_of(successor)))
        self.api.set_task(tasks[0], "in_progress")
        self.api.act(successor, "heartbeat")
        return successor

    def three_hundred(self) -> None:
        """Three hundred sessions over many projects, machines and states."""
        projects = list(PLANS)
        kinds = ["completed"] * 24 + ["active"] * 10 + ["failed"] * 3 + ["recovered"] * 4
        kinds += ["stalled", "paused", "paused", "came back"]
        for number in range(270):
            kind = self.dice.choice(kinds)
            project = self.dice.choice(projects)
            plan = PLANS[project]
            done = len(plan) if kind == "completed" else self.dice.randrange(len(plan))
            session = self.orchestration(
                f"{project}-{number:03}",
                f"worker-{number % 60:02}",
                done=done,
                plan=plan[: self.dice.randint(3, 7)],
            )
            if kind == "failed":
                self.api.act(session, "mark-failed", {"error_message": self.dice.choice(REASONS)})
            elif kind in {"recovered", "came back"}:
                self.api.set_session(session, "stalled")
            elif kind != "active":
                self.api.set_session(session, kind)
            silent = {"active": self.dice.uniform(1, 95), "stalled": self.dice.uniform(200, 4_000)}.get(
                kind, self.dice.uniform(60, 80_000)
            )
            self.age(session, minutes=silent / 60 + self.dice.uniform(5, 90), silent_seconds=silent)
            if kind == "recovered":
                successor = expect(
                    self.api.recover(session, new_machine_id=f"worker-{(number + 7) % 60:02}"), 201
                )
                self._move_last_event(session, timedelta(seconds=self.dice.uniform(20, 400)))
                self.api.set_session(successor, "completed")
                self.age(successor, minutes=silent / 60, silent_seconds=self.dice.uniform(60, silent))
            elif kind == "came back":
                self.api.act(session, "heartbeat")
                self._move_last_event(session, timedelta(seconds=self.dice.uniform(5, 90)))
