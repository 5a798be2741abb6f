"""Addresses to listen on: which need TLS and authentication, and why one cannot be bound."""

import errno
import ipaddress
import os
import socket
from contextlib import ExitStack

from memory_service.config import Settings
from memory_service.settings.address import split_address

TLS = "TLS (MEMORY_TLS_CERTIFICATE and MEMORY_TLS_KEY)"
AUTHENTICATION = "authentication (MEMORY_AUTH, or client certificates by MEMORY_TLS_CLIENT_CA)"

TAKEN = (
    "the port is taken by another process, perhaps by this service; end it, or choose other addresses "
    "(MEMORY_LISTEN, MEMORY_OPS_LISTEN, MEMORY_METRICS_LISTEN)"
)


class AddressError(Exception):
    """An address cannot be listened on, or must not be; the message says why."""


def require_protection(settings: Settings) -> None:
    """Refuses a `listen` address that other machines can reach, unless calls are encrypted and authenticated.

    Raises:
        AddressError: With what is missing, when any address the host stands for is not of this machine alone.
    """
    missing = []
    if settings.tls_certificate is None:
        missing.append(TLS)
    if settings.auth == "off" and settings.tls_client_ca is None:
        missing.append(AUTHENTICATION)
    if missing and not is_loopback(settings.listen):
        raise AddressError(
            f"refusing to listen on {settings.listen}, which other machines can reach, "
            f"without {' and '.join(missing)}; "
            "--insecure (MEMORY_INSECURE=true) allows it where the network is trusted"
        )


def is_loopback(address: str) -> bool:
    """Whether every address the host stands for is of this machine alone.

    Raises:
        AddressError: When the host is not known.
    """
    return all(ipaddress.ip_address(socket_address[0]).is_loopback for _, socket_address in _resolve(address))


def require_free(address: str) -> None:
    """Binds an address and lets go of it: gRPC does not say why it cannot.

    Raises:
        AddressError: With the reason, when the port is taken, or none of the host's addresses can be bound.
    """
    problems = []
    for family, socket_address in (resolved := _resolve(address)):
        try:
            _bind(family, socket_address, share=False).close()
        except OSError as error:
            # One address of several may be missing, such as ::1 of localhost where there is no IPv6.
            problems.append(error)
    taken = [problem for problem in problems if problem.errno == errno.EADDRINUSE]
    if taken or len(problems) == len(resolved):
        raise _explained(address, (taken or problems)[0])


def reserve(address: str) -> tuple[socket.socket, str]:
    """Binds an address for several processes to share (SO_REUSEPORT), without listening.

    Returns the socket, to be kept open as long as the port is to stay theirs, and the address with the port bound.

    Raises:
        AddressError: When it cannot be bound, or is bound already: another service may share its ports, too.
    """
    require_free(address)
    family, socket_address = _resolve(address)[0]
    try:
        sock = _bind(family, socket_address, share=True)
    except OSError as error:
        raise _explained(address, error) from None
    return sock, with_port(address, sock.getsockname()[1])


def with_port(address: str, port: int) -> str:
    """Returns the address with its port replaced."""
    return f"{address.rpartition(':')[0]}:{port}"


def nth(address: str, index: int) -> str:
    """Returns the address `index` ports further; "off" and port 0, a free one for everybody, stay."""
    if address == "off" or not (port := split_address(address)[1]):
        return address
    return with_port(address, port + index)


def _resolve(address: str) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None
    return [(family, (str(where[0]), port)) for family, _, _, _, where in found]


def _bind(family: socket.AddressFamily, socket_address: tuple[str, int], *, share: bool) -> socket.socket:
    with ExitStack() as failing:
        sock = failing.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # As gRPC does it: [::] takes the IPv4 port as well.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(socket_address)
        failing.pop_all()
    return sock


def _explained(address: str, error: OSError) -> AddressError:
    taken = error.errno == errno.EADDRINUSE
    reason = TAKEN if taken else os.strerror(error.errno or 0).lower()
    return AddressError(f"cannot listen on {address}: {reason}")
