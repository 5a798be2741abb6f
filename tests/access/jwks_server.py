"""An issuer of tokens: keys of its own, published over HTTP on a real socket, and whatever it signs with them."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "memory-service"

Reply = Callable[[BaseHTTPRequestHandler], None]


class Issuer:
    """Publishes keys at `jwks_url` and signs tokens. Each of its signing keys has an id."""

    def __init__(self, address: str, *, scheme: str = "http") -> None:
        self.url = f"{scheme}://{address}"
        self.jwks_url = f"{self.url}/keys"
        self.requests: list[str] = []
        """The paths asked for."""
        self.reply: Reply | None = None
        """Answers in its place, where a test wants it to behave badly."""
        self.keys: dict[str, tuple[str, Any]] = {}
        """The algorithm and the private key, by id."""
        self.add("first", "ES256")

    def add(self, key_id: str, algorithm: str, key: Any = None) -> None:
        """Begins to sign with another key, and publishes it."""
        self.keys[key_id] = algorithm, key or _new_key(algorithm)

    def sign(self, claims: dict[str, Any] | None = None, *, key_id: str = "first", **changed: Any) -> str:
        """Returns a token that is good unless claims say otherwise; a claim that is None is left out."""
        algorithm, key = self.keys[key_id]
        return jwt.encode(self.claims(**(claims or {}), **changed), key, algorithm=algorithm, headers={"kid": key_id})

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Returns the claims of a good token, some of them changed."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "role": "writer", "iat": now, "exp": now + 600}
        return {name: value for name, value in {**good, **changed}.items() if value is not None}

    def published(self) -> list[dict[str, Any]]:
        """Returns the public keys as JWKs."""
        return [_described(key_id, algorithm, key) for key_id, (algorithm, key) in self.keys.items()]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers a request."""
        self.requests.append(handler.path)
        if self.reply is not None:
            self.reply(handler)
        elif handler.path == "/.well-known/openid-configuration":
            send(handler, {"issuer": self.url, "jwks_uri": self.jwks_url})
        elif handler.path == "/keys":
            send(handler, {"keys": self.published()})
        else:
            send(handler, {}, status=404)


def send(handler: BaseHTTPRequestHandler, document: Any, *, status: int = 200, **headers: str) -> None:
    """Answers with a document in JSON."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def running_issuer(tls: tuple[Path, Path] | None = None) -> Iterator[Issuer]:
    """Yields an issuer that answers on a free port of this machine, with TLS where there is a certificate and key."""

    class Handler(BaseHTTPRequestHandler):
        """Hands requests on."""

        def do_GET(self) -> None:
            """Answers."""
            issuer.answer(self)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        # The handshake is made by the thread of the connection, with its first byte.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    issuer = Issuer(f"127.0.0.1:{server.server_address[1]}", scheme="http" if tls is None else "https")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _new_key(algorithm: str) -> Any:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def _described(key_id: str, algorithm: str, key: Any) -> dict[str, Any]:
    kind = OKPAlgorithm if algorithm == "EdDSA" else ECAlgorithm if algorithm.startswith("ES") else RSAAlgorithm
    described = json.loads(kind.to_jwk(key.public_key()))
    return {**described, "kid": key_id, "alg": algorithm, "use": "sig"}
