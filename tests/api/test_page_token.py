"""Page tokens: of use only for what they were made for, and to nobody for anything else."""

import base64
from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import insert_all, new_memory


def token_of(stub: MemoryServiceStub, user_id: str, **fields: Any) -> str:
    """Stores four memories and returns the token of the second page."""
    insert_all(stub, user_id, [new_memory() for _ in range(4)])
    reply: pb.GetRecentResponse = send(stub, pb.GetRecentRequest(user_id=user_id, page_size=1, **fields))
    return reply.next_page_token


MALFORMED_TOKENS = {
    "text": "page two",
    "not base64": "\u20ac",
    "NUL": "a\0b",
    "too short": "AAAA",
    "too long": "A" * 100_000,
    "of another version": base64.urlsafe_b64encode(b"\x02" + b"\0" * 32).decode(),
    "of an impossible time": base64.urlsafe_b64encode(b"\x01\x7f" + b"\xff" * 31).decode(),
}


@pytest.mark.parametrize("token", MALFORMED_TOKENS.values(), ids=MALFORMED_TOKENS)
def test_a_malformed_page_token_is_refused(stub: MemoryServiceStub, user_id: str, token: str) -> None:
    refused = failure(lambda: send(stub, pb.GetRecentRequest(user_id=user_id, page_token=token)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    assert list(refused.violations) == ["page_token"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"show_deleted": True}, id="show_deleted"),
        pytest.param({"filter": pb.MemoryFilter(conversation_id="c")}, id="conversation"),
        pytest.param({"filter": pb.MemoryFilter(min_importance=2)}, id="importance"),
    ],
)
def test_a_page_token_serves_only_the_arguments_it_was_made_for(
    stub: MemoryServiceStub, user_id: str, other: dict[str, Any]
) -> None:
    token = token_of(stub, user_id)

    refused = failure(lambda: send(stub, pb.GetRecentRequest(user_id=user_id, page_token=token, **other)))

    assert refused.reason == "PAGE_TOKEN_INVALID"
    assert send(stub, pb.GetRecentRequest(user_id=user_id, page_token=token)).memories


@pytest.mark.parametrize("position", range(33))
def test_a_page_token_with_a_byte_changed_is_refused(stub: MemoryServiceStub, user_id: str, position: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(token_of(stub, user_id)))
    data[position] ^= 0x01
    tampered = base64.urlsafe_b64encode(data).decode()

    refused = failure(lambda: send(stub, pb.GetRecentRequest(user_id=user_id, page_token=tampered)))

    assert refused.reason == "PAGE_TOKEN_INVALID"
