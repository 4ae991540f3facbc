"""What becomes of a command's processes, which may be gone between two looks."""

import psutil


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_held(shell: psutil.Process) -> bool:
    """Whether a shell is suspended, or waits for a child that was before it could begin (vfork)."""
    return any(map(is_suspended, [shell, *shell.children()]))


def is_suspended(process: psutil.Process) -> bool:
    """Whether it was stopped and has not gone on."""
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:  # a child of a moment
        return False
