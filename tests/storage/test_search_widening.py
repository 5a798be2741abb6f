"""How far a search looks: from a first round of candidates to a scan of everything, until it has what it needs."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from db.ann_registry import AnnIndex
from db.conditions import Compares, Operator
from db.errors import ReplyTooLarge
from db.filters import Filter
from db.memory import View
from db.pool import Database, PoolOptions
from db.search import Answer, Means, Nearest, search
from db.search_plan import Plan, SearchTuning, coarse_of
from db.search_statements import Metric
from db.vectors import normalize
from tests.fix_database import Databases
from tests.storage.concurrency import Activity
from tests.storage.sample_memories import new_memory, store

OWNER = "owner"
ROWS = 1_500
# What the plan is told about the user, and whether that makes the table the cheaper way.
SMALL, MEDIUM, LARGE = ROWS, 5_000, 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """A user whose memories know, in metadata, how many others are nearer to the query: {"rank": 0} is the nearest."""

    url: str
    database: Database
    dimensions: int
    query: NDArray[np.float32]
    by_rank: list[UUID]

    def find(self, *, rows: int | None = None, ann: AnnIndex | None = None, **wanted: Any) -> tuple[Answer, list[str]]:
        """Returns the answer and the names of the statements that led to it."""
        fields: dict[str, Any] = {"metric": Metric.COSINE, "limit": 10, "filter": Filter(), "view": View.HEAD, **wanted}
        nearest = Nearest(embedding=normalize(self.query), **fields)
        means = Means(coarse=coarse_of(self.dimensions), ann=ann, user_rows=rows, tuning=SearchTuning())
        with capture_logs() as events:
            answer = self.database.read(
                self.database.call(), lambda conn: search(conn, OWNER, nearest, means), user_id=OWNER
            )
        return answer, [event["statement"] for event in events if event["event"] == "slow_query"]

    def ranks(self, answer: Answer) -> list[int]:
        """Returns how many others are nearer than each of the results."""
        return [self.by_rank.index(hit.memory.id) for hit in answer.hits]


@pytest.fixture(scope="module")
def by_embedding(databases: Databases) -> Iterator[Ranked]:
    yield from ranked(databases, 8)


@pytest.fixture(scope="module")
def by_signs(databases: Databases) -> Iterator[Ranked]:
    yield from ranked(databases, 768)


def ranked(databases: Databases, dimensions: int) -> Iterator[Ranked]:
    url = databases.create(dimensions)
    # Every statement is slow, and so in the log.
    database = Database(url, PoolOptions(min_size=1, max_size=1, slow_query_ms=0.0))
    database.open()
    random = np.random.default_rng(1)
    query = random.normal(size=dimensions).astype(np.float32)
    # The nearer end of the line to another point, the nearer to the query, by embedding and by signs alike.
    other = random.normal(size=dimensions).astype(np.float32)
    share = np.linspace(0.3, 1.0, ROWS)[:, np.newaxis]
    vectors = (1 - share) * query + share * other + 0.02 * random.normal(size=(ROWS, dimensions))
    embeddings = [normalize(vector) for vector in vectors]
    units = np.stack([embedding.unit for embedding in embeddings]).astype(np.float64)
    by_distance = np.argsort(-(units @ normalize(query).unit.astype(np.float64)), kind="stable")
    memories = [
        new_memory(
            id=UUID(int=int(index)),
            embedding=embeddings[index],
            metadata={"rank": rank, "tenth": rank % 10, "twentieth": rank % 20},
        )
        for rank, index in enumerate(by_distance)
    ]
    for start in range(0, ROWS, 500):
        store(database, OWNER, *memories[start : start + 500])
    yield Ranked(url, database, dimensions, query, [memory.id for memory in memories])
    database.close()
    databases.drop(url)


ONE_IN_TEN = Filter(metadata_contains={"tenth": 0})
ONE_IN_TWENTY = Filter(metadata_contains={"twentieth": 0})
FARTHEST = Filter(where=Compares(("rank",), Operator.GREATER_OR_EQUAL, float(ROWS - 12)))
NOTHING = Filter(metadata_contains={"tenth": 11})


def test_without_a_filter_one_round_is_enough(by_signs: Ranked, by_embedding: Ranked) -> None:
    for rows, considered in ((None, 200), (1_000 - 1, 64), (MEDIUM, 200), (LARGE, 400)):
        answer, statements = by_signs.find(rows=rows)
        assert (answer.plan, answer.considered, statements) == (Plan.QUANTIZED, considered, ["search.candidates"])
        assert by_signs.ranks(answer) == list(range(10))
        answer, statements = by_embedding.find(rows=rows)
        assert (answer.plan, answer.considered, statements) == (Plan.EXACT, 10, ["search.candidates"])
        assert sorted(by_embedding.ranks(answer)) == list(range(10))


def test_an_excluded_memory_takes_no_candidates_place(by_signs: Ranked, by_embedding: Ranked) -> None:
    for ranked_, considered in ((by_signs, 200), (by_embedding, 10)):
        answer, statements = ranked_.find(exclude=ranked_.by_rank[0])
        assert (answer.considered, statements) == (considered, ["search.candidates"])
        assert sorted(ranked_.ranks(answer)) == list(range(1, 11))


def test_exact_compares_everything(by_signs: Ranked, by_embedding: Ranked) -> None:
    answer, statements = by_signs.find(rows=LARGE, exact=True)
    assert (answer.plan, answer.considered, statements) == (Plan.EXACT, ROWS, ["search.table"])
    answer, statements = by_embedding.find(rows=LARGE, exact=True, filter=ONE_IN_TEN)
    assert (answer.plan, answer.considered, statements) == (Plan.EXACT, ROWS // 10, ["search.table"])


def test_a_user_with_no_more_memories_than_candidates_is_scanned(by_signs: Ranked, by_embedding: Ranked) -> None:
    # The size is as last counted: all of what has come since is found as well.
    for ranked_ in (by_signs, by_embedding):
        answer, statements = ranked_.find(rows=10)
        assert (answer.plan, answer.considered, statements) == (Plan.EXACT, ROWS, ["search.table"])


@pytest.mark.parametrize("candidates", [10, 30, 500, ROWS - 1])
def test_as_many_candidates_as_asked_for(by_signs: Ranked, by_embedding: Ranked, candidates: int) -> None:
    for rows in (None, MEDIUM, LARGE):
        answer, statements = by_signs.find(rows=rows, candidates=candidates)
        assert (answer.plan, answer.considered) == (Plan.QUANTIZED, candidates)
        assert statements == ["search.candidates"]
        # It has no effect on a plan that is exact anyway.
        answer, _ = by_embedding.find(rows=rows, candidates=candidates)
        assert (answer.plan, answer.considered) == (Plan.EXACT, 10)


@pytest.mark.parametrize("candidates", [ROWS, 10_000])
def test_more_candidates_than_memories_are_all_of_them(by_signs: Ranked, candidates: int) -> None:
    answer, _ = by_signs.find(rows=LARGE, candidates=candidates)
    assert (answer.plan, answer.considered) == (Plan.EXACT, ROWS)


def test_as_many_candidates_as_asked_for_pass_the_filter(by_signs: Ranked) -> None:
    answer, statements = by_signs.find(rows=MEDIUM, candidates=30, filter=ONE_IN_TEN)
    assert answer.plan is Plan.QUANTIZED
    assert answer.considered >= 30
    assert statements == ["search.candidates"] * 2


def test_a_filter_that_lets_one_in_ten_through_takes_one_round(by_signs: Ranked) -> None:
    answer, statements = by_signs.find(rows=MEDIUM, filter=ONE_IN_TEN)
    assert (answer.plan, statements) == (Plan.QUANTIZED, ["search.candidates"])
    assert answer.considered >= 40
    assert by_signs.ranks(answer) == list(range(0, 100, 10))


def test_a_filter_leaves_enough_candidates_to_choose_from(by_signs: Ranked) -> None:
    # The first 600 candidates hold some 30 that pass, which were results enough; but the nearest of few by signs are
    # not the nearest.
    answer, statements = by_signs.find(rows=MEDIUM, filter=ONE_IN_TWENTY)
    assert (answer.plan, statements) == (Plan.QUANTIZED, ["search.candidates"] * 2)
    assert answer.considered >= 40
    assert by_signs.ranks(answer) == list(range(0, 200, 20))


@pytest.mark.parametrize(
    ("rows", "statements"),
    [
        (SMALL, ["search.table"]),
        (MEDIUM, ["search.candidates", "search.table"]),
        (LARGE, ["search.candidates", "search.table"]),
        (None, ["search.candidates", "search.table"]),
    ],
)
@pytest.mark.parametrize(("filter_", "expected"), [(FARTHEST, ROWS - 12), (NOTHING, None)])
def test_what_only_the_farthest_pass_is_found_in_the_table(
    by_signs: Ranked, rows: int | None, statements: list[str], filter_: Filter, expected: int | None
) -> None:
    answer, ran = by_signs.find(rows=rows, filter=filter_)
    assert (answer.plan, ran) == (Plan.EXACT, statements)
    assert by_signs.ranks(answer) == ([] if expected is None else list(range(expected, expected + 10)))
    assert answer.considered == (0 if expected is None else 12)
    assert not answer.maybe_incomplete


@pytest.mark.parametrize(
    ("rows", "statements"),
    [
        (SMALL, ["search.table"]),
        (MEDIUM, ["search.candidates", "search.table"]),
        (LARGE, ["search.candidates"] * 2),
        (None, ["search.candidates"] * 2),
    ],
)
def test_candidates_by_the_embedding_widen_likewise(
    by_embedding: Ranked, rows: int | None, statements: list[str]
) -> None:
    answer, ran = by_embedding.find(rows=rows, filter=FARTHEST)
    assert (answer.plan, ran) == (Plan.EXACT, statements)
    assert sorted(by_embedding.ranks(answer)) == list(range(ROWS - 12, ROWS - 2))


def test_deleted_memories_are_found_in_the_table_only(by_signs: Ranked) -> None:
    answer, statements = by_signs.find(rows=LARGE, filter=Filter(show_deleted=True))
    assert (answer.plan, answer.considered, statements) == (Plan.EXACT, ROWS, ["search.table"])


@pytest.mark.parametrize("metric", [Metric.INNER_PRODUCT, Metric.L2])
def test_signs_say_nothing_about_lengths(by_signs: Ranked, metric: Metric) -> None:
    answer, statements = by_signs.find(rows=LARGE, metric=metric)
    assert (answer.plan, answer.considered, statements) == (Plan.EXACT, ROWS, ["search.table"])


def test_a_score_once_returned_serves_as_threshold(by_signs: Ranked, by_embedding: Ranked) -> None:
    for ranked_ in (by_signs, by_embedding):
        for metric in Metric:
            hits = ranked_.find(rows=LARGE, metric=metric)[0].hits
            for count in (1, 4, 10):
                answer, _ = ranked_.find(rows=LARGE, metric=metric, min_score=hits[count - 1].score)
                assert answer.hits == hits[:count]
                assert answer.maybe_incomplete is (answer.plan is Plan.QUANTIZED and count < 10)


def test_only_what_scores_enough_has_to_fit_the_reply(by_signs: Ranked) -> None:
    hits = by_signs.find(rows=LARGE, view=View.BASIC)[0].hits
    size = len(hits[0].memory.content or "") + len('{"rank": 0, "tenth": 0, "twentieth": 0}')
    narrow: dict[str, Any] = {"rows": LARGE, "view": View.BASIC, "max_text_bytes": 3 * size}
    answer, _ = by_signs.find(**narrow, min_score=hits[2].score)
    assert answer.hits == hits[:3]
    with pytest.raises(ReplyTooLarge, match="the 4 results"):
        by_signs.find(**narrow, min_score=hits[3].score)


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_a_walk_that_finds_too_few_is_followed_by_a_plan_that_does_not(by_signs: Ranked, method: str) -> None:
    # Without its index the walk is a sorted scan: found is all there is, and still fewer than asked for.
    index = AnnIndex("dropped_meanwhile", method, 10)
    answer, statements = by_signs.find(rows=LARGE, ann=index, filter=ONE_IN_TEN)
    assert (answer.plan, statements[-1]) == (Plan.ANN, "search.ann")
    assert by_signs.ranks(answer) == list(range(0, 100, 10))
    answer, statements = by_signs.find(rows=MEDIUM, ann=index, filter=FARTHEST, limit=13)
    assert statements == ["search.ann", "search.candidates", "search.table"]
    assert (answer.plan, by_signs.ranks(answer)) == (Plan.EXACT, list(range(ROWS - 12, ROWS)))


@pytest.mark.parametrize(
    "wanted", [{"exact": True}, {"metric": Metric.L2}, {"filter": Filter(show_deleted=True)}], ids=str
)
def test_what_an_approximate_index_cannot_answer_is_not_asked_of_it(by_signs: Ranked, wanted: dict[str, Any]) -> None:
    answer, statements = by_signs.find(rows=LARGE, ann=AnnIndex("any", "hnsw", 0), **wanted)
    assert (answer.plan, statements) == (Plan.EXACT, ["search.table"])


def test_time_in_a_walk_counts_as_the_databases(by_signs: Ranked, activity_of: Callable[[str], Activity]) -> None:
    nearest = Nearest(embedding=normalize(by_signs.query), metric=Metric.COSINE, limit=10, filter=Filter())
    means = Means(coarse=coarse_of(768), ann=AnnIndex("any", "hnsw", 0), user_rows=LARGE, tuning=SearchTuning())
    call = by_signs.database.call()

    def walk() -> Answer:
        return by_signs.database.read(call, lambda conn: search(conn, OWNER, nearest, means), user_id=OWNER)

    with psycopg.connect(by_signs.url) as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("LOCK TABLE memory_access")
        answer = threads.submit(walk)
        activity_of(by_signs.url).wait_until_blocked("search.ann")
        blocked_at = time.perf_counter()
        time.sleep(0.05)
        blocked_s = time.perf_counter() - blocked_at
        blocker.rollback()
        assert answer.result(10).plan is Plan.ANN
    assert call.database_s >= blocked_s
