"""Reading all memories of a user, page by page; a call that fails is tried again."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from memory_service.bulk.call_failure import failure_of
from memory_service.bulk.retrying import Retrying
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

PAGE_SIZE = 1_000
TIMEOUT_S = 60.0

T = TypeVar("T")


def memories(
    stub: MemoryServiceStub, user_id: str, *, with_embeddings: bool, show_deleted: bool, retrying: Retrying
) -> Iterator[pb.Memory]:
    """Yields a user's memories, newest first; embeddings as f32_le.

    Raises:
        TransferError: When the server refuses, or cannot be reached again.
    """
    request = pb.GetRecentRequest(
        user_id=user_id,
        page_size=PAGE_SIZE,
        show_deleted=show_deleted,
        view=pb.MEMORY_VIEW_FULL if with_embeddings else pb.MEMORY_VIEW_BASIC,
        embedding_encoding=pb.VECTOR_ENCODING_F32_LE,
    )
    while True:
        page = _ask(lambda: stub.GetRecent(request, timeout=TIMEOUT_S), retrying)
        yield from page.memories
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def count(stub: MemoryServiceStub, user_id: str, *, show_deleted: bool, retrying: Retrying) -> int:
    """Returns how many memories a user has; raises what `memories` does."""
    request = pb.GetStatsRequest(user_id=user_id, conversation_limit=1)
    stats = _ask(lambda: stub.GetStats(request, timeout=TIMEOUT_S), retrying)
    return stats.live_count + (stats.deleted_count if show_deleted else 0)


def _ask(call: Callable[[], T], retrying: Retrying) -> T:
    while True:
        try:
            reply = call()
        except grpc.RpcError as error:
            retrying.wait(failure_of(error))
        else:
            retrying.progressed()
            return reply
