"""The TLS certificate of the server: read from its files, tried out, and replaced when the files change.

Versions below TLS 1.2 are refused by gRPC itself.
"""

import ssl
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import structlog

from db.periodic import PeriodicThread
from memory_service.config import Settings
from memory_service.handshake import HandshakeFailed, try_certificate

log = structlog.get_logger(__name__)

# The files are small: reading all of them takes 50 µs, and no change of their contents goes unseen.
CHECK_S = 1.0
EXPIRES_SOON = timedelta(days=14)
WARN_EVERY_S = 86_400.0


class CertificateError(Exception):
    """The certificate cannot be used; the message names the file and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Where the certificate is."""

    certificate: Path
    key: Path
    client_ca: Path | None


@dataclass(frozen=True, slots=True)
class _Contents:
    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


class Certificates:
    """The certificate in force; listeners made with `credentials` follow it."""

    def __init__(self, files: CertificateFiles) -> None:
        """Reads the certificate.

        Raises:
            CertificateError: When it cannot be used.
        """
        self._files = files
        self._contents = _read(files)
        self._seen = self._contents
        self._complaint = ""
        self._expires_at = _try_out(files, self._contents)
        self._configuration = _configuration(self._contents)
        self._thread = PeriodicThread("tls-certificate", self.check, interval_s=CHECK_S)
        _warn_of_readable_key(files.key)
        self._say_loaded()

    def start(self) -> None:
        """Begins to watch the files."""
        self._thread.start()

    def close(self) -> None:
        """Ends that."""
        self._thread.close()

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials for a listener: each connection is made with the certificate in force then."""
        configuration = self._configuration
        # types-grpcio does not know that None stands for "as before".
        follower: Any = _Follower(lambda: self._configuration, configuration)
        return grpc.dynamic_ssl_server_credentials(
            configuration,
            follower,
            require_client_authentication=self._files.client_ca is not None,
        )

    def check(self) -> None:
        """Reads the files, and takes what is new in them when it has stayed the same since the last look.

        A certificate and its key are not replaced in the same instant, and files may be half written.
        """
        try:
            self._replace()
        except CertificateError as error:
            if str(error) != self._complaint:  # said once, not every second
                self._complaint = str(error)
                log.error("tls_certificate_not_replaced", error=str(error))  # noqa: TRY400 - no defect
        else:
            self._complaint = ""
        if self._expires_soon and time.monotonic() - self._said_at >= WARN_EVERY_S:
            self._say_loaded()

    def _replace(self) -> None:
        contents = _read(self._files)
        settled, self._seen = contents == self._seen, contents
        if not settled or contents == self._contents:
            return
        self._expires_at = _try_out(self._files, contents)
        self._contents = contents
        self._configuration = _configuration(contents)
        self._say_loaded()

    @property
    def _expires_soon(self) -> bool:
        return self._expires_at - datetime.now(UTC) < EXPIRES_SOON

    def _say_loaded(self) -> None:
        self._said_at = time.monotonic()
        say, event = log.info, "tls_certificate_loaded"
        if self._expires_soon:
            say, event = log.warning, "tls_certificate_expires_soon"
        say(
            event,
            file=str(self._files.certificate),
            expires_at=self._expires_at.isoformat(),
            client_certificates=self._files.client_ca is not None,
        )


class _Follower:
    """Tells gRPC, which asks before each handshake on a thread of its own, whether the certificate is another one."""

    def __init__(
        self,
        current: Callable[[], grpc.ServerCertificateConfiguration],
        initial: grpc.ServerCertificateConfiguration,
    ) -> None:
        self._current = current
        self._told = initial
        self._lock = threading.Lock()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns a certificate that gRPC has not been told of, else None."""
        with self._lock:
            current = self._current()
            if current is self._told:
                return None
            self._told = current
            return current


def files_of(settings: Settings) -> CertificateFiles | None:
    """Returns the configured files, None without TLS."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return CertificateFiles(
        certificate=settings.tls_certificate, key=settings.tls_key, client_ca=settings.tls_client_ca
    )


def open_certificates(settings: Settings, closing: ExitStack) -> Certificates | None:
    """Returns the configured certificate, watched until `closing` ends it; None without TLS.

    Raises:
        CertificateError: When it cannot be used.
    """
    files = files_of(settings)
    if files is None:
        return None
    certificates = Certificates(files)
    certificates.start()
    closing.callback(certificates.close)
    return certificates


def require_usable(files: CertificateFiles) -> datetime:
    """Returns when the certificate expires.

    Raises:
        CertificateError: When it cannot be used.
    """
    return _try_out(files, _read(files))


def _read(files: CertificateFiles) -> _Contents:
    return _Contents(
        _bytes_of(files.certificate),
        _bytes_of(files.key),
        None if files.client_ca is None else _bytes_of(files.client_ca),
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from None


def _try_out(files: CertificateFiles, contents: _Contents) -> datetime:
    """Returns when the certificate expires."""
    if files.client_ca is not None:
        _require_authorities(files.client_ca)
    try:
        expires_at = try_certificate(files.certificate, files.key)
    except HandshakeFailed as error:
        raise CertificateError(str(error)) from None
    # What was tried are the files. They may have changed since they were read.
    if _read(files) != contents:
        raise CertificateError(f"{files.certificate} or {files.key} changed while they were read")
    return expires_at


def _require_authorities(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise CertificateError(f"{path} holds no certificates in PEM") from None
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    if ends and max(ends) < datetime.now(UTC).timestamp():
        raise CertificateError(f"the authorities in {path} have expired")


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.certificate)], root_certificates=contents.client_ca
    )


def _warn_of_readable_key(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & stat.S_IROTH:
        log.warning("tls_key_readable_by_others", file=str(path), mode=oct(stat.S_IMODE(mode)))
