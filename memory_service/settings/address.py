"""Addresses to listen on, as settings hold them."""

MAX_PORT = 65_535


def split_address(address: str) -> tuple[str, int]:
    """Splits "host:port" or "[::1]:port"; raises ValueError for anything else."""
    host, separator, port = address.rpartition(":")
    if not separator or not host.strip("[]") or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise ValueError(f"{address!r} is not HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{address!r}: put an IPv6 host in brackets, for example [::1]:50051")
    return host.strip("[]"), int(port)
