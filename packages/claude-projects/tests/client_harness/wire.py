"""A wire between client and server that can be cut in the middle of a conversation.

It relays TCP connections, one request each: the client is told ``Connection: close`` by whatever the server
answers, or hears nothing at all.
"""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

Fault = Literal["pass", "lose answer", "lose request"]


class Wire:
    """Listens on ``port`` and relays to ``target``; each entry of ``faults`` is the fate of one request.

    ``faults`` may also hold bytes: an answer that somebody between the two gives in the server's place.
    ``seen`` holds the first line of every request.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.faults: deque[Fault | bytes] = deque()
        self.seen: list[str] = []
        self.on_request: Callable[[str], None] = lambda _: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        # Closing a listening socket does not wake a thread that waits on it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                self._relay(client)

    def _relay(self, client: socket.socket) -> None:
        request = _read_message(client)
        if not request:
            return
        line = request.split(b"\r\n", 1)[0].decode()
        self.seen.append(line)
        fault = self.faults.popleft() if self.faults else "pass"
        if fault == "lose request":
            return
        if isinstance(fault, bytes):
            client.sendall(fault)
            return
        request = request.replace(b"\r\nConnection: keep-alive", b"\r\nConnection: close", 1)
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            server.sendall(request)
            answer = _read_message(server)
        self.on_request(line)
        if fault == "pass":
            client.sendall(answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))


def _read_message(sock: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        part = sock.recv(65536)
        if not part:
            return received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        part = sock.recv(65536)
        if not part:
            break
        body += part
    return head + b"\r\n\r\n" + body


def answer(status: str, *headers: str, body: str = "") -> bytes:
    """An answer in somebody else's words."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
