"""Which service a transfer goes to, how that one proves who it is, and how the transfer does."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from memory_service.bulk.errors import TransferError, UnreadableFile

DEFAULT_ADDRESS = "127.0.0.1:50051"
API_KEY_VARIABLE = "MEMORY_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A service, and what it takes to be let in."""

    address: str
    tls: bool = False
    authorities: Path | None = None
    """PEM file of who may have signed the server's certificate; None: who this machine trusts."""
    certificate: Path | None = None
    """PEM file of the client's certificate, for services that ask for one."""
    key: Path | None = None
    credential: str | None = field(default=None, repr=False)
    """An API key or a token."""

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Returns what TLS takes, None without TLS.

        Raises:
            TransferError: When a file cannot be read.
        """
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_bytes_of(self.authorities),
            private_key=_bytes_of(self.key),
            certificate_chain=_bytes_of(self.certificate),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which service it is."""
    parser.add_argument("--address", metavar="HOST:PORT", default=DEFAULT_ADDRESS, help="the service (%(default)s)")
    parser.add_argument("--tls", action="store_true", help="encrypt, trusting the authorities this machine trusts")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="encrypt, trusting the authorities in this PEM file")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="client certificate in PEM, where one is asked for")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key in PEM")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"API key or token; in {API_KEY_VARIABLE} it does not show in the list of processes",
    )


def target_of(options: dict[str, Any]) -> Target:
    """Returns the service that the arguments and the environment say.

    Raises:
        TransferError: When they do not go together.
    """
    if (options["cert"] is None) != (options["key"] is None):
        raise TransferError("--cert and --key need each other")
    credential = options["api_key"] or os.environ.get(API_KEY_VARIABLE) or None
    if credential is not None and not (credential.isascii() and credential.isprintable()):
        raise TransferError("the API key has characters that no key has")
    return Target(
        address=options["address"],
        tls=options["tls"] or options["ca"] is not None or options["cert"] is not None,
        authorities=options["ca"],
        certificate=options["cert"],
        key=options["key"],
        credential=credential,
    )


def with_credentials(channel: grpc.Channel, target: Target) -> grpc.Channel:
    """Returns a channel whose calls bring the target's credential."""
    if target.credential is None:
        return channel
    # Not gRPC's call credentials: they refuse channels without TLS, also those within one machine.
    return grpc.intercept_channel(channel, _Bearer(target.credential))


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: list[tuple[str, str | bytes]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Adds the credential to each call."""

    def __init__(self, credential: str) -> None:
        self._added = ("authorization", f"Bearer {credential}")

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Makes a unary call."""
        return continuation(self._with(client_call_details), request)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        """Makes a streaming call."""
        return continuation(self._with(client_call_details), request_iterator)

    def _with(self, details: Any) -> Any:
        return _Details(
            method=details.method,
            timeout=details.timeout,
            metadata=[*(details.metadata or ()), self._added],
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
            compression=details.compression,
        )


def _bytes_of(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(path, (error.strerror or str(error)).lower()) from None
