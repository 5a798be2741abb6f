"""Recall below gRPC: what is counted as an access, what does not fit a reply, and where a search begins."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from db.access import AccessBuffer
from db.ann_registry import AnnRegistry
from db.errors import MemoryDeleted, MemoryNotFound, ReplyTooLarge
from db.pool import Database
from db.search_plan import SearchTuning
from db.user_sizes import UserSizes
from db.vectors import normalize
from memory_service import config
from memory_service.limits import limits_of
from memory_service.messages.page_token import InvalidPageToken
from memory_service.messages.ranking_request import RankingDefaults
from memory_service.messages.violations import InvalidArgument
from memory_service.recall import Recall
from memory_service.searching import Searching
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb
from tests.storage.sample_embedder import SampleEmbedder, vector_of
from tests.storage.sample_memories import DIMENSIONS, LATER, NOW, new_memory, read, soft_delete, store, unit


@pytest.fixture
def embedder() -> SampleEmbedder:
    return SampleEmbedder(cacheable=False)


@pytest.fixture
def accesses(database: Database) -> AccessBuffer:
    return AccessBuffer(database, flush_interval_s=3_600)


@pytest.fixture
def searching(database: Database, accesses: AccessBuffer, embedder: SampleEmbedder) -> Searching:
    settings = config.load(embedder="none", embedding_dimensions=DIMENSIONS)
    return Searching(
        database=database,
        accesses=accesses,
        embeddings=TextEmbeddings(embedder, database, lambda: NOW),
        ann=AnnRegistry(database),
        sizes=UserSizes(database, counted=lambda _user_id, _rows: None),
        tuning=SearchTuning,
        observe=lambda _user_id, _outcome: None,
        ranking=RankingDefaults(),
        dimensions=DIMENSIONS,
        limits=limits_of(settings),
        clock=lambda: LATER,
    )


@pytest.fixture
def recall(database: Database, accesses: AccessBuffer, embedder: SampleEmbedder) -> Recall:
    settings = config.load(embedder="none", embedding_dimensions=DIMENSIONS)
    return Recall(
        database=database,
        accesses=accesses,
        embeddings=TextEmbeddings(embedder, database, lambda: NOW),
        dimensions=DIMENSIONS,
        limits=limits_of(settings),
        clock=lambda: LATER,
    )


def search(searching: Searching, user_id: str, **fields: object) -> list[str]:
    request = pb.SearchSimilarRequest(user_id=user_id, **fields)  # type: ignore[arg-type]
    return [result.memory.id for result in searching.search(request, searching.database.call()).results]


def test_accesses_are_those_of_live_memories_returned(
    searching: Searching, recall: Recall, accesses: AccessBuffer, database: Database, user_id: str
) -> None:
    found, deleted, unfound = (new_memory(embedding=unit(axis)) for axis in (0, 0, 1))
    store(database, user_id, found, deleted, unfound)
    soft_delete(database, user_id, deleted.id)
    query = pb.Vector(floats=pb.FloatArray(values=[1.0] + [0.0] * 7))
    for skip in (False, True):
        ids = search(searching, user_id, embedding=query, limit=2, show_deleted=True, skip_access_recording=skip)
        assert set(ids) == {str(found.id), str(deleted.id)}
        for id_ in (found.id, deleted.id):
            get = pb.GetVectorRequest(user_id=user_id, id=str(id_), skip_access_recording=skip)
            assert recall.get(get, database.call()).memory.id == str(id_)
    recall.recent(pb.GetRecentRequest(user_id=user_id), database.call())
    accesses.flush()
    assert [read(database, user_id, memory.id).access_count for memory in (found, deleted, unfound)] == [2, 0, 0]
    assert read(database, user_id, found.id).last_accessed_at == LATER


def test_search_by_text_memory_and_embedding_agree(searching: Searching, database: Database, user_id: str) -> None:
    memories = {text: new_memory(content=text, embedding=normalize(vector_of(text))) for text in "abcdef"}
    store(database, user_id, *memories.values())
    by_text = search(searching, user_id, text="a", mode=pb.SEARCH_MODE_DENSE)
    by_embedding = search(searching, user_id, embedding=pb.Vector(f32_le=vector_of("a").astype("<f4").tobytes()))
    assert by_text == by_embedding
    assert by_text[0] == str(memories["a"].id)
    assert search(searching, user_id, memory_id=by_text[0]) == by_text[1:]


def test_memory_to_search_from_must_be_the_user_s_and_live(
    searching: Searching, database: Database, user_id: str
) -> None:
    memory, other = new_memory(), new_memory()
    store(database, user_id, memory, other)
    with pytest.raises(MemoryNotFound):
        search(searching, user_id + "2", memory_id=str(memory.id))
    with pytest.raises(MemoryNotFound):
        search(searching, user_id, memory_id=str(uuid4()))
    soft_delete(database, user_id, memory.id)
    with pytest.raises(MemoryDeleted, match="set show_deleted"):
        search(searching, user_id, memory_id=str(memory.id))
    assert search(searching, user_id, memory_id=str(memory.id), show_deleted=True) == [str(other.id)]


def test_text_that_cannot_be_embedded_is_named(searching: Searching, embedder: SampleEmbedder, user_id: str) -> None:
    embedder.refused = {"bad"}
    with pytest.raises(InvalidArgument) as caught:
        search(searching, user_id, text="bad")
    [violation] = caught.value.violations
    assert (violation.field, violation.reason) == ("text", pb.ERROR_REASON_TEXT_NOT_EMBEDDABLE)


def test_search_whose_reply_would_be_too_large_is_refused(
    searching: Searching, database: Database, user_id: str
) -> None:
    store(database, user_id, *[new_memory(content="x" * 1_000) for _ in range(10)])
    # First the texts alone are too large, then what is around them.
    for allowed in (9_000, 10_100):
        narrow = replace(searching, limits=replace(searching.limits, max_reply_bytes=allowed))
        with pytest.raises(ReplyTooLarge, match=f"at most {allowed}"):
            search(narrow, user_id, text="q")
        assert len(search(narrow, user_id, text="q", limit=5)) == 5
        assert len(search(narrow, user_id, text="q", view=pb.MEMORY_VIEW_HEAD)) == 10


def pages(recall: Recall, user_id: str, **fields: object) -> Iterator[pb.GetRecentResponse]:
    token = ""
    while True:
        request = pb.GetRecentRequest(user_id=user_id, page_token=token, **fields)  # type: ignore[arg-type]
        reply = recall.recent(request, recall.database.call())
        yield reply
        token = reply.next_page_token
        if not token:
            return


@pytest.mark.parametrize("view", [pb.MEMORY_VIEW_BASIC, pb.MEMORY_VIEW_FULL, pb.MEMORY_VIEW_HEAD])
@pytest.mark.parametrize("allowed", [100, 1_500, 4_000, 100_000])
def test_pages_fit_the_reply_and_miss_nothing(
    recall: Recall, database: Database, user_id: str, view: pb.MemoryView.ValueType, allowed: int
) -> None:
    memories = [new_memory(id=UUID(int=index), content="x" * (index * 100)) for index in range(12)]
    store(database, user_id, *memories)
    narrow = replace(recall, limits=replace(recall.limits, max_reply_bytes=allowed))
    found = list(pages(narrow, user_id, page_size=5, view=view))
    ids = [memory.id for page in found for memory in page.memories]
    assert ids == [str(memory.id) for memory in reversed(memories)]
    for page in found:
        assert len(page.memories) <= 5
        assert sum(memory.ByteSize() for memory in page.memories) <= allowed or len(page.memories) == 1


def test_page_sizes(recall: Recall, database: Database, user_id: str) -> None:
    store(database, user_id, *[new_memory() for _ in range(60)])
    [first, second] = pages(recall, user_id)
    assert (len(first.memories), len(second.memories)) == (50, 10)
    [all_] = pages(recall, user_id, page_size=100_000)
    assert len(all_.memories) == 60
    with pytest.raises(InvalidArgument):
        next(pages(recall, user_id, page_size=-1))


def test_page_token_of_other_arguments_is_refused(recall: Recall, database: Database, user_id: str) -> None:
    store(database, user_id, new_memory(), new_memory())
    token = next(pages(recall, user_id, page_size=1)).next_page_token
    request = pb.GetRecentRequest(user_id=user_id, page_token=token, show_deleted=True)
    with pytest.raises(InvalidPageToken):
        recall.recent(request, database.call())


def test_stats(recall: Recall, database: Database, user_id: str) -> None:
    store(database, user_id, new_memory(conversation_id="a"), new_memory(conversation_id="b"))
    reply = recall.stats(pb.GetStatsRequest(user_id=user_id, conversation_limit=1), database.call())
    assert (reply.live_count, reply.conversation_count, len(reply.conversations)) == (2, 2, 1)
    with pytest.raises(InvalidArgument):
        recall.stats(pb.GetStatsRequest(user_id=user_id, conversation_limit=1_001), database.call())
