"""Trying out a TLS certificate: a handshake in memory finds whatever a client would stumble over."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EXPIRED, NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


class HandshakeFailed(Exception):
    """A certificate and its key will not do; the message names the file and says why."""


def try_certificate(certificate: Path, key: Path) -> datetime:
    """Returns when a certificate expires, after a handshake with it.

    Raises:
        HandshakeFailed: When files hold something else, do not belong together, or it is not the time for them.
    """
    server = _loaded(certificate, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate itself is what is trusted: who signed it is for clients to judge.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cafile=certificate)
        described = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        reason = {EXPIRED: "has expired", NOT_YET_VALID: "is not valid yet"}.get(error.verify_code)
        raise HandshakeFailed(f"{certificate} {reason or f'is refused: {error.verify_message}'}") from None
    except ssl.SSLError as error:
        raise HandshakeFailed(f"{certificate} cannot be used: {error.reason}") from None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(described["notAfter"]), UTC)


def _loaded(certificate: Path, key: Path) -> ssl.SSLContext:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def no_password() -> str:
        raise HandshakeFailed(f"{key} is protected by a password; a key without one is needed")

    try:
        _require_pem(certificate, "certificate")
        _require_pem(key, "private key")
        server.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise HandshakeFailed(f"{key} is not the key of the certificate in {certificate}") from None
        reason = error.reason or "not PEM"
        raise HandshakeFailed(f"{certificate} or {key} is damaged: {reason}") from None
    except OSError as error:
        raise HandshakeFailed(f"cannot read {certificate} or {key}: {error.strerror}") from None
    return server


def _require_pem(file: Path, what: str) -> None:
    # OpenSSL does not say which of the two files it means, and of a file without PEM not even what is wrong.
    if f"{what.upper()}-----".encode() not in file.read_bytes():
        raise HandshakeFailed(f"{file} holds no {what} in PEM")


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Returns what the client learns of the server's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    pending = list(ends)
    while pending:
        for end in list(pending):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(end)
    return ends[0].getpeercert() or {}
