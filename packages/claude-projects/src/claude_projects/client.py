"""The two clients: each knows how to send a request and how to wait. The rest is in ``exchange``."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

from claude_projects import calls
from claude_projects.errors import ClaudeProjectsError, NotTheApiError, UnreachableError
from claude_projects.exchange import Answer, Call, Outcome, Pause, Request, Retry, Steps, perform
from claude_projects.models import Page


@contextlib.contextmanager
def _as_if_not_installed(module: str) -> Generator[None]:
    modules = cast("dict[str, Any]", sys.modules)
    loaded = modules.get(module)
    modules[module] = None  # its import is refused
    try:
        yield
    finally:
        del modules[module]
        if loaded is not None:
            modules[module] = loaded


# httpx loads its command line where it finds all that this needs, as beside ours: a tenth of a start, unused.
with _as_if_not_installed("httpx._main"):
    import httpx

T = TypeVar("T")
P = ParamSpec("P")

DEFAULT_URL = "http://127.0.0.1:3000"
# The server gives up after 29 seconds by itself and says so; whoever gives up sooner never learns what
# became of his request.
DEFAULT_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_LONGEST_PAGE = {"/api/tasks": "200"}


class _Blocking(Generic[P, T]):
    """Makes a call into a method of Client with the same signature."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self.__doc__ = describe.__doc__
        self._describe = describe

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    def __get__(self, client: "Client | None", owner: type) -> "Self | Callable[P, T]":
        if client is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return client.send(self._describe(*args, **kwargs))

        method.__doc__ = self.__doc__
        return method


class _Awaiting(Generic[P, T]):
    """Makes a call into a method of AsyncClient with the same signature."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self.__doc__ = describe.__doc__
        self._describe = describe

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "AsyncClient | None", owner: type) -> "Self | Callable[P, Awaitable[T]]":
        if client is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
            return client.send(self._describe(*args, **kwargs))

        method.__doc__ = self.__doc__
        return method


@dataclass(frozen=True)
class _Address:
    """Where the API is and how it knows us."""

    url: httpx.URL
    api_key: str | None

    @classmethod
    def of(cls, url: str | None, api_key: str | None) -> Self:
        text = url or os.environ.get("CLAUDE_PROJECTS_URL") or DEFAULT_URL
        try:
            parsed = httpx.URL(text.rstrip("/"))
        except httpx.InvalidURL as error:
            raise NotTheApiError(f"{text!r} is not an address: {error}") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise NotTheApiError(f"{text!r} is not an address: it must look like {DEFAULT_URL}")
        key = (api_key or os.environ.get("CLAUDE_PROJECTS_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ClaudeProjectsError("the API key holds characters that no key has; it must be a UUID")
        return cls(parsed, key or None)

    def headers(self, request: Request) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self.api_key:
            headers["X-API-Key"] = self.api_key
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        return headers

    def target(self, request: Request) -> httpx.URL:
        base = self.url.raw_path.partition(b"?")[0].rstrip(b"/")
        url = self.url.copy_with(raw_path=base + request.path.encode("ascii"))
        return url.copy_merge_params(dict(request.query)) if request.query else url

    def unreachable(self, error: httpx.HTTPError) -> UnreachableError:
        """The sentence for what the HTTP library ran into."""
        where = f"the state tracking API at {self.url}"
        never_sent = isinstance(
            error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol
        )
        if isinstance(error, httpx.TimeoutException):
            text = f"{where} did not answer in time"
        else:
            text = f"{where} cannot be reached: {error or type(error).__name__}"
        return UnreachableError(text, perhaps_done=not never_sent)


def _outcome(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _server_time(outcome: Outcome) -> datetime | None:
    try:
        return parsedate_to_datetime(outcome.headers["date"]) if isinstance(outcome, Answer) else None
    except (KeyError, ValueError):
        return None


def _longest_pages(call: Call[Page[T]]) -> Call[Page[T]]:
    limit = _LONGEST_PAGE.get(call.request.path, "100")
    return replace(call, request=replace(call.request, query={**call.request.query, "limit": limit}))


def _page_at(call: Call[Page[T]], offset: int) -> Call[Page[T]]:
    return replace(call, request=replace(call.request, query={**call.request.query, "offset": str(offset)}))


class Client:
    """The API for code that blocks; several threads may use it at once.

    Close it, or use it as a context manager. ``url`` and ``api_key`` default to CLAUDE_PROJECTS_URL and
    CLAUDE_PROJECTS_API_KEY, then to the local server. Every method raises a ClaudeProjectsError where it
    fails: UnreachableError, NotTheApiError, or an ApiError that carries what the API said.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: Retry | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
    ) -> None:
        self._address = _Address.of(url, api_key)
        self.retry = retry or Retry()
        self._http = httpx.Client(timeout=timeout)
        self.server_time: datetime | None = None
        """The server's clock as of the last answer, to the second."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def url(self) -> str:
        """The API's address."""
        return str(self._address.url)

    def send(self, call: Call[T]) -> T:
        """Carry out any call of ``calls`` with this client's retries."""
        return self.drive(perform(call, self.retry))

    def every(self, call: Call[Page[T]]) -> Iterator[T]:
        """Everything that a list call would list, page by page, newest first."""
        call, offset = _longest_pages(call), 0
        while True:
            page = self.send(_page_at(call, offset))
            yield from page.items
            offset += len(page.items)
            if not page.items or offset >= page.total:
                return

    def drive(self, steps: Steps[T], pause: Callable[[Pause], object] | None = None) -> T:
        """Do what ``steps`` asks for, one step after another, and return its result."""
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Request):
                    outcome = self._exchange(step)
                else:
                    outcome = None
                    (pause or _sleep)(step)
        except StopIteration as end:
            return end.value

    def _exchange(self, request: Request) -> Answer | UnreachableError:
        try:
            response = self._http.request(
                request.method,
                self._address.target(request),
                content=request.body,
                headers=self._address.headers(request),
            )
        except httpx.HTTPError as error:
            return self._address.unreachable(error)
        except RuntimeError:
            # Closed while a tracked session's thread was at work, by an owner who would not wait for it.
            if not self._http.is_closed:
                raise
            return UnreachableError("the client has been closed", perhaps_done=True)
        answer = _outcome(response)
        self.server_time = _server_time(answer) or self.server_time
        return answer

    create_session = _Blocking(calls.create_session)
    get_session = _Blocking(calls.get_session)
    list_sessions = _Blocking(calls.list_sessions)
    update_session = _Blocking(calls.update_session)
    delete_session = _Blocking(calls.delete_session)
    heartbeat = _Blocking(calls.heartbeat)
    health_summary = _Blocking(calls.health_summary)
    stalled_sessions = _Blocking(calls.stalled_sessions)
    session_health = _Blocking(calls.session_health)
    mark_failed = _Blocking(calls.mark_failed)
    mark_stalled = _Blocking(calls.mark_stalled)
    detect_failures = _Blocking(calls.detect_failures)
    recovery_state = _Blocking(calls.recovery_state)
    prepare_recovery = _Blocking(calls.prepare_recovery)
    recover = _Blocking(calls.recover)
    archive_session = _Blocking(calls.archive_session)
    archived_sessions = _Blocking(calls.archived_sessions)
    cleanup = _Blocking(calls.cleanup)
    create_task = _Blocking(calls.create_task)
    get_task = _Blocking(calls.get_task)
    list_tasks = _Blocking(calls.list_tasks)
    update_task = _Blocking(calls.update_task)
    delete_task = _Blocking(calls.delete_task)
    register_machine = _Blocking(calls.register_machine)
    get_machine = _Blocking(calls.get_machine)
    list_machines = _Blocking(calls.list_machines)
    update_machine = _Blocking(calls.update_machine)
    delete_machine = _Blocking(calls.delete_machine)
    machine_heartbeat = _Blocking(calls.machine_heartbeat)
    service_health = _Blocking(calls.service_health)


class AsyncClient:
    """The API for asyncio: the same methods as Client, awaited. Use it within one event loop."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry: Retry | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
    ) -> None:
        self._address = _Address.of(url, api_key)
        self.retry = retry or Retry()
        self._http = httpx.AsyncClient(timeout=timeout)
        self.server_time: datetime | None = None
        """The server's clock as of the last answer, to the second."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def url(self) -> str:
        """The API's address."""
        return str(self._address.url)

    async def send(self, call: Call[T]) -> T:
        """Carry out any call of ``calls`` with this client's retries."""
        return await self.drive(perform(call, self.retry))

    async def every(self, call: Call[Page[T]]) -> AsyncIterator[T]:
        """Everything that a list call would list, page by page, newest first."""
        call, offset = _longest_pages(call), 0
        while True:
            page = await self.send(_page_at(call, offset))
            for item in page.items:
                yield item
            offset += len(page.items)
            if not page.items or offset >= page.total:
                return

    async def drive(self, steps: Steps[T], pause: Callable[[Pause], Awaitable[object]] | None = None) -> T:
        """Do what ``steps`` asks for, one step after another, and return its result."""
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Request):
                    outcome = await self._exchange(step)
                else:
                    outcome = None
                    await (pause or _async_sleep)(step)
        except StopIteration as end:
            return end.value

    async def _exchange(self, request: Request) -> Answer | UnreachableError:
        try:
            response = await self._http.request(
                request.method,
                self._address.target(request),
                content=request.body,
                headers=self._address.headers(request),
            )
        except httpx.HTTPError as error:
            return self._address.unreachable(error)
        except RuntimeError:
            # Closed while a tracked session's thread was at work, by an owner who would not wait for it.
            if not self._http.is_closed:
                raise
            return UnreachableError("the client has been closed", perhaps_done=True)
        answer = _outcome(response)
        self.server_time = _server_time(answer) or self.server_time
        return answer

    create_session = _Awaiting(calls.create_session)
    get_session = _Awaiting(calls.get_session)
    list_sessions = _Awaiting(calls.list_sessions)
    update_session = _Awaiting(calls.update_session)
    delete_session = _Awaiting(calls.delete_session)
    heartbeat = _Awaiting(calls.heartbeat)
    health_summary = _Awaiting(calls.health_summary)
    stalled_sessions = _Awaiting(calls.stalled_sessions)
    session_health = _Awaiting(calls.session_health)
    mark_failed = _Awaiting(calls.mark_failed)
    mark_stalled = _Awaiting(calls.mark_stalled)
    detect_failures = _Awaiting(calls.detect_failures)
    recovery_state = _Awaiting(calls.recovery_state)
    prepare_recovery = _Awaiting(calls.prepare_recovery)
    recover = _Awaiting(calls.recover)
    archive_session = _Awaiting(calls.archive_session)
    archived_sessions = _Awaiting(calls.archived_sessions)
    cleanup = _Awaiting(calls.cleanup)
    create_task = _Awaiting(calls.create_task)
    get_task = _Awaiting(calls.get_task)
    list_tasks = _Awaiting(calls.list_tasks)
    update_task = _Awaiting(calls.update_task)
    delete_task = _Awaiting(calls.delete_task)
    register_machine = _Awaiting(calls.register_machine)
    get_machine = _Awaiting(calls.get_machine)
    list_machines = _Awaiting(calls.list_machines)
    update_machine = _Awaiting(calls.update_machine)
    delete_machine = _Awaiting(calls.delete_machine)
    machine_heartbeat = _Awaiting(calls.machine_heartbeat)
    service_health = _Awaiting(calls.service_health)


def _sleep(pause: Pause) -> None:
    time.sleep(pause.seconds)


async def _async_sleep(pause: Pause) -> None:
    await asyncio.sleep(pause.seconds)
