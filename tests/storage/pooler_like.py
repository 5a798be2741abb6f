"""A stand-in for poolers: it passes everything on, and tells its clients a process id of its own, as they all do."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

BACKEND_KEY = b"K\x00\x00\x00\x0c"
PORT = 5432


@contextmanager
def pooler_like(url: str) -> Iterator[str]:
    """Yields a way to the database at `url` on which no connection looks like a session of PostgreSQL's."""
    folder = Path(tempfile.mkdtemp(prefix="memory-service-relay-"))
    target = psycopg.conninfo.conninfo_to_dict(url)
    with ExitStack() as closing:
        closing.callback(shutil.rmtree, folder)
        listener = closing.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / f".s.PGSQL.{PORT}"))
        listener.listen()
        accepting = threading.Thread(
            target=_accept, args=[listener, f"{target['host']}/.s.PGSQL.{target['port']}", closing], daemon=True
        )
        accepting.start()
        yield psycopg.conninfo.make_conninfo(url, host=str(folder), port=PORT)
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(listener: socket.socket, target: str, closing: ExitStack) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # shut down
            return
        server = closing.enter_context(socket.socket(socket.AF_UNIX))
        server.connect(target)
        closing.enter_context(client)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=_pass_on, args=[source, sink], daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    told = False
    try:
        while data := source.recv(65_536):
            # PostgreSQL says it once, in the packet that ends the greeting.
            before, key, after = data.partition(BACKEND_KEY)
            if key and not told:
                told = True
                data = before + key + bytes(byte ^ 1 for byte in after[:4]) + after[4:]
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:  # the other side has gone
        return
