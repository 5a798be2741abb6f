"""A small client: remembers texts, searches them, edits one without losing another's change, lists the newest.

Try it against a running service (make serve):

    .venv/bin/python examples/client.py add "The spare key is with Dona Lurdes"
    .venv/bin/python examples/client.py search "who has the key"
    .venv/bin/python examples/client.py edit ID "The spare key is with Beatriz"
    .venv/bin/python examples/client.py recent

A service that others can reach asks for TLS and an API key:

    export MEMORY_API_KEY=msk_...
    .venv/bin/python examples/client.py --address memory.example.org:50051 --tls recent
"""

import argparse
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

API_KEY_VARIABLE = "MEMORY_API_KEY"
LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
TIMEOUT_S = 10.0
EDIT_ATTEMPTS = 3

# gRPC itself may retry these two: the service tells it how long to wait, or that it would be in vain.
RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "memory_service.v1.MemoryService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


class ApiKeyCalls(grpc.UnaryUnaryClientInterceptor):
    """Sends the key with every call. gRPC's own call credentials refuse a service on this machine without TLS."""

    def __init__(self, key: str) -> None:
        self._metadata = ("authorization", f"Bearer {key}")

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """Makes a call."""
        metadata = [*(client_call_details.metadata or ()), self._metadata]
        return continuation(client_call_details._replace(metadata=metadata), request)


def open_channel(address: str, tls: grpc.ChannelCredentials | None, key: str | None) -> grpc.Channel:
    """Returns a channel that retries, encrypts where `tls` is given, and sends the key where there is one."""
    if key and tls is None and not address.startswith(LOOPBACK):
        raise SystemExit(f"the key in {API_KEY_VARIABLE} would be sent unencrypted: use --tls or --ca")
    options = [("grpc.service_config", json.dumps(RETRY))]
    channel = grpc.insecure_channel(address, options) if tls is None else grpc.secure_channel(address, tls, options)
    return grpc.intercept_channel(channel, ApiKeyCalls(key)) if key else channel


def tls_of(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """Returns what the arguments say about TLS, None for none."""
    if (arguments.cert is None) != (arguments.key is None):
        raise SystemExit("--cert and --key need each other")
    files: list[Path | None] = [arguments.ca, arguments.key, arguments.cert]
    if not arguments.tls and files == [None] * len(files):
        return None
    return grpc.ssl_channel_credentials(*(None if file is None else file.read_bytes() for file in files))


def add(service: MemoryServiceStub, user_id: str, text: str) -> pb.Memory:
    """Stores a text; the request id makes a retried call store it once."""
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text), request_id=str(uuid.uuid4()))
    return service.InsertVector(request, timeout=TIMEOUT_S).memory


def search(service: MemoryServiceStub, user_id: str, text: str) -> Iterator[tuple[float, pb.Memory]]:
    """Yields the five memories nearest to the text, with their scores."""
    request = pb.SearchSimilarRequest(user_id=user_id, text=text, limit=5)
    for result in service.SearchSimilar(request, timeout=TIMEOUT_S).results:
        yield result.score, result.memory


def edit(service: MemoryServiceStub, user_id: str, memory_id: str, change: Callable[[str], str]) -> pb.Memory:
    """Changes the content of a memory, beginning again where somebody else changed it meanwhile."""
    for attempt in range(1, EDIT_ATTEMPTS + 1):
        read = pb.GetVectorRequest(user_id=user_id, id=memory_id, skip_access_recording=True)
        memory = service.GetVector(read, timeout=TIMEOUT_S).memory
        write = pb.UpdateVectorRequest(
            user_id=user_id,
            id=memory_id,
            memory=pb.Memory(content=change(memory.content)),
            update_mask=FieldMask(paths=["content"]),
            etag=memory.etag,
        )
        try:
            return service.UpdateVector(write, timeout=TIMEOUT_S).memory
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED or attempt == EDIT_ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def recent(service: MemoryServiceStub, user_id: str) -> Iterator[pb.Memory]:
    """Yields all memories of a user, newest first, fetching page after page."""
    token = ""
    while True:
        request = pb.GetRecentRequest(user_id=user_id, page_size=100, page_token=token)
        page = service.GetRecent(request, timeout=TIMEOUT_S)
        yield from page.memories
        token = page.next_page_token
        if not token:  # the one sign of the end: a page may be short before it
            return


def explain(error: grpc.RpcError) -> str:
    """Returns what an error says: its code, its reason for programs, and the fields at fault."""
    lines = [f"{error.code().name}: {error.details()}"]
    for entry in error.trailing_metadata() or ():
        if entry.key == "grpc-status-details-bin":
            for detail in Status.FromString(entry.value).details:
                info, bad_request = ErrorInfo(), BadRequest()
                if detail.Unpack(info):
                    lines.append(f"  reason: {info.reason}")
                elif detail.Unpack(bad_request):
                    lines.extend(f"  {field.field}: {field.description}" for field in bad_request.field_violations)
    return "\n".join(lines)


def main() -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:50051", help="default: %(default)s")
    parser.add_argument("--user", default="me", help="whose memories; default: %(default)s")
    parser.add_argument("--tls", action="store_true", help="encrypt, trusting the authorities this machine trusts")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="encrypt, trusting the authorities in this PEM file")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="client certificate in PEM, where one is asked for")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key in PEM")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("add", help="store a text").add_argument("text")
    commands.add_parser("search", help="find texts near this one").add_argument("text")
    edit_parser = commands.add_parser("edit", help="replace the text of a memory")
    edit_parser.add_argument("id")
    edit_parser.add_argument("text")
    commands.add_parser("recent", help="list everything, newest first")
    arguments = parser.parse_args()
    # Not an argument: those show in the list of processes.
    key = os.environ.get(API_KEY_VARIABLE)
    with open_channel(arguments.address, tls_of(arguments), key) as channel:
        service = MemoryServiceStub(channel)
        try:
            if arguments.command == "add":
                print(add(service, arguments.user, arguments.text).id)
            elif arguments.command == "search":
                for score, memory in search(service, arguments.user, arguments.text):
                    print(f"{score:.3f}  {memory.id}  {memory.content}")
            elif arguments.command == "edit":
                print(edit(service, arguments.user, arguments.id, lambda _: arguments.text).content)
            else:
                for memory in recent(service, arguments.user):
                    print(f"{memory.created_at.ToJsonString()}  {memory.id}  {memory.content}")
        except grpc.RpcError as error:
            print(explain(error), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
