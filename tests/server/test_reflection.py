"""Reflection: v1 and v1alpha, with comments, as buf curl and raw clients ask for it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as reflection

from memory_service.descriptors import Descriptors
from memory_service.v1 import memory_pb2 as pb
from tests.server.conftest import Listener, StartListener, servicer_of

BUF = Path(sys.executable).parent / "buf"
VERSIONS = ("v1", "v1alpha")
FILE = "memory_service/v1/memory.proto"
SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "memory_service.v1.AdminService",
    "memory_service.v1.MemoryService",
]


@pytest.fixture
def listener(start_listener: StartListener) -> Listener:
    """A service of one thread that answers GetStats."""
    return start_listener(servicer_of(GetStats=lambda _request, _context: pb.GetStatsResponse()), threads=1)


def ask(channel: grpc.Channel, *requests: Any, version: str = "v1") -> list[Any]:
    """Returns the replies to reflection requests, sent over one stream."""
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection.ServerReflectionRequest.SerializeToString,
        reflection.ServerReflectionResponse.FromString,
    )
    return list(call(iter(requests), timeout=5))


def files_in(response: Any) -> dict[str, FileDescriptorProto]:
    files = map(FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in files}


def buf_curl(*arguments: str, version: str = "v1") -> str:
    """Returns what buf curl prints, which gets the schema by reflection."""
    result = subprocess.run(
        [
            BUF,
            "curl",
            "--protocol",
            "grpc",
            "--http2-prior-knowledge",
            f"--reflect-protocol=grpc-{version}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_buf_curl_lists_services_and_methods(listener: Listener, version: str) -> None:
    url = f"http://{listener.addresses.listen}"
    services = buf_curl("--list-services", url, version=version).split()
    assert sorted(services) == SERVICES
    methods = buf_curl("--list-methods", url, version=version).split()
    expected = {f"{SERVICES[-1]}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["MemoryService"].methods}
    assert expected <= set(methods)


def test_buf_curl_calls_a_method_by_reflection_alone(listener: Listener) -> None:
    url = f"http://{listener.addresses.listen}/{SERVICES[-1]}/GetStats"
    assert buf_curl("--data", '{"userId": "u"}', url).strip() == "{}"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_contract_comes_with_its_comments(listener: Listener, version: str) -> None:
    [response] = ask(
        listener.channel,
        reflection.ServerReflectionRequest(file_containing_symbol=SERVICES[-1]),
        version=version,
    )
    contract = files_in(response)[FILE]
    comments = "".join(location.leading_comments for location in contract.source_code_info.location)
    assert "Stores one memory." in comments
    assert "The owner, 1 to 255 characters. Required." in comments


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("memory_service.v1.MemoryService", FILE),
        ("memory_service.v1.MemoryService.SearchSimilar", FILE),
        ("memory_service.v1.Memory", FILE),
        ("memory_service.v1.Memory.content", FILE),
        ("memory_service.v1.Vector.encoding", FILE),
        ("memory_service.v1.Metric", FILE),
        ("memory_service.v1.METRIC_COSINE", FILE),
        ("google.rpc.BadRequest.FieldViolation", "google/rpc/error_details.proto"),
        ("google.rpc.Status", "google/rpc/status.proto"),
        ("google.protobuf.Struct.FieldsEntry", "google/protobuf/struct.proto"),
        ("grpc.health.v1.HealthCheckResponse.SERVING", "grpc_health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc_reflection/v1/reflection.proto"),
        ("grpc.reflection.v1alpha.ServerReflectionRequest", "grpc_reflection/v1alpha/reflection.proto"),
    ],
)
def test_a_symbol_leads_to_its_file_and_all_that_it_imports(listener: Listener, symbol: str, file: str) -> None:
    [response] = ask(listener.channel, reflection.ServerReflectionRequest(file_containing_symbol=symbol, host="h"))
    files = files_in(response)
    assert next(iter(files)) == file
    assert all(needed in files for found in files.values() for needed in found.dependency)
    assert (response.valid_host, response.original_request.file_containing_symbol) == ("h", symbol)


def test_the_v1_service_is_described_as_itself(listener: Listener) -> None:
    [response] = ask(
        listener.channel,
        reflection.ServerReflectionRequest(file_by_filename="grpc_reflection/v1/reflection.proto"),
    )
    [file] = files_in(response).values()
    assert file.package == "grpc.reflection.v1"
    assert "v1alpha" not in str(file)


@pytest.mark.parametrize(
    "request_",
    [
        reflection.ServerReflectionRequest(file_by_filename="none.proto"),
        reflection.ServerReflectionRequest(file_containing_symbol="memory_service.v1.None"),
        reflection.ServerReflectionRequest(file_containing_symbol=""),
        reflection.ServerReflectionRequest(
            file_containing_extension=reflection.ExtensionRequest(
                containing_type="memory_service.v1.Memory", extension_number=7
            )
        ),
        reflection.ServerReflectionRequest(all_extension_numbers_of_type="memory_service.v1.None"),
    ],
    ids=lambda request_: str(request_.WhichOneof("message_request")),
)
def test_what_does_not_exist_is_not_found_and_the_stream_goes_on(listener: Listener, request_: Any) -> None:
    missing, found = ask(listener.channel, request_, reflection.ServerReflectionRequest(file_by_filename=FILE))
    assert missing.error_response.error_code == 5
    assert FILE in files_in(found)


def test_an_empty_request_is_an_invalid_argument(listener: Listener) -> None:
    [response] = ask(listener.channel, reflection.ServerReflectionRequest())
    assert response.error_response.error_code == 3


def test_a_message_without_extensions_has_no_numbers(listener: Listener) -> None:
    name = "memory_service.v1.Memory"
    [response] = ask(listener.channel, reflection.ServerReflectionRequest(all_extension_numbers_of_type=name))
    numbers = response.all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == (name, [])


def test_extensions_are_found_by_number() -> None:
    base = FileDescriptorProto(name="base.proto", package="p")
    base.message_type.add(name="Open")
    extending = FileDescriptorProto(name="extending.proto", dependency=["base.proto"])
    extending.extension.add(name="more", number=100, extendee=".p.Open", type=FieldDescriptorProto.TYPE_STRING)
    nest = extending.message_type.add(name="Nest")
    nest.extension.add(name="inner", number=101, extendee=".p.Open", type=FieldDescriptorProto.TYPE_STRING)
    descriptors = Descriptors([base, extending])

    assert descriptors.extension_numbers("p.Open") == [100, 101]
    assert descriptors.extending("p.Open", 100) == descriptors.named("extending.proto")
    assert descriptors.extending("p.Open", 102) is None
    assert descriptors.defining("more") == descriptors.defining("Nest.inner") == descriptors.named("extending.proto")


def test_open_streams_take_no_thread_from_the_service(listener: Listener) -> None:
    call = listener.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection.ServerReflectionRequest.SerializeToString,
        reflection.ServerReflectionResponse.FromString,
    )
    done = threading.Event()

    def one_request_then_silence() -> Iterator[Any]:
        yield reflection.ServerReflectionRequest(file_by_filename=FILE)
        done.wait(30)

    streams = [call(one_request_then_silence()) for _ in range(4)]
    for stream in streams:
        assert FILE in files_in(next(stream))
    listener.stub.GetStats(pb.GetStatsRequest(user_id="u"), timeout=5)
    done.set()
    for stream in streams:
        assert list(stream) == []


def test_reflection_can_be_switched_off(start_listener: StartListener) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(start_listener(reflection=False).channel, reflection.ServerReflectionRequest(list_services=""))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
