"""What a request costs before anything is done for it: how many tokens of text will be embedded.

An estimate, four bytes of UTF-8 for a token: about right for English prose and source text, a third too few for
Chinese. Texts that turn out to be in the cache count like others. The stored text that an update embeds anew, which
the request does not hold, is charged once it has been read: memory_service/access/late_charges.py.
"""

from collections.abc import Callable, Iterator
from typing import Any

from memory_service.messages import update_mask
from memory_service.v1 import memory_pb2 as pb

BYTES_PER_TOKEN = 4


def tokens_of(request: Any) -> int:
    """Returns the estimated tokens of the texts in a request that are to be embedded, each at least 1."""
    texts_of = _TEXTS.get(request.DESCRIPTOR.name)
    if texts_of is None:
        return 0
    return sum(map(tokens_in, texts_of(request)))


def tokens_in(text: str) -> int:
    """Returns the estimated tokens of a text."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _of_search(request: pb.SearchSimilarRequest) -> Iterator[str]:
    if request.mode != pb.SEARCH_MODE_LEXICAL and not request.HasField("embedding"):
        yield request.text


def _of_searches(request: pb.BatchSearchSimilarRequest) -> Iterator[str]:
    for search in request.searches:
        yield from _of_search(search)


def _of_search_across_users(request: pb.SearchAllUsersRequest) -> Iterator[str]:
    yield request.text


def _of_memory(memory: pb.NewMemory) -> Iterator[str]:
    if not memory.HasField("embedding"):
        yield memory.embed_text or memory.content


def _of_insert(request: pb.InsertVectorRequest) -> Iterator[str]:
    yield from _of_memory(request.memory)


def _of_memories(request: pb.BatchInsertVectorsRequest | pb.ImportVectorsRequest) -> Iterator[str]:
    for memory in request.memories:
        yield from _of_memory(memory)


def _of_update(request: pb.UpdateVectorRequest) -> Iterator[str]:
    if "content" in update_mask.paths_of(request) and not update_mask.brings_embedding(request):
        yield request.memory.content


_TEXTS: dict[str, Callable[[Any], Iterator[str]]] = {
    "SearchSimilarRequest": _of_search,
    "BatchSearchSimilarRequest": _of_searches,
    "SearchAllUsersRequest": _of_search_across_users,
    "InsertVectorRequest": _of_insert,
    "BatchInsertVectorsRequest": _of_memories,
    "ImportVectorsRequest": _of_memories,
    "UpdateVectorRequest": _of_update,
}
