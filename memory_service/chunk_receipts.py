"""What is remembered of a stored chunk: the ids of its memories and, under a policy for duplicates, the outcomes."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from db.duplicates import Receipt
from db.memory import NewMemory
from memory_service.messages import replies
from memory_service.v1 import memory_pb2 as pb

ID_BYTES = 16


def pack_ids(memories: Iterable[NewMemory]) -> bytes:
    """Returns the ids, 16 bytes each, of memories that were all stored."""
    return b"".join(memory.id.bytes for memory in memories)


def pack(receipts: Sequence[Receipt]) -> bytes:
    """Returns the ids, 16 bytes each, and after them the outcomes, one byte each."""
    ids = b"".join(receipt.id.bytes for receipt in receipts)
    return ids + bytes(replies.OUTCOMES[receipt.outcome] for receipt in receipts)


def acknowledgement(packed: bytes, *, chunk: int, count: int, already_stored: bool) -> pb.ImportVectorsResponse:
    """Returns the reply for a chunk of `count` memories, without the stream's running count."""
    ids, outcomes = packed[: count * ID_BYTES], packed[count * ID_BYTES :]
    return pb.ImportVectorsResponse(
        chunk=chunk,
        ids=[str(UUID(bytes=ids[start : start + ID_BYTES])) for start in range(0, len(ids), ID_BYTES)],
        already_stored=already_stored,
        outcomes=[pb.InsertOutcome.ValueType(outcome) for outcome in outcomes],
    )
