"""uvicorn's HTTP protocol, which also hangs up on clients whose headers never end.

uvicorn bounds the time between two requests of a connection, and ``deadline`` that from a request's
headers on. In between, a client that drips its headers, or sends them without end, would hold a
connection, and memory, for ever.
"""

import asyncio
import errno
import os
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024


class TimedHeaders(HttpToolsProtocol):
    """Headers are there ``timeout_s`` after their first byte, or after connecting; or it closes.

    What is left of a body that was answered before its end is read and dropped for as long: closing
    at once would take the answer away from a client, or a proxy, that still sends.
    """

    def __init__(self, *args: Any, timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._waited_bytes = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        if self._timer is not None and not self._in_body:
            self._waited_bytes += len(data)
            # what comes at once may hold a body as well, and is bounded by the socket's buffer
            if self._waited_bytes - len(data) > MAX_HEADER_BYTES:
                self.transport.close()
                return
        super().data_received(data)
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._begin()  # an empty line, say, which ends uvicorn's patience and begins nothing

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._end()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        if self._timer is None:
            self._waited_bytes = 0
            self._timer = self.loop.call_later(self._timeout_s, self.transport.close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def why_not_listening(host: str, port: int) -> str | None:
    """Address and reason, where another process has the port or this user may not have it.

    uvicorn finds that out itself, but only after models began to load, and goes on to talk of it.
    Whatever else is wrong with an address is left to it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return f"{host}:{port} ({os.strerror(error.errno)})"
    return None
