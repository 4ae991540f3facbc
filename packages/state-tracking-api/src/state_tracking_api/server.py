"""The HTTP server around the application: uvicorn, in one process or in several."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, cast
from uuid import uuid4

import uvicorn
from prometheus_client import multiprocess
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from state_tracking_api import clock, log, settings
from state_tracking_api.app import Application, create_app
from state_tracking_api.errors import InvalidRequest
from state_tracking_api.http.call import encode
from state_tracking_api.http.dispatch import error_body
from state_tracking_api.settings import Settings

# uvicorn finishes what is in flight within this; the rest of ten seconds is for leases, the last counts and
# connections: `app.END_SECONDS`.
GRACE_SECONDS = 5
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
# A worker that says nothing for so long is replaced. On a busy machine one takes longer to start than the
# 5 seconds that uvicorn has for it, and would be replaced by one that is no faster.
WORKER_SILENCE_SECONDS = 30
PING_SECONDS = 0.2
# Request line and headers together; the parser itself would collect them until the memory is full.
MAX_HEAD_BYTES = 64 * 1024


class Server(uvicorn.Server):
    """Ends with exit code 0 after a signal, where uvicorn's own would let the signal kill it."""

    on_start: Callable[[], None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop on SIGTERM and SIGINT, and put the handlers back afterwards."""
        handled = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start. What was made up to here lives as long as the process, so it need not be collected."""
        await super().startup(sockets)
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        if self.on_start is not None:
            self.on_start()


def run(configured: Settings, on_start: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight; `on_start` is called once it listens.

    Raises OSError where the address cannot be listened on, ConfigurationError where another cannot be used.
    """
    listener = _listen(configured)
    app = create_app(configured)  # of several workers each makes its own, but only here is a refusal seen
    if configured.workers == 1:
        server = Server(_config(app))
        server.on_start = on_start
        server.run(sockets=[listener])
        return
    with tempfile.TemporaryDirectory(prefix="state-tracking-metrics-") as shared:
        # Read by prometheus_client when a worker imports it: the workers' metrics are added up from here.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        config = _config("state_tracking_api.server:worker", factory=True, workers=configured.workers)
        _Workers(config, sockets=[listener]).run()


class _Workers(Multiprocess):
    """Replaces workers that are gone or silent for long, and never waits for one: a signal may have come.

    What a worker that died has shown of its own state, such as an open circuit, is forgotten.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._heard_at: dict[int | None, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Look after every worker once."""
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if self._lives(worker):
                continue
            worker.kill()
            worker.join()
            multiprocess.mark_process_dead(worker.pid)  # pyright: ignore[reportUnknownMemberType]
            self._heard_at.pop(worker.pid, None)  # the id may be given to another worker
            if worker.exitcode == STARTUP_FAILURE:  # as every other one would
                self.should_exit.set()
                return
            log.get().error("Worker was replaced", pid=worker.pid, exit_code=worker.exitcode)
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    def _lives(self, worker: Process) -> bool:
        if not worker.process.is_alive():
            return False
        now = time.monotonic()
        if worker.ping(timeout=PING_SECONDS):
            self._heard_at[worker.pid] = now
            return True
        return now - self._heard_at.setdefault(worker.pid, now) < WORKER_SILENCE_SECONDS


class _HeadWithBody:
    """A transport that sends an answer's head together with the first part of its body.

    uvicorn writes the two apart, and each write is a call of the system that wakes the client up.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False
        # Asked for with every request.
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or keep what begins an answer until more of it comes."""
        if self._head is not None:
            data, self._head = self._head + data, None
        elif not self._begun and not data.startswith(b"HTTP/1.1 100"):
            self._begun, self._head = True, data
            return
        self._transport.write(data)

    def end_answer(self) -> None:
        """The answer is complete; some have a head alone."""
        self._begun = False
        if self._head is not None:
            self.write(b"")

    def close(self) -> None:
        """Close, once everything is written."""
        self.end_answer()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's, whose own refusals look like every other error, and with a bound on a request's head."""

    _head_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, with fewer writes."""
        self._gathered = _HeadWithBody(transport)
        super().connection_made(cast("asyncio.Transport", self._gathered))

    def on_response_complete(self) -> None:
        """Let go of an answer without a body."""
        self._gathered.end_answer()
        super().on_response_complete()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head was small enough."""
        self._head_bytes = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse, and give up on a head that does not end."""
        super().data_received(data)
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The request's head must be at most {MAX_HEAD_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        """Refuse what never becomes a request; the application does not get to see it."""
        request_id = str(uuid4())
        error = InvalidRequest(msg if msg.startswith("The ") else "The request is not valid HTTP")
        path = bytes(getattr(self, "url", b"")).partition(b"?")[0].decode("utf-8", "replace")
        body = encode(error_body(error, clock.now(), path, request_id))
        log.get().warning("Request refused", reason=error.message, request_id=request_id)
        headers = {
            b"content-type": b"application/json",
            b"content-length": b"%d" % len(body),
            b"x-request-id": request_id.encode(),
            b"x-content-type-options": b"nosniff",
            b"connection": b"close",
        }
        lines = [name + b": " + value + b"\r\n" for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """An offer to speak another protocol is simply not taken up (RFC 9110, section 7.8)."""


def worker() -> Application:
    """The application of one of several worker processes, from the environment."""
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    configured = settings.load()
    log.configure(configured.log_level)
    return create_app(configured)


def _end_with_supervisor() -> None:
    """A supervisor that was killed tells nobody: its workers would go on, and keep the port."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _config(app: Application | str, *, factory: bool = False, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=factory,
        workers=workers,
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=BACKLOG,
    )


def _listen(configured: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in configured.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((configured.host, configured.port))
    except OSError:
        listener.close()
        raise
    except UnicodeError:
        listener.close()
        raise OSError(errno.EINVAL, "not the name of a host") from None
    listener.set_inheritable(True)
    return listener
