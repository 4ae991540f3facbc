"""Ports for servers that a test starts; what the tests of all packages share."""

import atexit
import socket


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on, and that nobody else is given.

    It stays bound until this process ends, without anybody listening: the system gives it to no other
    process, a connection to it is refused, and a server may listen on it as often as it likes, as long as
    it sets SO_REUSEADDR, which is usual.
    """
    holder = socket.socket()
    atexit.register(holder.close)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return int(holder.getsockname()[1])
