"""The rules of repetition, without a network: the generator is told what came of each request."""

import json
from typing import Any, TypeVar

import pytest

from claude_projects import calls, errors
from claude_projects.exchange import Answer, Pause, Request, Retry, Steps, perform, retry_after

T = TypeVar("T")
Told = Answer | errors.UnreachableError

NOW = "2026-01-01T00:00:00.000Z"
TASK: dict[str, Any] = {
    "task_id": "t1",
    "session_id": "s1",
    "project_id": "p",
    "task_name": "n",
    "status": "pending",
    "metadata": {},
    "created_at": NOW,
    "updated_at": NOW,
    "a field of a later version": 1,
}
SESSION: dict[str, Any] = {
    "session_id": "s1",
    "project_id": "p",
    "machine_id": "m",
    "status": "active",
    "last_heartbeat": NOW,
    "started_at": NOW,
    "metadata": {},
    "created_at": NOW,
    "updated_at": NOW,
}


def ok(body: Any, status: int = 200) -> Answer:
    return Answer(status, {}, json.dumps(body).encode())


def no(status: int, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return Answer(status, headers or {}, json.dumps({"statusCode": status, "message": "no", **more}).encode())


GONE = errors.UnreachableError("gone", perhaps_done=True)
CLOSED = errors.UnreachableError("closed")


def play(steps: Steps[T], *outcomes: Told) -> tuple[T, list[Request], list[float]]:
    """Answer the requests one after another; the result, the requests, the pauses between them."""
    left, requests, pauses = list(outcomes), list[Request](), list[float]()
    told: Told | None = None
    try:
        while True:
            step = steps.send(told)
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                told = None
            else:
                requests.append(step)
                told = left.pop(0)
    except StopIteration as end:
        assert not left, "it should have asked again"
        return end.value, requests, pauses


@pytest.mark.parametrize("fault", [GONE, CLOSED, no(429, {"retry-after": "0"}), no(502), no(503), no(504)])
def test_what_passes_by_itself_is_repeated(fault: Told) -> None:
    session, requests, pauses = play(perform(calls.get_session("s1"), Retry()), fault, fault, ok(SESSION))
    assert session.session_id == "s1"
    assert (len(requests), len(pauses)) == (3, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 415, 500, 501])
def test_nothing_else_is(status: int) -> None:
    with pytest.raises(errors.ApiError) as error:
        play(perform(calls.get_session("s1"), Retry()), no(status))
    assert error.value.status == status


def test_repetition_ends_after_the_given_number() -> None:
    with pytest.raises(errors.UnreachableError):
        play(perform(calls.get_session("s1"), Retry(attempts=2)), GONE, GONE, GONE)


def test_pauses_grow_are_shortened_at_random_and_have_a_limit() -> None:
    retry = Retry(base=1.0, cap=8.0)
    for attempt, most in enumerate([1.0, 2.0, 4.0, 8.0, 8.0]):
        drawn = [retry.delay(attempt, GONE) for _ in range(200)]
        assert all(most / 2 <= one <= most for one in drawn)
        assert max(drawn) - min(drawn) > most / 8, "spread"


def test_a_retry_after_is_waited_for_in_full_unless_it_is_beyond_patience() -> None:
    _, _, (pause,) = play(
        perform(calls.get_session("s1"), Retry()), no(429, {"retry-after": "7"}), ok(SESSION)
    )
    assert 7.0 <= pause <= 8.0
    with pytest.raises(errors.RateLimitedError) as error:
        play(perform(calls.get_session("s1"), Retry(patience=60)), no(429, {"retry-after": "61"}))
    assert error.value.retry_after == 61


def test_a_date_in_retry_after_is_measured_by_the_servers_own_clock() -> None:
    headers = {"retry-after": "Wed, 01 Jan 2020 00:00:30 GMT", "date": "Wed, 01 Jan 2020 00:00:10 GMT"}
    assert retry_after(headers) == 20
    assert retry_after({"retry-after": "soon"}) is None


def test_a_session_whose_creation_was_not_answered_is_recognised_by_its_token() -> None:
    steps = perform(calls.create_session(project_id="p", machine_id="m"), Retry())
    sent = next(steps)
    assert isinstance(sent, Request)
    assert sent.body is not None
    token = json.loads(sent.body)["metadata"]["client_token"]
    assert isinstance(steps.send(GONE), Pause)
    assert steps.send(None) == sent
    assert steps.send(no(409, existing_session_id="s1")) == Request("GET", "/api/sessions/s1")
    with pytest.raises(StopIteration) as end:
        steps.send(ok({**SESSION, "metadata": {"client_token": token}}))
    assert end.value.value.session_id == "s1"


def test_a_session_of_somebody_else_is_a_conflict_after_a_lost_answer_too() -> None:
    call = calls.create_session(project_id="p", machine_id="m")
    stranger = ok({**SESSION, "metadata": {"client_token": "another"}})
    with pytest.raises(errors.ConflictError) as error:
        play(perform(call, Retry()), GONE, no(409, existing_session_id="s1"), stranger)
    assert error.value.existing_session_id == "s1"


def test_a_conflict_is_looked_into_only_after_a_lost_answer() -> None:
    call = calls.create_session(project_id="p", machine_id="m")
    with pytest.raises(errors.ConflictError):
        play(perform(call, Retry()), CLOSED, no(409, existing_session_id="s1"))


def test_a_task_is_looked_for_before_its_creation_is_repeated() -> None:
    call = calls.create_task(session_id="s1", project_id="p", task_name="n")
    assert call.request.body is not None
    made = {**TASK, "metadata": json.loads(call.request.body)["metadata"]}
    page = {"tasks": [made], "total": 1, "limit": 200, "offset": 0}
    task, requests, _ = play(perform(call, Retry()), GONE, ok(page))
    assert task.task_id == "t1"
    assert [one.method for one in requests] == ["POST", "GET"]
    empty = {"tasks": [], "total": 0, "limit": 200, "offset": 0}
    _, requests, _ = play(perform(call, Retry()), GONE, ok(empty), ok(made, 201))
    assert [one.method for one in requests] == ["POST", "GET", "POST"]


def test_a_claim_is_ours_after_a_lost_answer_only_where_its_mark_is_ours() -> None:
    call = calls.update_task("t1", status="in_progress", metadata={"claimed_by": "us"})
    ours = ok({**TASK, "status": "in_progress", "metadata": {"claimed_by": "us"}})
    task, _, _ = play(perform(call, Retry()), GONE, no(400), ours)
    assert task.status == "in_progress"
    theirs = ok({**TASK, "status": "in_progress", "metadata": {"claimed_by": "them"}})
    with pytest.raises(errors.BadRequestError):
        play(perform(call, Retry()), GONE, no(400), theirs)


def test_a_deletion_whose_repetition_finds_nothing_is_done() -> None:
    play(perform(calls.delete_task("t1"), Retry()), GONE, no(404))
    with pytest.raises(errors.NotFoundError):
        play(perform(calls.delete_task("t1"), Retry()), no(404))


def test_who_made_a_successor_is_unknown_after_a_lost_answer() -> None:
    call = calls.recover("s0", new_machine_id="m")
    assert play(perform(call, Retry()), ok(SESSION, 201))[0].created is True
    assert play(perform(call, Retry()), ok(SESSION, 200))[0].created is False
    assert play(perform(call, Retry()), GONE, ok(SESSION, 200))[0].created is None
    assert play(perform(call, Retry()), GONE, ok(SESSION, 201))[0].created is True


def test_fields_of_a_later_version_are_kept() -> None:
    task, _, _ = play(perform(calls.get_task("t1"), Retry()), ok(TASK))
    assert task.model_extra == {"a field of a later version": 1}


def test_everything_that_an_error_says_is_in_the_exception() -> None:
    said = no(
        409,
        error="Conflict",
        path="/api/x",
        request_id="r1",
        recovered_by="s2",
        existing_session_id="s3",
        errors=[{"field": "a.b", "message": "is bad"}],
    )
    with pytest.raises(errors.ConflictError, match=r"^no \(a\.b: is bad\)$") as caught:
        play(perform(calls.get_task("t1"), Retry()), said)
    error = caught.value
    assert (error.status, error.message, error.request_id) == (409, "no", "r1")
    assert (error.recovered_by, error.existing_session_id) == ("s2", "s3")
    assert error.fields == (errors.FieldError("a.b", "is bad"),)
    assert error.refusal.error == "Conflict"


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b'{"hello": 1}', b""])
@pytest.mark.parametrize("status", [200, 404])
def test_an_answer_of_something_else_is_recognised_as_such(body: bytes, status: int) -> None:
    with pytest.raises(errors.NotTheApiError):
        play(perform(calls.get_task("t1"), Retry()), Answer(status, {}, body))


def test_a_proxy_that_speaks_for_itself_is_repeated_like_the_api() -> None:
    proxy = Answer(502, {"content-type": "text/html"}, b"<html>Bad Gateway</html>")
    assert play(perform(calls.get_task("t1"), Retry()), proxy, ok(TASK))[0].task_id == "t1"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("a/b", "/api/tasks/a%2Fb"),
        ("..", "/api/tasks/%2E%2E"),
        ("", "/api/tasks/%20"),
        ("a?b#c", "/api/tasks/a%3Fb%23c"),
        ("ü", "/api/tasks/%C3%BC"),
    ],
)
def test_an_id_never_leads_to_another_address(given: str, path: str) -> None:
    assert calls.get_task(given).request.path == path
