"""One user never sees, counts, changes or hears of what another has stored, whatever ids they know."""

import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, get, insert, insert_all, new_memory, stats
from tests.api.waiting import eventually

ByOtherId = Callable[[str, pb.Memory], Any]

BY_ANOTHERS_ID: dict[str, ByOtherId] = {
    "GetVector": lambda user_id, memory: pb.GetVectorRequest(user_id=user_id, id=memory.id),
    "UpdateVector": lambda user_id, memory: pb.UpdateVectorRequest(
        user_id=user_id, id=memory.id, memory=pb.Memory(summary="mine"), etag=memory.etag
    ),
    "UpdateVector with an embedding": lambda user_id, memory: pb.UpdateVectorRequest(
        user_id=user_id, id=memory.id, memory=pb.Memory(content="mine", embedding=axis(1))
    ),
    "DeleteVector": lambda user_id, memory: pb.DeleteVectorRequest(user_id=user_id, id=memory.id),
    "DeleteVector hard": lambda user_id, memory: pb.DeleteVectorRequest(user_id=user_id, id=memory.id, hard=True),
    "RestoreVector": lambda user_id, memory: pb.RestoreVectorRequest(user_id=user_id, id=memory.id),
    "SearchSimilar": lambda user_id, memory: pb.SearchSimilarRequest(user_id=user_id, memory_id=memory.id),
}


@pytest.fixture
def secret(stub: MemoryServiceStub, other_user_id: str) -> pb.Memory:
    """A memory of the other user."""
    return insert(stub, other_user_id, "secret", metadata={"k": "v"}, conversation_id="shared")


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("make_request", BY_ANOTHERS_ID.values(), ids=BY_ANOTHERS_ID)
def test_anothers_id_is_as_unknown_as_one_that_never_was(
    stub: MemoryServiceStub,
    user_id: str,
    secret: pb.Memory,
    contents: ReadContents,
    make_request: ByOtherId,
    *,
    deleted: bool,
) -> None:
    insert(stub, user_id)
    if deleted:
        send(stub, pb.DeleteVectorRequest(user_id=secret.user_id, id=secret.id))
    never = pb.Memory(id=str(uuid.uuid4()), etag=secret.etag)
    before = contents()

    refused = failure(lambda: send(stub, make_request(user_id, secret)))
    unknown = failure(lambda: send(stub, make_request(user_id, never)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")
    assert refused.message.replace(secret.id, never.id) == unknown.message
    assert contents() == before


def test_deleting_anothers_memory_allowing_it_to_be_missing_deletes_nothing(
    stub: MemoryServiceStub, user_id: str, secret: pb.Memory
) -> None:
    request = pb.DeleteVectorRequest(user_id=user_id, id=secret.id, hard=True, allow_missing=True)

    assert send(stub, request) == pb.DeleteVectorResponse()
    assert get(stub, secret.user_id, secret.id) == secret


def test_lists_hold_only_ones_own(stub: MemoryServiceStub, user_id: str, secret: pb.Memory) -> None:
    own = insert(stub, user_id, "mine", conversation_id="shared")
    gone = insert(stub, secret.user_id)
    send(stub, pb.DeleteVectorRequest(user_id=secret.user_id, id=gone.id))

    for condition in (pb.MemoryFilter(), pb.MemoryFilter(conversation_id="shared"), pb.MemoryFilter(min_importance=1)):
        search = pb.SearchSimilarRequest(
            user_id=user_id, embedding=axis(0), limit=1_000, filter=condition, show_deleted=True
        )
        recent = pb.GetRecentRequest(user_id=user_id, filter=condition, show_deleted=True)
        assert [result.memory.id for result in send(stub, search).results] == [own.id]
        assert [memory.id for memory in send(stub, recent).memories] == [own.id]


def test_counts_are_of_ones_own(stub: MemoryServiceStub, user_id: str, secret: pb.Memory) -> None:
    get(stub, secret.user_id, secret.id, skip_access_recording=False)
    eventually(lambda: stats(stub, secret.user_id).total_accesses == 1)

    insert(stub, user_id, conversation_id="shared", importance=2)

    own = stats(stub, user_id)
    assert (own.live_count, own.total_accesses, own.average_importance) == (1, 0, 2)
    assert [(entry.conversation_id, entry.live_count) for entry in own.conversations] == [("shared", 1)]


def test_two_users_may_use_the_same_id(stub: MemoryServiceStub, user_id: str, secret: pb.Memory) -> None:
    insert(stub, user_id, "mine", id=secret.id)
    get(stub, user_id, secret.id, skip_access_recording=False)
    eventually(lambda: get(stub, user_id, secret.id).access_count == 1)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=secret.id, hard=True))

    assert get(stub, secret.user_id, secret.id) == secret


SIBLINGS: dict[str, Callable[[str], str]] = {
    "a suffix": lambda user_id: f"{user_id}-corp",
    "a prefix": lambda user_id: user_id[:-1],
    "upper case": str.upper,
    "a space": lambda user_id: f"{user_id} ",
    "a wildcard": lambda user_id: f"{user_id[:-1]}_",
    "another wildcard": lambda user_id: f"{user_id[:-1]}%",
    "an accent": lambda user_id: f"{user_id}\u0301",
}


@pytest.mark.parametrize("sibling", SIBLINGS.values(), ids=SIBLINGS)
def test_ids_that_look_alike_are_different_users(
    stub: MemoryServiceStub, user_id: str, sibling: Callable[[str], str]
) -> None:
    other = sibling(user_id)
    memory = insert(stub, user_id, conversation_id="c")

    assert failure(lambda: get(stub, other, memory.id)).reason == "MEMORY_NOT_FOUND"
    assert stats(stub, other) == pb.GetStatsResponse()
    insert(stub, other)
    assert stats(stub, user_id).live_count == stats(stub, other).live_count == 1


def test_a_request_id_belongs_to_its_user(stub: MemoryServiceStub, user_id: str, other_user_id: str) -> None:
    request_id = str(uuid.uuid4())

    def store(owner: str, content: str) -> pb.Memory:
        request = pb.InsertVectorRequest(user_id=owner, memory=new_memory(content), request_id=request_id)
        memory: pb.Memory = send(stub, request).memory
        return memory

    theirs, mine = store(other_user_id, "theirs"), store(user_id, "mine")

    assert (theirs.content, mine.content) == ("theirs", "mine")
    assert (theirs.user_id, mine.user_id) == (other_user_id, user_id)
    assert store(user_id, "mine") == mine


def test_a_page_token_belongs_to_its_user(stub: MemoryServiceStub, user_id: str, other_user_id: str) -> None:
    insert_all(stub, user_id, [new_memory() for _ in range(3)])
    insert_all(stub, other_user_id, [new_memory() for _ in range(3)])
    token = send(stub, pb.GetRecentRequest(user_id=other_user_id, page_size=1)).next_page_token

    refused = failure(lambda: send(stub, pb.GetRecentRequest(user_id=user_id, page_size=1, page_token=token)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    assert list(refused.violations) == ["page_token"]
