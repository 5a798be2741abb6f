"""An embeddings provider to test against: an HTTP server on loopback that speaks OpenAI's protocol and can misbehave.

    with Provider() as provider:
        ...  # MEMORY_EMBEDDER=openai, MEMORY_OPENAI_BASE_URL=provider.base_url
        provider.fail(Status(429, headers={"Retry-After": "1"}))  # the next request only
        provider.fail(Status(503), always=True)  # every request, until provider.recover()

Faults are Status, Hang, Drip, Reset and Tamper. Texts with TOO_LONG or FORBIDDEN in them are refused the way OpenAI
refuses texts that are too long or otherwise invalid.
"""

import base64
import json
import socket
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

TOO_LONG = "<too long>"
FORBIDDEN = "<forbidden>"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """An error answer."""

    status: int
    message: str = "something went wrong"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The answer's body, in OpenAI's form."""
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer for this long, or until the provider closes; then the right one."""

    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Drip:
    """The right answer, but one byte at a time with these pauses."""

    pause_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Reset:
    """A connection reset (RST) in place of an answer."""


@dataclass(frozen=True, slots=True)
class Tamper:
    """The right answer, changed by `change`: another JSON value, or bytes to send as they are."""

    change: Callable[[Json], Json | list[Any] | bytes]


Fault = Status | Hang | Drip | Reset | Tamper


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    headers: Mapping[str, str]
    """By name in lower case."""
    body: Json

    @property
    def texts(self) -> list[str]:
        """What was to be embedded."""
        return list(self.body["input"])


def vector_of(text: str, dimensions: int) -> NDArray[np.float32]:
    """Returns the embedding this provider gives `text`: the sum of a fixed random vector per word.

    Texts that share words are close, as with a real model.
    """
    words = text.lower().split()
    vectors = [np.random.default_rng(zlib.crc32(word.encode())).standard_normal(dimensions) for word in words]
    total: NDArray[np.float64] = np.sum(vectors, axis=0)
    return total.astype(np.float32)


def vectors_of(texts: Sequence[str], dimensions: int) -> NDArray[np.float32]:
    """Returns the embeddings this provider gives `texts`, shape (len(texts), dimensions)."""
    return np.stack([vector_of(text, dimensions) for text in texts])


class Provider:
    """The provider; its attributes may be changed while it runs."""

    def __init__(self, *, dimensions: int = 8, api_key: str | None = None) -> None:
        self.dimensions = dimensions
        """The length of vectors of which the request leaves the choice to the provider."""
        self.api_key = api_key
        """Answer 401 to any other; None accepts all."""
        self.honours_base64 = True
        """False: vectors are lists of numbers, whatever the request says, as with many servers."""
        self.names_index = False
        """Whether refusals of a text say which one it is."""
        self.max_texts: int | None = None
        """Answer 400 to requests of more texts."""
        self.requests: list[Request] = []
        """Every request so far, in the order of arrival."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._faults: deque[Fault] = deque()
        self._constant_fault: Fault | None = None
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        """The address to configure, with its version."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def fail(self, *faults: Fault, always: bool = False) -> None:
        """Lets the next requests meet `faults`, one each; with `always`, all requests the one fault."""
        with self._lock:
            if always:
                (self._constant_fault,) = faults
            else:
                self._faults.extend(faults)

    def recover(self) -> None:
        """Forgets all faults."""
        with self._lock:
            self._faults.clear()
            self._constant_fault = None

    def take(self, request: Request) -> Fault | None:
        """Records `request` and returns the fault it shall meet."""
        with self._lock:
            self.requests.append(request)
            return self._faults.popleft() if self._faults else self._constant_fault

    def refusal(self, request: Request) -> Status | None:
        """Returns what is wrong with `request`, None where nothing is."""
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            sent = request.headers.get("authorization", "")
            return Status(401, f"Incorrect API key provided: {sent}", code="invalid_api_key")
        if self.max_texts is not None and len(request.texts) > self.max_texts:
            return Status(400, f"batch size is invalid, it should not be larger than {self.max_texts}")
        for index, text in enumerate(request.texts):
            where = f"'input[{index}]'" if self.names_index else "'$.input'"
            if TOO_LONG in text:
                return Status(400, f"Invalid {where}: maximum input length is 8192 tokens.")
            if not text or FORBIDDEN in text:
                return Status(400, f"{where} is invalid: {text!r}. Please check the API reference.")
        return None

    def answer(self, request: Request) -> Json:
        """Returns the right answer to `request`."""
        dimensions = int(request.body.get("dimensions", self.dimensions))
        as_base64 = self.honours_base64 and request.body.get("encoding_format") == "base64"
        data: list[Json] = []
        for index, text in enumerate(request.texts):
            vector = vector_of(text, dimensions)
            embedding = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()
            data.append({"object": "embedding", "index": index, "embedding": embedding})
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        return {"object": "list", "data": data, "model": request.body["model"], "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, provider: Provider) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.provider = provider

    def shutdown_request(self, request: Any) -> None:
        """Closes the connection without the half-close before it, which would turn Reset into a plain end."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet: clients that give up break the pipe, and some tests make them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, as real providers do
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        provider = self.server.provider
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/embeddings":
            self._send(404, Status(404, "unknown address").body)
            return
        request = Request({name.lower(): value for name, value in self.headers.items()}, json.loads(content))
        fault = provider.take(request)
        if fault is None or isinstance(fault, Hang | Drip | Tamper):
            fault = provider.refusal(request) or fault
        match fault:
            case Status():
                self._send(fault.status, fault.body, fault.headers)
            case Reset():
                # Lingering for 0 s makes closing send RST in place of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            case Tamper():
                changed = fault.change(provider.answer(request))
                self._send(200, changed if isinstance(changed, bytes) else json.dumps(changed).encode())
            case Hang():
                provider.closing.wait(fault.seconds)
                self._send(200, json.dumps(provider.answer(request)).encode())
            case Drip():
                self._send(200, json.dumps(provider.answer(request)).encode(), pause_s=fault.pause_s)
            case None:
                self._send(200, json.dumps(provider.answer(request)).encode())

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, pause_s: float = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not pause_s:
            self.wfile.write(body)
            return
        for byte in body:
            if self.server.provider.closing.wait(pause_s):
                break
            self.wfile.write(bytes([byte]))

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the overridden method's name
        """Keeps quiet."""
