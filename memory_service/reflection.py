"""Server reflection, v1 and v1alpha, with the comments of the .proto files.

grpcio-reflection serves v1alpha only, and from descriptors that protoc stripped of their comments.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2

from memory_service.access.admission import IDENTIFY_EVERY_S, Admission
from memory_service.access.errors import LimitExceeded
from memory_service.access.refusals import CountRefusal
from memory_service.descriptors import V1, V1ALPHA, Descriptors
from memory_service.executors import run_on
from memory_service.observed_call import ToStatus


class ReflectionGuard:
    """Lets only callers with valid credentials ask."""

    def __init__(self, admission: Admission, to_status: ToStatus, count_refusal: CountRefusal) -> None:
        self._admission = admission
        self._to_status = to_status
        self._count_refusal = count_refusal

    def check(self, context: grpc.ServicerContext) -> None:
        """Ends the call of a caller without; to be called on a thread that may wait."""
        try:
            self._admission.identify(context)
        except Exception as error:  # noqa: BLE001 - what passes here, gRPC shows the client word for word
            if isinstance(error, LimitExceeded):
                self._count_refusal(error.limit)
            context.abort_with_status(self._to_status(error, trailers=()))

    def checked(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Yields the requests of a stream; ends it soon after its caller's credentials do."""
        self.check(context)
        checked_at = time.monotonic()
        for request in requests:
            if time.monotonic() - checked_at > IDENTIFY_EVERY_S:
                self.check(context)
                checked_at = time.monotonic()
            yield request


class Reflection:
    """Answers ServerReflectionInfo, on threads of its own: a stream keeps one as long as it is open."""

    def __init__(self, descriptors: Descriptors, *, guard: ReflectionGuard | None = None) -> None:
        self._descriptors = descriptors
        self._guard = guard
        self._executor = ThreadPoolExecutor(8, thread_name_prefix="reflection")
        self._lock = threading.Lock()
        self._streams: set[grpc.ServicerContext] = set()
        self._ended = False

    def add_to(self, server: grpc.Server) -> None:
        """Registers both versions with a server; their messages are the same on the wire."""
        handler = grpc.stream_stream_rpc_method_handler(
            run_on(self._executor, self.answer),
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for package in (V1, V1ALPHA):
            service = grpc.method_handlers_generic_handler(
                f"{package}.ServerReflection", {"ServerReflectionInfo": handler}
            )
            server.add_generic_rpc_handlers((service,))

    def end_streams(self) -> None:
        """Cancels the open streams, and those to come: an idle one would hold up the end of the server."""
        with self._lock:
            self._ended = True
            streams = list(self._streams)
        for context in streams:
            context.cancel()

    def close(self) -> None:
        """Ends the streams and the threads that serve them."""
        self.end_streams()
        self._executor.shutdown(wait=False)

    def answer(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Message]:
        """ServerReflection.ServerReflectionInfo."""
        if self._guard is not None:
            requests = self._guard.checked(requests, context)
        with self._lock:
            if self._ended:
                context.cancel()
                return
            self._streams.add(context)
        try:
            for request in requests:
                response = self._response(request)
                response.valid_host = request.host
                response.original_request.CopyFrom(request)
                yield response
        finally:
            with self._lock:
                self._streams.discard(context)

    def _response(self, request: Any) -> Any:
        match request.WhichOneof("message_request"):
            case "file_by_filename":
                return _files(self._descriptors.named(request.file_by_filename), "file")
            case "file_containing_symbol":
                return _files(self._descriptors.defining(request.file_containing_symbol), "symbol")
            case "file_containing_extension":
                extension = request.file_containing_extension
                files = self._descriptors.extending(extension.containing_type, extension.extension_number)
                return _files(files, "extension")
            case "all_extension_numbers_of_type":
                return _numbers(request.all_extension_numbers_of_type, self._descriptors)
            case "list_services":
                services = [reflection_pb2.ServiceResponse(name=name) for name in self._descriptors.services]
                return reflection_pb2.ServerReflectionResponse(
                    list_services_response=reflection_pb2.ListServiceResponse(service=services)
                )
            case _:
                return _error(grpc.StatusCode.INVALID_ARGUMENT, "the request asks for nothing known")


def _files(files: list[bytes] | None, kind: str) -> Any:
    if files is None:
        return _error(grpc.StatusCode.NOT_FOUND, f"{kind} not found")
    return reflection_pb2.ServerReflectionResponse(
        file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=files)
    )


def _numbers(message: str, descriptors: Descriptors) -> Any:
    numbers = descriptors.extension_numbers(message)
    if numbers is None:
        return _error(grpc.StatusCode.NOT_FOUND, "message not found")
    return reflection_pb2.ServerReflectionResponse(
        all_extension_numbers_response=reflection_pb2.ExtensionNumberResponse(
            base_type_name=message, extension_number=numbers
        )
    )


def _error(code: grpc.StatusCode, message: str) -> Any:
    # types-grpcio declares the value's pair as one int.
    number: Any = code.value
    return reflection_pb2.ServerReflectionResponse(
        error_response=reflection_pb2.ErrorResponse(error_code=number[0], error_message=message)
    )
