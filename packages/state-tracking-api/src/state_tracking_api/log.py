"""JSON lines on standard output, in the PRD's format (5.1): timestamp, level, message, context."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, BinaryIO, TextIO, cast

import msgspec

from state_tracking_api import clock


@contextlib.contextmanager
def _as_if_not_installed(package: str) -> Generator[None]:
    modules = cast("dict[str, Any]", sys.modules)
    loaded = modules.get(package)
    modules[package] = None  # its import is refused
    try:
        yield
    finally:
        del modules[package]
        if loaded is not None:
            modules[package] = loaded


# structlog loads rich where it finds it, as beside the client: a tenth of a start, for tracebacks in colours.
with _as_if_not_installed("rich"):
    import structlog

# One variable with everything in it: structlog's own has one for each name, and every line looks at them all.
_context: ContextVar[dict[str, Any] | None] = ContextVar("log_context", default=None)

_IDS = ("session_id", "task_id", "project_id", "machine_id")

_encode = msgspec.json.Encoder(enc_hook=str).encode
_LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}


_logger = cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger. What is bound to the running request goes into every line."""
    return _logger


def clear() -> None:
    """Begin anew, at the start of a request or of a job: nothing is bound."""
    _context.set({})


def bind(**context: Any) -> None:
    """Add to every further line of the running request or job."""
    bound = _context.get()
    if bound is None:
        _context.set(context)
    else:
        bound.update(context)


def bind_ids(document: Mapping[str, Any]) -> None:
    """Bind the ids of a session, task or machine, so that every further line of the request has them."""
    bind(**{name: document[name] for name in _IDS if name in document})


def _merged(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What is bound and what the line itself says, which wins."""
    bound = _context.get()
    return {**bound, **event} if bound else event


def configure(level: str, *, console: bool = False, stream: TextIO | None = None) -> None:
    """Send everything that is logged, the libraries' lines included, to `stream` (standard output).

    `level` is one of debug, info, warning, error; `console` gives lines for people instead of JSON.
    """
    out = stream or sys.stdout
    threshold = logging.getLevelNamesMapping()[level.upper()]
    if console:
        structlog.configure(
            processors=[
                _merged,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper("%H:%M:%S", utc=False),
                structlog.dev.ConsoleRenderer(colors=out.isatty()),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(threshold),
            logger_factory=structlog.PrintLoggerFactory(out),
            cache_logger_on_first_use=False,
        )
    else:
        structlog.configure(
            processors=[],
            wrapper_class=_json_lines(_Lines(out.buffer), threshold),
            cache_logger_on_first_use=False,
        )
    # Put together once, not for every line.
    global _logger  # noqa: PLW0603
    _logger = structlog.get_logger().bind()
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(max(threshold, logging.WARNING))


class _Lines:
    """Writes lines; where nobody reads them any more, the work goes on all the same."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, line: bytes) -> None:
        """Write one line."""
        try:
            self._out.write(line + b"\n")
            self._out.flush()
        except (OSError, ValueError):
            pass


def _json_lines(out: _Lines, threshold: int) -> type[structlog.BoundLoggerBase]:
    """A bound logger of structlog's that makes its lines in one step.

    Its chain of processors costs a heartbeat, of which there are three lines, more than all that the line is.
    """

    def method(name: str) -> Callable[..., None]:
        level = _LEVELS[name]

        def write(_self: object, event: str, **context: Any) -> None:
            if "exc_info" in context:
                context = dict(structlog.processors.format_exc_info(None, name, context))
            bound = _context.get()
            out.write(
                _encode(
                    {
                        "timestamp": clock.iso(clock.now()),
                        "level": level,
                        "message": event,
                        # What the line itself says wins over what is bound.
                        "context": {**bound, **context} if bound else context,
                    }
                )
            )

        def nothing(_self: object, _event: str, **_context: Any) -> None:
            """Below the threshold."""

        return write if logging.getLevelNamesMapping()[name.upper()] >= threshold else nothing

    methods = {name: method(name) for name in _LEVELS}

    def exception(self: object, event: str, **context: Any) -> None:
        methods["error"](self, event, **{"exc_info": True, **context})

    return type("JsonLines", (structlog.BoundLoggerBase,), {**methods, "exception": exception})


class _Forward(logging.Handler):
    """What libraries log through the standard library, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        method = "error" if record.levelno >= logging.ERROR else "warning"
        if record.levelno < logging.WARNING:
            method = "info" if record.levelno >= logging.INFO else "debug"
        getattr(get(), method)(record.getMessage(), logger=record.name, exc_info=record.exc_info)
