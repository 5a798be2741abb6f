"""The recall probe: what it measures, what it leaves out, and that it keeps nobody waiting."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from numpy.typing import NDArray

from db.filters import Filter
from db.memory import View
from db.pool import Database
from db.recall_probe import NotMeasured, RecallProbe
from db.search import Answer, Means, Nearest, search
from db.search_plan import Plan, SearchTuning, coarse_of
from db.search_statements import Metric
from db.search_tuning import TuningState
from db.vectors import normalize
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.concurrency import Activity
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import hard_delete, new_memory, store

DIMENSIONS = 768
ROWS = 1_500
LIMIT = 10
LONG_AGO = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Reports:
    """Remembers what the probe reports."""

    def __init__(self) -> None:
        self.measured: queue.Queue[tuple[Plan, float, float]] = queue.Queue()
        self.reasons: queue.Queue[NotMeasured] = queue.Queue()

    def recall_measured(self, plan: Plan, recall: float, mean: float) -> None:
        """Takes a recall."""
        self.measured.put((plan, recall, mean))

    def recall_not_measured(self, reason: NotMeasured) -> None:
        """Takes why there is none."""
        self.reasons.put(reason)


StartProbe = Callable[..., RecallProbe]


@pytest.fixture
def reports() -> Reports:
    """What the probe of the test reports."""
    return Reports()


@pytest.fixture
def start_probe(reports: Reports) -> Iterator[StartProbe]:
    """A function starting probes, which draw every search and never pause unless told otherwise."""
    with ExitStack() as closing:

        def start(database: Database, tuning: TuningState, **options: Any) -> RecallProbe:
            fields = {"coarse": coarse_of(DIMENSIONS), "fraction": 1.0, "clock": now, "max_share": 1.0, **options}
            probe = RecallProbe(database, tuning, reports, **fields)
            probe.start()
            closing.callback(probe.close)
            return probe

        yield start


def now() -> datetime:
    return datetime.now(UTC)


def isotropic(count: int, *, seed: int) -> NDArray[np.float32]:
    """Returns random vectors of every direction: the hardest there are, nothing like embeddings of texts."""
    return np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype(np.float32)


@pytest.fixture(scope="module")
def user() -> str:
    """The user of the module's vectors."""
    return f"user-{uuid4().hex}"


@pytest.fixture(scope="module")
def vectors(database: Database, user: str) -> NDArray[np.float32]:
    """The user's vectors, whose memories have their positions as ids."""
    vectors = isotropic(ROWS, seed=1)
    memories = [new_memory(id=UUID(int=index + 1), embedding=normalize(one)) for index, one in enumerate(vectors)]
    store(database, user, *memories, now=LONG_AGO)
    # As autovacuum does within a minute: without statistics, the planner reads the table once for each candidate.
    database.write(database.call(), lambda conn: conn.execute("VACUUM (ANALYZE) memory_entries"), user_id=ACROSS_USERS)
    return vectors


@pytest.fixture(scope="module")
def module_database_url(databases: Any) -> Iterator[str]:
    """A database of 768 dimensions, where searches pick candidates by signs."""
    url = databases.create(DIMENSIONS)
    yield url
    databases.drop(url)


def nearest(vector: NDArray[np.float32], **changes: Any) -> Nearest:
    fields = {"metric": Metric.COSINE, "limit": LIMIT, "filter": Filter(), "view": View.HEAD, **changes}
    return Nearest(embedding=normalize(vector), **fields)


def find(database: Database, user_id: str, wanted: Nearest, tuning: SearchTuning) -> Answer:
    means = Means(coarse=coarse_of(DIMENSIONS), ann=None, user_rows=ROWS, tuning=tuning)
    return database.read(database.call(), lambda conn: search(conn, user_id, wanted, means), user_id=user_id)


# 64 candidates of 1,500: far too few for vectors like these.
BAD = SearchTuning(candidates_factor=6)


@pytest.mark.long
def test_bad_tuning_is_noticed_and_mended(
    database: Database, user: str, vectors: NDArray[np.float32], start_probe: StartProbe, reports: Reports
) -> None:
    tuning = TuningState(BAD, target=0.98)
    probe = start_probe(database, tuning)
    by_widening: dict[int, list[float]] = {}
    for query in isotropic(130, seed=2):
        widening = tuning.current.widening
        wanted = nearest(query)
        answer = find(database, user, wanted, tuning.current)
        assert answer.plan is Plan.QUANTIZED
        probe.offer(user, wanted, answer)
        plan, recall, _ = reports.measured.get(timeout=10)
        # The probe agrees with brute force outside the database.
        assert recall == pytest.approx(true_recall(vectors, query, answer), abs=0.101)
        assert plan is Plan.QUANTIZED
        by_widening.setdefault(widening, []).append(recall)
    means = {widening: float(np.mean(recalls)) for widening, recalls in by_widening.items()}
    assert means[1] < 0.9
    assert list(means) == sorted(means)
    assert list(means.values()) == sorted(means.values())
    assert means[max(means)] > means[1] + 0.1
    assert tuning.current.widening >= 4


def true_recall(vectors: NDArray[np.float32], query: NDArray[np.float32], answer: Answer) -> float:
    cosine = vectors @ query / np.linalg.norm(vectors, axis=1)
    best = {UUID(int=int(index) + 1) for index in np.argsort(-cosine)[:LIMIT]}
    return len(best & {hit.memory.id for hit in answer.hits}) / LIMIT


def test_concurrent_changes_are_no_misses(
    database: Database, vectors: NDArray[np.float32], start_probe: StartProbe, reports: Reports
) -> None:
    owner = f"user-{uuid4().hex}"
    memories = [new_memory(embedding=normalize(vector)) for vector in vectors[:300]]
    store(database, owner, *memories, now=LONG_AGO)
    probe = start_probe(database, TuningState(BAD, target=0.98))
    for query in isotropic(3, seed=3):
        wanted = nearest(query)
        answer = find(database, owner, nearest(query, exact=True), BAD)
        for hit in answer.hits[:4]:
            hard_delete(database, owner, hit.memory.id)
        store(database, owner, new_memory(embedding=normalize(query)), now=now())
        probe.offer(owner, wanted, as_quantized(answer))
        assert reports.measured.get(timeout=10)[1] == 1.0


def as_quantized(answer: Answer) -> Answer:
    """Returns the answer as if its plan had been an approximate one."""
    return Answer(hits=answer.hits, plan=Plan.QUANTIZED, considered=answer.considered, maybe_incomplete=False)


def test_what_was_just_written_is_not_measured(database: Database, start_probe: StartProbe, reports: Reports) -> None:
    owner = f"user-{uuid4().hex}"
    store(database, owner, *[new_memory(embedding=normalize(one)) for one in isotropic(20, seed=6)], now=now())
    start_probe(database, TuningState(BAD, target=0.98)).offer(owner, nearest(isotropic(1, seed=7)[0]), APPROXIMATE)
    assert reports.reasons.get(timeout=10) is NotMeasured.CHANGED


def test_a_real_miss_is_found_among_changes(
    database: Database, user: str, vectors: NDArray[np.float32], start_probe: StartProbe, reports: Reports
) -> None:
    query = vectors[0]
    answer = as_quantized(find(database, user, nearest(query, exact=True), BAD))
    lacking = Answer(hits=answer.hits[1:], plan=Plan.ANN, considered=0, maybe_incomplete=False)
    start_probe(database, TuningState(BAD, target=0.98)).offer(user, nearest(query), lacking)
    assert reports.measured.get(timeout=10) == (Plan.ANN, 0.9, 0.9)


@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        pytest.param({"exact": True}, Plan.EXACT, id="exact"),
        pytest.param({"ef_search": 5}, Plan.ANN, id="ef_search of the caller's own"),
        pytest.param({"candidates": 64}, Plan.QUANTIZED, id="candidates of the caller's own"),
    ],
)
def test_what_says_nothing_of_the_tuning_is_not_drawn(
    database: Database, start_probe: StartProbe, reports: Reports, changes: dict[str, Any], plan: Plan
) -> None:
    probe = start_probe(database, TuningState(BAD, target=0.98))
    answer = Answer(hits=[], plan=plan, considered=0, maybe_incomplete=False)
    probe.offer("nobody", nearest(isotropic(1, seed=4)[0], **changes), answer)
    probe.close()
    assert reports.measured.empty()
    assert reports.reasons.empty()


def test_a_fraction_of_zero_draws_nothing(database: Database, start_probe: StartProbe, reports: Reports) -> None:
    probe = start_probe(database, TuningState(BAD, target=0.98), fraction=0.0)
    for _ in range(100):
        probe.offer("nobody", nearest(isotropic(1, seed=4)[0]), APPROXIMATE)
    assert reports.reasons.empty()


APPROXIMATE = Answer(hits=[], plan=Plan.QUANTIZED, considered=0, maybe_incomplete=False)


def test_callers_do_not_wait_and_samples_do_not_pile_up(
    *,
    database: Database,
    user: str,
    vectors: NDArray[np.float32],
    activity: Activity,
    start_probe: StartProbe,
    reports: Reports,
) -> None:
    probe = start_probe(database, TuningState(BAD, target=0.98))
    wanted = nearest(vectors[0])
    with locked_table(database):
        probe.offer(user, wanted, APPROXIMATE)
        activity.wait_until_blocked("search.table")
        started_at = time.monotonic()
        for _ in range(1_000):
            probe.offer(user, wanted, APPROXIMATE)
        assert time.monotonic() - started_at < 0.5
        assert activity.running("search.table") == 1
    assert reports.measured.get(timeout=10)[1] == 0.0
    assert reports.reasons.qsize() == 1_000
    assert {reports.reasons.get() for _ in range(1_000)} == {NotMeasured.DROPPED}


class locked_table:  # noqa: N801 - reads as a context manager
    """Keeps everybody from reading memories."""

    def __init__(self, database: Database) -> None:
        self._release = threading.Event()
        self._held = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(database,))

    def _hold(self, database: Database) -> None:
        def lock(conn: Any) -> None:
            with conn.transaction():
                conn.execute("LOCK TABLE memory_entries IN ACCESS EXCLUSIVE MODE")
                self._held.set()
                self._release.wait(30)

        database.write(database.call(), lock, user_id=ACROSS_USERS)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._held.wait(10)

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._thread.join()


def test_a_search_that_takes_too_long_is_given_up(
    database: Database, user: str, vectors: NDArray[np.float32], start_probe: StartProbe, reports: Reports
) -> None:
    probe = start_probe(database, TuningState(BAD, target=0.98))
    with locked_table(database):
        started_at = time.monotonic()
        probe.offer(user, nearest(vectors[0]), APPROXIMATE)
        assert reports.reasons.get(timeout=10) is NotMeasured.FAILED
        assert 1.5 < time.monotonic() - started_at < 6
    probe.offer(user, nearest(vectors[0]), APPROXIMATE)
    assert reports.measured.get(timeout=10)[1] == 0.0


def test_closing_does_not_wait_for_the_search(
    database: Database,
    user: str,
    vectors: NDArray[np.float32],
    activity: Activity,
    start_probe: StartProbe,
) -> None:
    probe = start_probe(database, TuningState(BAD, target=0.98))
    with locked_table(database):
        probe.offer(user, nearest(vectors[0]), APPROXIMATE)
        activity.wait_until_blocked("search.table")
        started_at = time.monotonic()
        probe.close()
        assert time.monotonic() - started_at < 1.5


def test_probing_takes_its_share_of_the_time_and_no_more(
    database: Database, user: str, vectors: NDArray[np.float32], start_probe: StartProbe, reports: Reports
) -> None:
    probe = start_probe(database, TuningState(BAD, target=0.98), max_share=0.1)
    offered = 0
    started_at = time.monotonic()
    while (took_s := time.monotonic() - started_at) < 1.5:
        probe.offer(user, nearest(vectors[offered % ROWS]), APPROXIMATE)
        offered += 1
        time.sleep(0.001)
    probed = reports.measured.qsize()
    each_s = mean_probe_s(database, user, vectors)
    assert probed >= 2
    # A probe takes longer than the search alone, the more so on a busy machine: three times is plenty.
    assert probed * each_s < 0.3 * took_s
    assert reports.reasons.qsize() > offered / 2


def mean_probe_s(database: Database, user: str, vectors: NDArray[np.float32]) -> float:
    started_at = time.monotonic()
    for vector in vectors[:5]:
        find(database, user, nearest(vector, exact=True), BAD)
    return (time.monotonic() - started_at) / 5


def test_a_database_that_is_gone_is_no_end_of_probing(
    new_database: NewDatabase, open_database: OpenDatabase, start_probe: StartProbe, reports: Reports
) -> None:
    database = open_database(new_database(dimensions=DIMENSIONS), timeout_s=0.2)
    probe = start_probe(database, TuningState(BAD, target=0.98))
    database.close()
    for _ in range(2):
        probe.offer("nobody", nearest(isotropic(1, seed=5)[0]), APPROXIMATE)
        assert reports.reasons.get(timeout=10) is NotMeasured.FAILED
