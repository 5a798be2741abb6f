"""What a container's health check runs, `python -m memory_service.container_health`: it asks the service beside it.

Which address it listens on, and with or without TLS, stands in the environment they share.
"""

import socket

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memory_service import config
from memory_service.failures import FAILED, complain, end_process, exit_status_of
from memory_service.settings.address import split_address

TIMEOUT_S = 3.0


def run() -> int:
    """Returns the exit status: 0 when the service serves."""
    settings = config.load()
    if settings.ops_listen != "off":
        address, tls = settings.ops_listen, settings.ops_tls
    else:
        address, tls = settings.listen, settings.tls_certificate is not None
    problem = _unreachable(address) if tls else _not_serving(address)
    if problem is None:
        return 0
    complain(f"{address}: {problem}")
    return FAILED


def _not_serving(address: str) -> str | None:
    """Returns what the service says, unless it says that it serves."""
    # Not through a proxy that the environment names for the provider.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _unreachable(address: str) -> str | None:
    """Returns why nobody takes a connection: of TLS, neither a trusted name nor a client's certificate is at hand."""
    try:
        socket.create_connection(split_address(address), TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return None


if __name__ == "__main__":
    end_process(exit_status_of(run))
