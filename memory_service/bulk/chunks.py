"""Putting records together into the chunks of an import: always the same ones for the same file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from memory_service.bulk.errors import BadRecord
from memory_service.bulk.records import Record
from memory_service.v1 import memory_pb2 as pb

# For what a chunk has beside its memories: the ids of user and import, its number, the policy for duplicates, and a
# length before each memory.
ENVELOPE_BYTES = 2_048
LENGTH_BYTES = 6


@dataclass(slots=True)
class Chunk:
    """Some records in a row, as one request."""

    request: pb.ImportVectorsRequest
    places: list[str] = field(default_factory=list)
    """Where each memory stands in the file."""
    position: int = 0
    """How much of the file has been read with it."""


@dataclass(slots=True, kw_only=True)
class Chunking:
    """Makes chunks of at most so many memories and bytes."""

    user_id: str
    import_id: str
    max_count: int
    max_bytes: int
    keep_ids: bool
    """False: the server makes new ids."""
    duplicates: pb.Duplicates | None = None
    """None: they are allowed."""
    embed_async: bool = False
    left_out: int = 0
    """Records of deleted memories met so far: they are not brought back to life."""

    def chunks(self, records: Iterable[Record]) -> Iterator[Chunk]:
        """Yields the chunks of a file.

        Raises:
            BadRecord: When a single memory is too large; the chunk it would belong to is not yielded.
        """
        chunk, size = self._new(0), ENVELOPE_BYTES
        for record in records:
            if record.deleted:
                self.left_out += 1
                continue
            if not self.keep_ids:
                record.memory.id = ""
            memory_bytes = record.memory.ByteSize() + LENGTH_BYTES
            if memory_bytes + ENVELOPE_BYTES > self.max_bytes:
                raise BadRecord(record.place, f"has {memory_bytes} bytes, more than a request may have")
            if size + memory_bytes > self.max_bytes:
                yield chunk
                chunk, size = self._new(chunk.request.chunk + 1), ENVELOPE_BYTES
            chunk.request.memories.append(record.memory)
            chunk.places.append(record.place)
            chunk.position = record.position
            size += memory_bytes
            if len(chunk.places) == self.max_count:
                yield chunk
                chunk, size = self._new(chunk.request.chunk + 1), ENVELOPE_BYTES
        if chunk.places:
            yield chunk

    def _new(self, number: int) -> Chunk:
        request = pb.ImportVectorsRequest(
            user_id=self.user_id,
            import_id=self.import_id,
            chunk=number,
            duplicates=self.duplicates,
            embed_async=self.embed_async,
        )
        return Chunk(request)
