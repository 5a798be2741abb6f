"""What is in one of gRPC's method handlers, whatever its arity, and what is parsed of a request that is none."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

if TYPE_CHECKING:  # generic in the stubs only
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler

Behaviour = Callable[..., Any]


class MalformedRequest(Exception):
    """The bytes of a request are not a message of its method's type."""


def taken_apart(handler: Handler) -> tuple[Behaviour, Callable[..., Handler]]:
    """Returns a handler's behaviour, and what makes a handler of the same arity of another one."""
    behaviour: Behaviour | None
    if handler.request_streaming and handler.response_streaming:
        behaviour, make_handler = handler.stream_stream, grpc.stream_stream_rpc_method_handler
    elif handler.request_streaming:
        behaviour, make_handler = handler.stream_unary, grpc.stream_unary_rpc_method_handler
    elif handler.response_streaming:
        behaviour, make_handler = handler.unary_stream, grpc.unary_stream_rpc_method_handler
    else:
        behaviour, make_handler = handler.unary_unary, grpc.unary_unary_rpc_method_handler
    if behaviour is None:
        raise TypeError("the handler has no behaviour for its own arity")
    return behaviour, make_handler


def maker_for_streams(handler: Handler) -> Callable[..., Handler]:
    """Returns what makes a handler that replies as this one does, and whose requests are a stream."""
    return grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler


def parsing_with(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Returns a deserializer that hands a parse error on: gRPC would answer INTERNAL to one that raises."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            # The parser's own words name no field, and may quote the bytes.
            return MalformedRequest("the request is not a valid message of the method's request type")

    return parse
