"""The statements of the search plans, composed once for each shape of search and kept."""

from dataclasses import dataclass
from enum import Enum

from psycopg.sql import SQL, Composable, Literal

from db.filters import EMBEDDED, CompiledFilter, index_conditions, of_user, row_conditions
from db.memory import COLUMNS, View
from db.search_plan import Coarse
from db.statement_cache import StatementCache


class Metric(Enum):
    """The measure of nearness, always of the original vectors."""

    COSINE = "cosine"
    INNER_PRODUCT = "inner_product"
    L2 = "l2"


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a search is in a statement's text; everything else is a parameter."""

    metric: Metric
    view: View
    filter_names: frozenset[str]
    where: bytes | None
    exclude: bool


def shape_of(metric: Metric, view: View, compiled: CompiledFilter, *, exclude: bool) -> Shape:
    """Returns the shape of a search."""
    return Shape(metric, view, compiled.names, compiled.where, exclude)


# Smaller is nearer. Stored vectors have unit length u and their norm n; the query likewise q and its norm:
#   inner product  n·|q| · (u·q), which <#> returns negated
#   Euclidean      |n·u - |q|·q|² = (n - |q|)² + n·|q|·|u - q|², exact also for vectors close together, where
#                  n² + |q|² - 2·n·|q|·(u·q) would lose everything to cancellation
_DISTANCE = {
    Metric.COSINE: SQL("embedding <=> %(unit)s"),
    Metric.INNER_PRODUCT: SQL("embedding_norm * %(norm)s * (embedding <#> %(unit)s)"),
    Metric.L2: SQL("sqrt((embedding_norm - %(norm)s) ^ 2 + embedding_norm * %(norm)s * (embedding <-> %(unit)s) ^ 2)"),
}

# Computed once: written inline, a prepared statement would quantize the query again for every row (57 ms against 13).
_SIGNS = SQL("bits <~> (SELECT binary_quantize(%(unit)s))")

# The contract's scale: larger is nearer. Rounding may take a cosine beyond its bounds.
_SCORE = {
    Metric.COSINE: SQL("greatest(-1.0, least(1.0, 1.0 - distance))"),
    Metric.INNER_PRODUCT: SQL("-distance"),
    Metric.L2: SQL("-distance"),
}

# Ends every plan. Text is read for the results only, and only when all of it fits the reply: otherwise `m` is NULL.
# The counts come back even where nothing was found.
RESULTS = """), scored AS (
    SELECT id, distance, text_bytes, {score} AS score FROM nearest
), sized AS (
    SELECT id, distance, score, sum(text_bytes) OVER () AS text_bytes FROM scored WHERE score >= %(min_score)s
)
SELECT counted.picked, counted.compared, sized.id, sized.score, sized.text_bytes, {columns}
FROM (SELECT (SELECT count(*) FROM {picked}) AS picked, (SELECT count(*) FROM {compared}) AS compared) counted
LEFT JOIN sized ON true
LEFT JOIN memory_entries m ON m.user_id = {user_id} AND m.id = sized.id AND sized.text_bytes <= %(max_text_bytes)s
LEFT JOIN LATERAL (
    SELECT access_count, last_accessed_at FROM memory_access WHERE user_id = {user_id} AND id = m.id OFFSET 0
) a ON true
ORDER BY sized.distance, sized.id
"""

# Every row of the user, in the table: for soft-deleted memories, and where no covering index can help. Parenthesized
# or not, `+ 0` keeps the planner from an approximate index of the same user.
TABLE = SQL(
    """/* search.table */
WITH compared AS MATERIALIZED (
    SELECT id, ({distance}) + 0 AS distance, text_bytes
    FROM memory_entries
    WHERE {conditions}
), nearest AS (
    SELECT * FROM compared ORDER BY distance, id LIMIT %(limit)s
"""
    + RESULTS
)

# Candidates from the covering index alone, then the best of them from the table. One more is picked than compared: it
# tells whether there are others. OFFSET 0 keeps the planner from turning some hundred look-ups into a scan of the
# whole table (2.3 ms against 12).
CANDIDATES = SQL(
    """/* search.candidates */
WITH picked AS MATERIALIZED (
    SELECT id, ({coarse}) + 0 AS coarse
    FROM memory_entries
    WHERE {index_conditions}
    ORDER BY coarse, id
    LIMIT %(candidates)s + 1
), compared AS MATERIALIZED (
    SELECT candidates.id, entries.distance, entries.text_bytes
    FROM (SELECT id FROM picked ORDER BY coarse, id LIMIT %(candidates)s) candidates
    CROSS JOIN LATERAL (
        SELECT ({distance}) + 0 AS distance, text_bytes
        FROM memory_entries
        WHERE {row_conditions} AND id = candidates.id
        OFFSET 0
    ) entries
), nearest AS (
    SELECT * FROM compared ORDER BY distance, id LIMIT %(limit)s
"""
    + RESULTS
)

# The user's own partial index, whose predicate the planner recognizes in the literal user_id. What it finds it hands
# over nearly in the order of distance; the results are sorted again.
ANN = SQL(
    """/* search.ann */
WITH walked AS MATERIALIZED (
    SELECT id, embedding <=> %(unit)s AS distance, text_bytes
    FROM memory_entries
    WHERE {conditions}
    ORDER BY embedding <=> %(unit)s
    LIMIT %(walk)s
), nearest AS (
    SELECT * FROM walked ORDER BY distance + 0, id LIMIT %(limit)s
"""
    + RESULTS
)

_USER = SQL("%(user_id)s")
_EXCLUDED = SQL("id <> %(exclude)s")


@StatementCache
def table(shape: Shape) -> bytes:
    """Returns the statement that compares all rows."""
    return _composed(
        TABLE,
        shape,
        user_id=_USER,
        picked=SQL("compared"),
        compared=SQL("compared"),
        distance=_DISTANCE[shape.metric],
        conditions=of_user(_rows(shape)),
    )


@StatementCache
def candidates(shape: Shape, coarse: Coarse) -> bytes:
    """Returns the statement that picks candidates from the covering index."""
    pickable = index_conditions(shape.filter_names)
    if shape.exclude:
        pickable.append(_EXCLUDED)
    return _composed(
        CANDIDATES,
        shape,
        user_id=_USER,
        picked=SQL("picked"),
        compared=SQL("compared"),
        coarse=_DISTANCE[shape.metric] if coarse is Coarse.EMBEDDING else _SIGNS,
        distance=_DISTANCE[shape.metric],
        index_conditions=of_user(pickable),
        row_conditions=of_user(_rows(shape)),
    )


@StatementCache
def ann(shape: Shape, user_id: str) -> bytes:
    """Returns the statement that walks this user's approximate index."""
    # psycopg takes % for the beginning of a parameter, in literals too.
    literal = SQL(Literal(user_id).as_string(None).replace("%", "%%"))
    return _composed(
        ANN,
        shape,
        user_id=literal,
        picked=SQL("walked"),
        compared=SQL("walked"),
        conditions=SQL("\n        AND ").join([SQL("user_id = {}").format(literal), *_rows(shape)]),
    )


def _composed(template: SQL, shape: Shape, **parts: Composable) -> bytes:
    statement = template.format(score=_SCORE[shape.metric], columns=SQL(COLUMNS[shape.view]), **parts)
    return statement.as_bytes(None)


def _rows(shape: Shape) -> list[Composable]:
    conditions = [*row_conditions(shape.filter_names, shape.where), EMBEDDED]
    if shape.exclude:
        conditions.append(_EXCLUDED)
    return conditions
