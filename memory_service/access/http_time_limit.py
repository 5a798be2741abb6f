"""HTTP requests that take no longer than they may once they are connected, whatever their other end does.

The timeout of a socket begins anew with every byte: who sends one now and then holds whoever reads for hours, also
within a header, where nobody could look at a clock. Connecting, where need be through a proxy, has that timeout alone.
"""

import socket
import ssl
import threading
import urllib.request
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Any, Self


class TimeLimit:
    """Shuts connections down when the time is over. A context manager."""

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.over = False
        """Whether the time is."""

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            while self._sockets:
                self._sockets.pop().close()

    def bound(self, sock: socket.socket) -> None:
        """Shuts this connection down, too."""
        with self._lock:
            # A descriptor of our own: TLS takes the socket's away.
            self._sockets.append(sock.dup())
            if self.over:
                self._shut_down()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            self._shut_down()

    def _shut_down(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):  # closed by its other end
                sock.shutdown(socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    """A connection that is bound by a limit as soon as there is one."""

    limit: TimeLimit

    def connect(self) -> None:
        """Connects."""
        super().connect()
        self.limit.bound(self.sock)


class _TlsConnection(HTTPSConnection, _Connection):
    """The same with TLS: HTTPSConnection connects through the class above, and begins its handshake after that."""


class TimeLimitedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http:// and https:// over connections bound by a limit."""

    def __init__(self, limit: TimeLimit, context: ssl.SSLContext) -> None:
        super().__init__()
        self._limit = limit
        self._tls = context

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Opens http://."""
        return self.do_open(self._bound_by_limit(_Connection), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        """Opens https://."""
        return self.do_open(self._bound_by_limit(_TlsConnection), req, context=self._tls)

    def _bound_by_limit(self, kind: type[_Connection]) -> Any:
        def connection(host: str, **options: Any) -> _Connection:
            made = kind(host, **options)
            made.limit = self._limit
            return made

        return connection
