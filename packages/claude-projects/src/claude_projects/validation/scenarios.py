"""The seven scenarios of PRD 4.4, the small load, and the measurement of latencies.

Each uses nothing but the API, and nothing in the API exists for it.
"""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from claude_projects.validation.probe import Probe, Reply
from claude_projects.validation.report import Latency
from claude_projects.validation.run import (
    CREATION,
    HEALTH_QUERY,
    HEARTBEAT,
    LIMITS,
    LIVENESS,
    LOAD,
    Json,
    Run,
    moment,
)

_RACERS = 5
_STEP = 0.5
# What the load may take of the key's requests; the rest is for whoever else uses the key.
_SHARE_OF_LIMIT = 0.7
# A Date header is cut to the second, and servers renew it now and then only.
_CLOCK_CUT = 5.0


def lifecycle(run: Run) -> None:
    """Start, heartbeats, a task, the end (PRD 4.4.a, 4.4.b)."""
    session = run.create("lifecycle", docker_slot=3, metadata={"purpose": "validation"})
    session_id = session["session_id"]
    run.check(run.read(session_id) == session, "the session is read as it was created")
    _beat_for_a_while(run, session)
    task = run.task(session, "Work", "in_progress")
    task_id = task["task_id"]
    current = run.read(session_id)["current_task_id"]
    run.check(current == task_id, "the session's current task is the claimed one", current)
    again = run.probe.send("PATCH", f"/api/tasks/{task_id}", {"status": "in_progress"})
    run.expect(again, 400, "a second claim of the same task")
    done = run.probe.send("PATCH", f"/api/tasks/{task_id}", {"status": "completed"})
    run.expect(done, 200, "the task is completed")
    run.check(run.read(session_id)["current_task_id"] is None, "the session has no current task then")
    ended = run.expect(run.patch(session_id, status="completed"), 200, "the session is completed").body
    run.check(ended["completed_at"] is not None, "completed_at is set")
    run.expect(run.beat(session_id), 409, "a heartbeat after the end")
    run.check(run.read(session_id)["status"] == "completed", "nothing revives an ended session")


def _beat_for_a_while(run: Run, session: Json) -> None:
    times, last = run.times, moment(session["last_heartbeat"])
    reply = None
    for number in range(times.heartbeats):
        if number:
            run.note(f"heartbeat {number} of {times.heartbeats}")
            run.probe.pause(times.interval)
        reply = run.expect(run.beat(session["session_id"]), 200, f"heartbeat {number + 1}")
        now = moment(reply.body["last_heartbeat"])
        run.check(now > last, "last_heartbeat has moved on", f"{last} and then {now}")
        last = now
    answer = _read_at_once(run, session["session_id"])
    age = (answer.date - moment(answer.body["last_heartbeat"])).total_seconds()
    run.check(
        -_CLOCK_CUT <= age <= 60, "last_heartbeat is within 60 seconds of the server's clock", f"{age} s"
    )
    run.check(answer.body["status"] == "active", "the session is active", answer.body["status"])


def _read_at_once(run: Run, session_id: str) -> Reply:
    """Read a session right after a heartbeat; if the rate limit held us up between, beat and read again."""
    while True:
        waited = run.probe.waited
        answer = run.probe.send("GET", f"/api/sessions/{session_id}")
        if run.probe.waited == waited:
            return answer
        run.expect(run.beat(session_id), 200, "another heartbeat, after waiting for the rate limit")


def failure_detection(run: Run) -> None:
    """Two heartbeats, then silence: a background job marks the session stalled (PRD 4.4.c)."""
    times = run.times
    own: dict[str, Any] = (
        {} if times.stall_threshold is None else {"stall_threshold_ms": round(times.stall_threshold * 1000)}
    )
    session_id = run.create("silent", **own)["session_id"]
    for number in (1, 2):
        run.expect(run.beat(session_id), 200, f"heartbeat {number}")
    began = time.monotonic()
    poll = min(5.0, max(1.0, times.stall_timeout / 60))
    status = "active"
    while status == "active" and time.monotonic() - began < times.stall_timeout:
        run.note(f"silent for {time.monotonic() - began:.0f} s")
        run.probe.pause(poll)
        status = run.read(session_id)["status"]
    limit = f"{times.stall_timeout:g}"
    run.check(status == "stalled", f"the session is marked stalled within {limit} s of silence", status)
    events: list[Json] = run.probe.send("GET", f"/api/sessions/{session_id}/events").body["events"]
    marked: list[Json] = [one for one in events if one["to"] == "stalled"]
    run.check(bool(marked), "its timeline tells that it was marked", events)
    actor, detected = marked[-1]["actor"], marked[-1]["silent_ms"]
    run.check(actor.startswith("job:"), "a background job has marked it", actor)
    run.check(detected < 300_000, "it was found in less than five minutes", f"{detected} ms")
    listed = run.probe.send("GET", "/api/sessions/stalled").body["stalled_sessions"]
    run.check(any(one["session_id"] == session_id for one in listed), "it is in the list of stalled sessions")
    run.check(run.read(session_id)["completed_at"] is None, "a stalled session has not ended")
    revived = run.expect(run.beat(session_id), 200, "a late heartbeat").body
    run.check(revived["status"] == "active", "a late heartbeat makes it active again", revived["status"])


def recovery(run: Run) -> None:
    """A failed session goes on in exactly one new one (PRD 4.4.d)."""
    original = run.create("lost", metadata={"branch": "main"})
    original_id = original["session_id"]
    states = {"done": "completed", "at work": "in_progress", "broken": "failed", "waiting": None}
    tasks = {name: run.task(original, name, status) for name, status in states.items()}
    failed = run.post(f"/api/sessions/{original_id}/mark-failed", {"error_message": "Validation"})
    run.expect(failed, 200, "mark-failed")
    run.check(failed.body["status"] == "failed", "the session has failed", failed.body["status"])
    state = run.probe.send("GET", f"/api/sessions/{original_id}/recovery-state")
    run.expect(state, 200, "recovery-state")
    run.expect(run.post(f"/api/sessions/{original_id}/prepare-recovery"), 200, "prepare-recovery")
    successor = _recovered_once(run, original_id)
    ended = run.read(original_id)
    run.check(ended["status"] == "completed", "the original is completed", ended["status"])
    run.check(ended["recovered_by"] == successor["session_id"], "it names its successor")
    run.check(successor["metadata"] == original["metadata"], "the metadata went along", successor["metadata"])
    carried = run.probe.send("GET", "/api/tasks", query={"session_id": successor["session_id"]}).body["tasks"]
    expected = {tasks[name]["task_id"] for name in ("at work", "broken", "waiting")}
    found = {one["metadata"].get("recovered_from_task") for one in carried}
    run.check(found == expected, "what was not done is pending again, what was done is not", found)
    run.check(all(one["status"] == "pending" for one in carried), "all of these tasks are pending")
    late = run.expect(run.beat(original_id), 409, "a heartbeat of the old process")
    run.check(late.field("recovered_by") == successor["session_id"], "it is told who has its work")


def _recovered_once(run: Run, original_id: str) -> Json:
    path, body = f"/api/sessions/{original_id}/recover", {"new_machine_id": run.machine("rescuer")}
    first = run.expect(run.post(path, body), 201, "recover")
    successor_id = first.body["session_id"]
    run.check(successor_id != original_id, "the new session has an id of its own")
    again = run.post(path, body)
    run.check(
        again.status == 200 and again.field("session_id") == successor_id,
        "recovering again gives the same session",
        f"{again.status} with session {again.field('session_id')}",
    )
    with ThreadPoolExecutor(_RACERS) as pool:
        racers = [pool.submit(run.post, path, body) for _ in range(_RACERS)]
        found = {(one.result().status, one.result().field("session_id")) for one in racers}
    run.check(found == {(200, successor_id)}, f"{_RACERS} recoveries at once give the same session", found)
    successors = [one for one in run.sessions() if one["recovered_from"] == original_id]
    run.check(len(successors) == 1, "there is exactly one successor", len(successors))
    return successors[0]


def machines(run: Run) -> None:
    """A machine's sessions are known exactly, and a docker slot has one session (PRD 2.3)."""
    machine_id = run.machine("host")
    body = {"machine_id": machine_id, "hostname": f"{machine_id}.invalid", "docker_slots": [0, 1]}
    path = f"/api/machines/{machine_id}"
    run.expect(run.post("/api/machines", body), 201, "a machine is registered")
    run.expect(run.post("/api/machines", body), 200, "registering it again changes nothing")
    session_id = run.create("host", docker_slot=0)["session_id"]

    def active() -> list[str]:
        reply = run.probe.send("GET", path)
        return [
            str(one)
            for one in run.expect(reply, 200, "GET /api/machines/{machine_id}").body["active_sessions"]
        ]

    present = active()
    run.check(present == [session_id], "active_sessions has the session", present)
    other = {"project_id": f"{run.project_id}-second", "machine_id": machine_id}
    taken = run.post("/api/sessions", {**other, "docker_slot": 0})
    run.expect(taken, 409, "a second session for the same docker slot")
    run.check(taken.field("existing_session_id") == session_id, "the conflict names the session")
    unknown = run.post("/api/sessions", {**other, "docker_slot": 7})
    run.expect(unknown, 400, "a docker slot that the machine does not have")
    run.expect(run.post(f"{path}/heartbeat"), 200, "a heartbeat of the machine")
    run.expect(run.probe.send("PATCH", path, {"status": "maintenance"}), 200, "maintenance begins")
    run.expect(run.post("/api/sessions", other), 409, "a session on a machine in maintenance")
    run.expect(run.probe.send("PATCH", path, {"status": "online"}), 200, "maintenance ends")
    run.expect(run.probe.send("DELETE", path), 409, "deleting a machine that has a session")
    run.expect(run.patch(session_id, status="completed"), 200, "the session is completed")
    left = active()
    run.check(left == [], "active_sessions is empty then", left)


def cleanup(run: Run) -> None:
    """Old sessions are deleted, archived and living ones are kept (PRD 3.4).

    The API has no way to make a session old, and a clean-up of everything that has ended would delete other
    people's sessions. So by default the clean-up is called as the daily job calls it, and nothing older than
    the retention may be left; ``delete_ended`` also calls it with ``older_than_days=0``.
    """
    living, ended, kept = (run.create(name)["session_id"] for name in ("living", "ended", "kept"))
    for session_id in (ended, kept):
        run.expect(run.patch(session_id, status="completed"), 200, "the session is completed")
    archived = run.expect(run.post(f"/api/sessions/{kept}/archive"), 200, "archive").body
    run.check(archived["metadata"].get("archived") is True, "the session is archived")
    run.expect(run.post(f"/api/sessions/{living}/archive"), 400, "archiving a living session")
    done = run.expect(run.post("/api/sessions/cleanup"), 200, "cleanup")
    counts = [done.field("deleted_sessions"), done.field("deleted_tasks")]
    run.check(all(isinstance(one, int) for one in counts), "cleanup tells what it has deleted", counts)
    present = {one["session_id"] for one in run.sessions()}
    run.check({living, ended, kept} <= present, "nothing that is young is deleted")
    _nothing_is_too_old(run)
    if run.times.delete_ended:
        now = run.expect(
            run.post("/api/sessions/cleanup?older_than_days=0"), 200, "cleanup of all that ended"
        )
        run.check(now.body["deleted_sessions"] >= 1, "it tells that it has deleted sessions", now.body)
        present = {one["session_id"] for one in run.sessions()}
        run.check(ended not in present, "the ended session is deleted")
        run.check(living in present and kept in present, "the living and the archived ones are kept")
    else:
        run.expect(run.probe.send("DELETE", f"/api/sessions/{ended}"), 204, "the ended session is deleted")
    run.expect(run.probe.send("GET", f"/api/sessions/{ended}"), 404, "reading it afterwards")


def _nothing_is_too_old(run: Run) -> None:
    for status in ("completed", "failed"):
        query = {"status": status, "limit": "100"}
        first = run.probe.send("GET", "/api/sessions", query=query)
        oldest_page = max(0, int(first.body["total"]) - 100)
        page = run.probe.send("GET", "/api/sessions", query={**query, "offset": str(oldest_page)})
        days = [
            (page.date - moment(one["completed_at"])).total_seconds() / 86_400
            for one in page.body["sessions"]
            if one["metadata"].get("archived") is not True
        ]
        oldest = max(days, default=0.0)
        what = f"no {status} session is older than {run.times.retention_days} days"
        run.check(oldest <= run.times.retention_days, what, f"{oldest:.1f} days")


def authentication(run: Run) -> None:
    """Nobody gets in without a key that the server knows (PRD 1.3)."""
    body = {"project_id": run.project_id, "machine_id": run.machine("burglar")}
    wrong = {
        "API key required": (None, "without a key"),
        "Malformed API key": ("invalid-key-123", "with a malformed key"),
        "Invalid API key": (str(uuid.uuid4()), "with an unknown key"),
    }
    for message, (key, how) in wrong.items():
        reply = run.probe.send("POST", "/api/sessions", body, key=key)
        run.expect(reply, 401, f"POST /api/sessions {how}")
        run.check(reply.field("message") == message, f"the message is {message!r}", reply.said)
        run.check(bool(reply.headers.get("x-request-id")), "the answer carries a request id")
    for path in (
        "/api/sessions",
        "/api/tasks",
        "/api/machines",
        "/health/detailed",
        "/metrics",
        "/api/nothing",
    ):
        run.expect(run.probe.send("GET", path, key=None), 401, f"GET {path} without a key")
    run.check(not run.sessions(), "no session was made without a key")
    own = run.expect(run.probe.send("GET", "/api/sessions?limit=1"), 200, "GET /api/sessions with the key")
    for header in ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"):
        run.check(header in own.headers, f"the answer carries {header}", sorted(own.headers))
    run.expect(run.probe.send("GET", "/health", key=None), 200, "GET /health without a key")


def health(run: Run) -> None:
    """The health endpoints tell the truth about the service and its sessions (PRD 2.4, 5.3)."""
    alive = run.expect(run.probe.send("GET", "/health", key=None, measure=(LIVENESS,)), 200, "GET /health")
    run.check(alive.field("status") == "ok" and alive.body["uptime"] > 0, "the process is up", alive.body)
    detailed = run.expect(run.probe.send("GET", "/health/detailed"), 200, "GET /health/detailed")
    dependencies: Any = detailed.body["dependencies"]
    for name in ("database", "background_jobs", "consistency"):
        state = dependencies[name]["status"]
        run.check(state == "ok", f"{name.replace('_', ' ')}: ok", dependencies[name])
    session_id = run.create("healthy")["session_id"]
    one = run.probe.send("GET", f"/api/sessions/{session_id}/health", measure=(HEALTH_QUERY,))
    run.expect(one, 200, "GET /api/sessions/{session_id}/health")
    run.check(one.body["is_healthy"] and not one.body["is_stalled"], "a new session is healthy", one.body)
    counts = run.probe.send("GET", "/api/sessions/health", measure=(HEALTH_QUERY,))
    run.expect(counts, 200, "GET /api/sessions/health")
    run.check(counts.body["active_sessions"] >= 1, "it is counted as active", counts.body)
    metrics = run.expect(run.probe.send("GET", "/metrics"), 200, "GET /metrics")
    for name in (
        "active_sessions_count",
        "stalled_sessions_count",
        "heartbeat_latency_ms",
        "api_requests_total",
    ):
        run.check(name in str(metrics.body), f"the metrics have {name}")


def _ended(pending: list[Future[int]]) -> set[Future[int]]:
    """Those that have ended, once all have or one has failed.

    It waits in steps: a signal that the system has given to another thread is dealt with only when this one,
    the main one, wakes.
    """
    while True:
        done, left = wait(pending, timeout=_STEP, return_when=FIRST_EXCEPTION)
        if not left or any(one.exception() for one in done):
            return done


def load(run: Run) -> None:
    """Sessions at the same time, with heartbeats, for a while: no errors (PRD 4.4.e)."""
    times, probe = run.times, run.probe
    interval = times.load_interval
    if probe.limit is not None:
        slowest = times.load_sessions * 60 / (probe.limit * _SHARE_OF_LIMIT)
        if slowest > interval:
            run.note(f"a heartbeat every {slowest:.1f} s, because of the rate limit of {probe.limit}")
            interval = slowest
    # All begin together, so that the sessions do run at the same time.
    gate, over = threading.Barrier(times.load_sessions), threading.Event()
    with ThreadPoolExecutor(times.load_sessions) as pool:
        pending: list[Future[int]] = [
            pool.submit(_one_of_many, run, number, interval, gate, over)
            for number in range(times.load_sessions)
        ]
        first = _ended(pending)
        over.set()  # where one has failed, the others need not go on
    for one in first:
        one.result()
    beats = [one.result() for one in pending]
    run.check(min(beats) >= 1, "every session has sent heartbeats", beats)
    states = [one["status"] for one in run.sessions() if "-load-" in one["machine_id"]]
    run.check(
        states == ["completed"] * times.load_sessions,
        f"{times.load_sessions} sessions were completed without an error",
        states,
    )
    measured = Latency.of(LOAD, probe.latencies[LOAD], run.limit(LOAD))
    run.check(
        measured.held, f"p95 of all requests is under {measured.limit:.0f} ms", f"{measured.p95:.0f} ms"
    )


def _one_of_many(
    run: Run, number: int, interval: float, gate: threading.Barrier, over: threading.Event
) -> int:
    probe: Probe = run.probe
    gate.wait(60)
    body = {"project_id": run.project_id, "machine_id": run.machine(f"load-{number}")}
    created = probe.send("POST", "/api/sessions", body, measure=(CREATION, LOAD))
    run.expect(created, 201, f"session {number + 1} of the load is created")
    path = f"/api/sessions/{created.body['session_id']}"
    beats, ends_at = 0, time.monotonic() + run.times.load_seconds
    while True:
        reply = probe.send("POST", f"{path}/heartbeat", measure=(HEARTBEAT, LOAD))
        if reply.status != 200:
            run.expect(reply, 200, f"heartbeat {beats + 1} of session {number + 1} of the load")
        beats += 1
        next_at = time.monotonic() + interval
        if next_at > ends_at:
            break
        while not over.is_set() and (left := next_at - time.monotonic()) > 0:
            probe.pause(min(left, 1.0))
        if over.is_set():
            break
    ended = probe.send("PATCH", path, {"status": "completed"}, measure=(LOAD,))
    run.expect(ended, 200, f"session {number + 1} of the load is completed")
    return beats


def performance(run: Run) -> None:
    """The 95th percentiles of everything that was measured, against the PRD's limits."""
    session_id = run.create("measured")["session_id"]
    for number in range(run.times.samples):
        run.note(f"measurement {number + 1} of {run.times.samples}")
        run.beat(session_id)
        run.probe.send("GET", f"/api/sessions/{session_id}/health", measure=(HEALTH_QUERY,))
        run.probe.send("GET", "/health", key=None, measure=(LIVENESS,))
    measured = latencies(run)
    missing = LIMITS.keys() - {LOAD} - {one.name for one in measured}
    run.check(not missing, "every kind of request was measured", f"none of {', '.join(missing)}")
    # Every one is told, even where the first is too slow.
    for one in measured:
        what = f"p95 of {one.name} is under {one.limit:.0f} ms"
        run.tell(one.held, what, f"{one.p95:.0f} ms in {one.samples} samples")


def latencies(run: Run) -> list[Latency]:
    """What was measured so far."""
    return [
        Latency.of(name, run.probe.latencies[name], run.limit(name))
        for name in LIMITS
        if run.probe.latencies.get(name)
    ]


@dataclass(frozen=True)
class Scenario:
    """A scenario: its title, where the PRD asks for it, and what it does."""

    title: str
    prd: str
    play: Callable[[Run], None]


SCENARIOS = {
    "authentication": Scenario("Only known keys get in", "4.4 (6)", authentication),
    "lifecycle": Scenario("A session from its start to its end", "4.4 (1), 4.4.a, 4.4.b", lifecycle),
    "failure-detection": Scenario("A silent session is noticed", "4.4 (2), 4.4.c", failure_detection),
    "recovery": Scenario("A failed session goes on in one new one", "4.4 (3), 4.4.d", recovery),
    "machines": Scenario("Machines and docker slots", "4.4 (4)", machines),
    "cleanup": Scenario("Old sessions go, archived ones stay", "4.4 (5)", cleanup),
    "health": Scenario("Health queries tell the truth", "4.4 (7)", health),
    "load": Scenario("Sessions at the same time", "4.4.e", load),
    "performance": Scenario("Latencies within their limits", "4.4", performance),
}
