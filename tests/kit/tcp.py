"""A wire between two programs that can be cut: a TCP proxy on the loopback, of threads and sockets and nothing else.

A wire passes everything on until it is told otherwise. `reset` resets what is open; `refuse` does so and lets nobody
in, as a server that is down; `strand` keeps what is open and forwards nothing on it, as a NAT that forgot: neither side
is told, and new connections pass. Every change holds when the call returns.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from typing import Self
from urllib.parse import urlsplit, urlunsplit

PIECE = 65536
LATELY = 4096  # bytes
LOOK_S = 0.05  # how soon a connection notices that it was cut
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends RST instead of FIN


class Wire:
    """A proxy to one server, at `127.0.0.1:port`. `opened` counts the connections that were made through it."""

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.opened = 0
        self.port = 0
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._door: socket.socket | None = None
        self.restore()

    @classmethod
    def to(cls, url: str, usual_port: int) -> tuple[Self, str]:
        """A wire to the server of a URL, and the URL by which it is reached through it."""
        parts = urlsplit(url)
        wire = cls(parts.hostname or "127.0.0.1", parts.port or usual_port)
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return wire, urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{wire.port}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.refuse()

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return sum(link.thread.is_alive() for link in self._links)

    def reset(self, first: bytes = b"") -> None:
        """Reset every open connection, stranded ones too; those whose client lately said `first` before the others."""
        with self._lock:
            links, self._links = self._links, set()
        ahead = {link for link in links if first and first in link.said}
        for some in (ahead, links - ahead):
            for link in some:
                link.cut.set()
            for link in some:
                link.thread.join(5)

    def refuse(self, first: bytes = b"") -> None:
        """Let nobody in until `restore`, and reset whoever is in, as `reset` does."""
        with self._lock:
            door, self._door = self._door, None
        if door is not None:
            door.shutdown(socket.SHUT_RDWR)  # wakes whoever waits at it
            door.close()
        self.reset(first)

    def strand(self) -> None:
        """Forward nothing more on the connections that are open, and close none of them."""
        with self._lock:
            for link in self._links:
                link.stranded.set()

    def restore(self) -> None:
        """Let everybody in. What was stranded stays so."""
        if self._door is None:
            self._door = socket.create_server(("127.0.0.1", self.port), backlog=256)
            self.port = self._door.getsockname()[1]
            threading.Thread(target=self._let_in, args=(self._door,), name="wire-door", daemon=True).start()

    def _let_in(self, door: socket.socket) -> None:
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return  # the door was closed
            try:
                link = _Link(client, socket.create_connection(self.server, timeout=5))
            except OSError:
                client.close()
                continue
            with self._lock:
                if door is not self._door:
                    link.cut.set()
                link.thread.start()  # before anybody can find it, and wait for its end
                self._links.add(link)
                self.opened += 1


class _Link:
    """One connection, forwarded in both directions by a thread of its own."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.said = b""  # by the client, lately
        self.cut = threading.Event()
        self.stranded = threading.Event()
        self.thread = threading.Thread(target=self._serve, name="wire-link", daemon=True)

    def _serve(self) -> None:
        ends = (self.client, self.server)
        try:
            self._forward()
        except OSError:
            self.cut.set()  # one side was reset, and so is the other now
        finally:
            for end in ends:
                if self.cut.is_set():
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()

    def _forward(self) -> None:
        other = {self.client: self.server, self.server: self.client}
        with selectors.DefaultSelector() as ready:
            for end in other:
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ready.register(end, selectors.EVENT_READ)
            while not self.cut.is_set():
                if self.stranded.is_set():
                    self.cut.wait()
                    return
                for key, _ in ready.select(LOOK_S):
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    piece = end.recv(PIECE)
                    if not piece:
                        return
                    if end is self.client:
                        self.said = (self.said + piece)[-LATELY:]
                    if not self.cut.is_set() and not self.stranded.is_set():
                        other[end].sendall(piece)
