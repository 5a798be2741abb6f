"""The .proto files that reflection serves, with the comments of the contract."""

import importlib.resources
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"


class Descriptors:
    """A set of .proto files, found by name, by any symbol in them, or by extension number."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self._files: dict[str, FileDescriptorProto] = {}
        self._file_of_symbol: dict[str, str] = {}
        self._file_of_extension: dict[str, dict[int, str]] = {}
        self.services: list[str] = []
        """Full names of the services, sorted."""
        for file in files:
            if file.name not in self._files:
                self._files[file.name] = file
                self._index(file)
        self.services.sort()
        # A client asks for a file to have all it imports, too.
        self._closures = {name: [file.SerializeToString() for file in self._closure(name)] for name in self._files}

    def named(self, name: str) -> list[bytes] | None:
        """Returns a file and all it imports, serialized; None when there is no such file."""
        return self._closures.get(name)

    def defining(self, symbol: str) -> list[bytes] | None:
        """Returns the file that defines a message, field, enum, enum value, service or method."""
        return self._closures.get(self._file_of_symbol.get(symbol, ""))

    def extending(self, message: str, number: int) -> list[bytes] | None:
        """Returns the file that extends `message` by field `number`."""
        return self._closures.get(self._file_of_extension.get(message, {}).get(number, ""))

    def extension_numbers(self, message: str) -> list[int] | None:
        """Returns the numbers of the known extensions of a message; None when there is no such message."""
        if message not in self._file_of_symbol:
            return None
        return sorted(self._file_of_extension.get(message, {}))

    def _closure(self, name: str) -> Iterator[FileDescriptorProto]:
        seen: dict[str, None] = {}
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in self._files and current not in seen:
                seen[current] = None
                waiting.extend(self._files[current].dependency)
        return (self._files[name] for name in seen)

    def _index(self, file: FileDescriptorProto) -> None:
        scope = f"{file.package}." if file.package else ""
        names = [*self._messages(file, scope, file.message_type), *_enums(scope, file.enum_type)]
        for service in file.service:
            self.services.append(scope + service.name)
            names.append(scope + service.name)
            names.extend(f"{scope}{service.name}.{method.name}" for method in service.method)
        names.extend(self._extensions(file, scope, file.extension))
        self._file_of_symbol.update(dict.fromkeys(names, file.name))

    def _messages(self, file: FileDescriptorProto, scope: str, messages: Iterable[DescriptorProto]) -> Iterator[str]:
        for message in messages:
            name = scope + message.name
            yield name
            yield from (f"{name}.{field.name}" for field in message.field)
            yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
            yield from _enums(f"{name}.", message.enum_type)
            yield from self._extensions(file, f"{name}.", message.extension)
            yield from self._messages(file, f"{name}.", message.nested_type)

    def _extensions(
        self, file: FileDescriptorProto, scope: str, extensions: Iterable[FieldDescriptorProto]
    ) -> Iterator[str]:
        for extension in extensions:
            extended = extension.extendee.removeprefix(".")
            self._file_of_extension.setdefault(extended, {})[extension.number] = file.name
            yield scope + extension.name


def _enums(scope: str, enums: Iterable[EnumDescriptorProto]) -> Iterator[str]:
    for enum in enums:
        yield scope + enum.name
        # Values are siblings of their enum, as in C++.
        yield from (scope + value.name for value in enum.value)


def served() -> Descriptors:
    """Returns what this service serves: the contract, error details (to print them), health and reflection."""
    contract = importlib.resources.files("memory_service.v1").joinpath("memory.protoset").read_bytes()
    modules = (status_pb2, error_details_pb2, health_pb2, reflection_pb2)
    # The contract first: where it imports what the others import, its copies have the comments.
    files = list(FileDescriptorSet.FromString(contract).file)
    for module in modules:
        files.extend(_with_imports(module.DESCRIPTOR))
    files.append(_as_v1(_proto(reflection_pb2.DESCRIPTOR)))
    return Descriptors(files)


def _with_imports(descriptor: Any) -> Iterator[FileDescriptorProto]:
    yield _proto(descriptor)
    for dependency in descriptor.dependencies:
        yield from _with_imports(dependency)


def _proto(descriptor: Any) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(descriptor.serialized_pb)


def _as_v1(file: FileDescriptorProto) -> FileDescriptorProto:
    """Returns the v1alpha descriptor as v1, which differs in nothing but its names."""
    file.ClearField("options")  # package names for other languages, and that v1alpha is deprecated
    return text_format.Parse(text_format.MessageToString(file).replace("v1alpha", "v1"), FileDescriptorProto())
