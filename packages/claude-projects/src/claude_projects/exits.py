"""The exit codes of the command line. They are part of its interface: change none, add at the end."""

from enum import IntEnum


class Exit(IntEnum):
    """What an exit code means."""

    OK = 0
    """Done."""
    TASK_FAILED = 1
    """A task of the plan has failed."""
    USAGE = 2
    """The command line, the plan file or the configuration is wrong."""
    UNREACHABLE = 3
    """The API cannot be reached, or something else answers at its address."""
    UNAUTHORIZED = 4
    """The API refuses the key."""
    REFUSED = 5
    """The API refuses the request."""
    HELD = 6
    """Another live process works on it, or may do so."""
    REPLACED = 7
    """The session was taken over while we worked on it; all work was stopped."""
    INTERRUPTED = 130
    """Stopped by SIGINT; the session is paused."""
    TERMINATED = 143
    """Stopped by SIGTERM or SIGHUP; the session has failed."""
