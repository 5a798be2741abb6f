"""What there is to call: the RPCs of every service in the contract, as their descriptors tell."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from memory_service import v1


@dataclass(frozen=True, slots=True)
class Rpc:
    """An RPC."""

    service: str
    name: str
    request: Descriptor
    reply: type[Any]
    streams: bool
    """Whether it takes and returns streams."""

    @property
    def path(self) -> str:
        """Where gRPC sends its calls."""
        return f"/{self.service}/{self.name}"


def rpcs() -> list[Rpc]:
    """Returns the RPCs of all services, by path."""
    return sorted(map(_rpc, _methods()), key=lambda rpc: rpc.path)


def _methods() -> Iterator[MethodDescriptor]:
    for found in pkgutil.iter_modules(v1.__path__):
        if found.name.endswith("_pb2"):
            module = importlib.import_module(f"{v1.__name__}.{found.name}")
            for service in module.DESCRIPTOR.services_by_name.values():
                yield from service.methods


def _rpc(method: MethodDescriptor) -> Rpc:
    assert method.client_streaming == method.server_streaming, f"{method.full_name} streams one way only"
    return Rpc(
        service=method.containing_service.full_name,
        name=method.name,
        request=method.input_type,
        reply=message_factory.GetMessageClass(method.output_type),
        streams=method.client_streaming,
    )
