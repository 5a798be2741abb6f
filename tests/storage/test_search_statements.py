"""The statements of search: shared by all searches of one shape, free of values, and planned as intended."""

import re
from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgvector.psycopg import register_vector
from psycopg import sql

from db import search_statements
from db.ann_registry import AnnIndex
from db.conditions import AllOf, Compares, MemberOf, Operator
from db.filters import Filter
from db.memory import View
from db.pool import Database, PoolOptions
from db.search import Means, Nearest, search
from db.search_plan import Coarse, Plan, SearchTuning, coarse_of
from db.search_statements import Metric, Shape, shape_of
from db.user_sizes import COUNT, COUNT_UP_TO
from db.vectors import normalize, to_parameter
from db.wall import read_roles
from tests.fix_database import Databases
from tests.storage.sample_memories import NOW, new_memory, random_vector, store, unit

WHERE = AllOf((Compares(("a", "b"), Operator.LESS, 1.5), MemberOf(("c",), ("x", NOW))))
FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "conversation": {"conversation_id": "c3"},
    "importance": {"min_importance": 2, "max_importance": 9},
    "created": {"created_after": NOW, "created_before": NOW + timedelta(days=1)},
    "metadata": {"metadata_contains": {"n": 1}},
    "where": {"where": WHERE},
    "everything": {
        "conversation_id": "c3",
        "min_importance": 2,
        "max_importance": 9,
        "created_after": NOW,
        "created_before": NOW + timedelta(days=1),
        "metadata_contains": {"n": 1},
        "where": WHERE,
    },
}


def shape(filter_: Filter, *, exclude: bool = False, metric: Metric = Metric.COSINE, view: View = View.BASIC) -> Shape:
    return shape_of(metric, view, filter_.compiled(), exclude=exclude)


def statements(of: Shape) -> set[bytes]:
    """Returns the statements for a shape that serve every user."""
    return {search_statements.table(of), *(search_statements.candidates(of, coarse) for coarse in Coarse)}


def test_a_thousand_filters_of_one_shape_share_their_statements() -> None:
    texts: set[bytes] = set()
    for number in range(1_000):
        where = AllOf(
            (
                Compares((f"key {number}", "b"), Operator.LESS, number + 0.5),
                MemberOf(("c",), (*(f"text {one}" for one in range(1 + number % 7)), NOW + timedelta(days=number))),
            )
        )
        filter_ = Filter(
            conversation_id=f"conversation {number}",
            min_importance=number,
            max_importance=-number,
            metadata_contains={f"key {number}": number},
            created_after=NOW + timedelta(seconds=number),
            created_before=NOW - timedelta(seconds=number),
            where=where,
        )
        texts |= statements(shape(filter_, exclude=True))
    assert len(texts) == len(statements(shape(Filter())))


def test_statements_are_composed_once() -> None:
    composed = [search_statements.candidates(shape(Filter(min_importance=1)), Coarse.SIGNS) for _ in range(10)]
    assert len({id(statement) for statement in composed}) == 1


def test_every_difference_of_shape_makes_another_text() -> None:
    shapes = [
        shape(Filter(**filter_), exclude=exclude, metric=metric, view=view)
        for filter_, exclude, metric, view in product(FILTERS.values(), [False, True], Metric, View)
    ]
    assert len({search_statements.table(one) for one in shapes}) == len(shapes)


def test_values_are_parameters() -> None:
    for filter_ in FILTERS.values():
        for statement in statements(shape(Filter(**filter_), exclude=True)):
            text = statement.decode()
            assert "%(user_id)s" in text
            literals = set(re.findall(r"'[^']*'", text))
            # The names of JSON types and the form of a time: of the language, not of the caller.
            allowed = r"'(number|string|timestamptz|\{\}|\\1|\(\\\.\\d\{6\}\)\\d\+|\^\\d\{4\}.*)'"
            assert all(re.fullmatch(allowed, literal) for literal in literals), literals


def test_the_walks_only_literal_is_the_user() -> None:
    statement = search_statements.ann(shape(Filter(**FILTERS["metadata"]), exclude=True), "it's 100% me").decode()
    assert statement.count("'it''s 100%% me'") == 3
    assert "%(user_id)s" not in statement
    assert set(re.findall(r"'(?:[^']|'')*'", statement)) == {"'it''s 100%% me'"}


user_ids = st.sampled_from(
    ["%s", "%(limit)s", "%(user_id)s", "100%", "%%", "%b", "'", "''", "\\", "\\'", "$1", "{}", "{user_id}", "'; --"]
) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(user_id=user_ids)
def test_any_user_can_have_an_approximate_index(database: Database, user_id: str) -> None:
    owner, others = user_id + uuid4().hex, [uuid4().hex + user_id, uuid4().hex]
    memory = new_memory()
    for user in (owner, *others):
        store(database, user, memory)
    nearest = Nearest(embedding=unit(), metric=Metric.COSINE, limit=1, filter=Filter(), exclude=uuid4())
    means = Means(
        coarse=Coarse.EMBEDDING, ann=AnnIndex("any", "hnsw", 0), user_rows=None, tuning=SearchTuning(ef_search=40)
    )
    answer = database.read(database.call(), lambda conn: search(conn, owner, nearest, means), user_id=owner)
    assert answer.plan is Plan.ANN
    assert [(hit.memory.user_id, hit.memory.id) for hit in answer.hits] == [(owner, memory.id)]


USERS, ROWS = 3, 500


@pytest.fixture(scope="module", params=[8, 768])
def planner(request: pytest.FixtureRequest, databases: Databases) -> Iterator["Planner"]:
    """The planner of a database that was vacuumed."""
    url = databases.create(request.param)
    database = Database(url, PoolOptions(min_size=1, max_size=1))
    database.open()
    for user in range(USERS):
        memories = [
            new_memory(
                conversation_id=f"c{row % 10}",
                importance=1 + row % 10,
                created_at=NOW + timedelta(minutes=row),
                metadata={"n": row % 10},
                embedding=normalize(random_vector(row, dimensions=request.param)),
            )
            for row in range(ROWS)
        ]
        store(database, f"user-{user}", *memories)
    database.close()
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        connection.execute("VACUUM (ANALYZE) memory_entries")
        # As calls run: behind the wall, which forbids some indexes to some conditions.
        roles = read_roles(connection)
        assert roles is not None
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(roles.one_user)))
        connection.execute("SET memory.user_id = 'user-1'")
        yield Planner(connection, request.param)
    databases.drop(url)


class Planner:
    """Tells how PostgreSQL would run a statement."""

    def __init__(self, connection: psycopg.Connection, dimensions: int) -> None:
        self.dimensions = dimensions
        self._connection = connection

    def nodes(self, statement: str, parameters: dict[str, Any], *, mode: str) -> list[dict[str, Any]]:
        """Returns the nodes of the plan, of a prepared statement as in the service, without those below them."""
        names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
        for position, name in enumerate(names, 1):
            statement = statement.replace(f"%({name})s", f"${position}")
        types = ", ".join("halfvec" if name == "unit" else "unknown" for name in names)
        values = sql.SQL(", ").join(sql.Literal(parameters[name]) for name in names)
        self._connection.execute(f"SET plan_cache_mode = {mode}".encode())
        self._connection.execute(f"PREPARE prepared ({types}) AS {statement}".encode())
        try:
            explain = sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE prepared ({})").format(values)
            row = self._connection.execute(explain).fetchone()
        finally:
            self._connection.execute("DEALLOCATE prepared")
        assert row is not None
        return list(flattened(row[0][0]["Plan"]))


def flattened(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = node.pop("Plans", [])
    yield node
    for one in inner:
        yield from flattened(one)


MODES = ["force_generic_plan", "force_custom_plan"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FILTERS)
def test_candidates_come_from_the_index_alone_and_are_looked_up_by_id(planner: Planner, mode: str, name: str) -> None:
    filter_ = Filter(**FILTERS[name])
    for exclude, metric in ((False, Metric.COSINE), (True, Metric.COSINE), (False, Metric.L2)):
        statement = search_statements.candidates(
            shape(filter_, exclude=exclude, metric=metric), coarse_of(planner.dimensions)
        )
        parameters = filter_.compiled().parameters | {
            "user_id": "user-1",
            "unit": to_parameter(normalize(random_vector(7, dimensions=planner.dimensions))),
            "norm": 1.5,
            "exclude": UUID(int=1),
            "limit": 10,
            "candidates": 64,
            "min_score": -1.0,
            "max_text_bytes": 1_000_000,
        }
        nodes = planner.nodes(statement.decode(), parameters, mode=mode)

        reads = [(node["Node Type"], node.get("Index Name")) for node in nodes if "Scan" in node["Node Type"]]
        of_entries = [read for read in reads if str(read[1]).startswith("memory_entries")]
        # Once to compare the candidates, once to read the results.
        looked_up = [("Index Scan", "memory_entries_pkey")] * 2
        assert sorted(of_entries) == sorted([("Index Only Scan", "memory_entries_search"), *looked_up])
        assert not [
            node for node in nodes if node.get("Relation Name") == "memory_entries" and "Index Name" not in node
        ]
        assert sum(node["Node Type"] == "Nested Loop" for node in nodes) >= 2
        by_id = [node["Index Cond"] for node in nodes if node.get("Index Name") == "memory_entries_pkey"]
        assert all("user_id = " in condition and "id = " in condition for condition in by_id)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("planner", [768], indirect=True)
def test_the_query_is_quantized_once(planner: Planner, mode: str) -> None:
    statement = search_statements.candidates(shape(Filter()), Coarse.SIGNS)
    query = to_parameter(normalize(np.ones(planner.dimensions)))
    parameters = dict.fromkeys(("norm", "limit", "candidates", "min_score", "max_text_bytes"), 10)
    nodes = planner.nodes(statement.decode(), {**parameters, "user_id": "user-1", "unit": query}, mode=mode)
    once = [node for node in nodes if node["Node Type"] == "Result" and node["Parent Relationship"] == "InitPlan"]
    assert len(once) == 1
    assert "binary_quantize" not in str(nodes)


@pytest.mark.parametrize("mode", MODES)
def test_counting_reads_an_index_only(planner: Planner, mode: str) -> None:
    nodes = planner.nodes(COUNT, {"user_id": "user-1", "up_to": COUNT_UP_TO}, mode=mode)
    assert [node["Node Type"] for node in nodes if "Scan" in node["Node Type"]] == ["Index Only Scan"]
