"""Finding the memories of one user nearest to a vector."""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from uuid import UUID

from psycopg.sql import SQL

from db.connection import Connection
from db.errors import ReplyTooLarge
from db.filters import Filter, where
from db.memory import COLUMNS, Memory, View, from_row
from db.vectors import Embedding, to_parameter


class Metric(Enum):
    """The measure of nearness, always of the original vectors."""

    COSINE = "cosine"
    INNER_PRODUCT = "inner_product"
    L2 = "l2"


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory found; a larger score is nearer."""

    memory: Memory
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """What to look for: the `limit` live memories nearest to `embedding` that pass the filter."""

    embedding: Embedding
    metric: Metric
    limit: int
    filter: Filter
    exclude: UUID | None = None
    min_score: float | None = None
    view: View = View.BASIC
    max_text_bytes: int | None = None


# Smaller is nearer. Stored vectors have unit length u and their norm n; the query likewise q and its norm:
#   inner product  n·|q| · (u·q), which <#> returns negated
#   Euclidean      |n·u - |q|·q|² = (n - |q|)² + n·|q|·|u - q|², exact also for vectors close together, where
#                  n² + |q|² - 2·n·|q|·(u·q) would lose everything to cancellation
_DISTANCE = {
    Metric.COSINE: SQL("embedding <=> %(unit)s"),
    Metric.INNER_PRODUCT: SQL("embedding_norm * %(norm)s * (embedding <#> %(unit)s)"),
    Metric.L2: SQL("sqrt((embedding_norm - %(norm)s) ^ 2 + embedding_norm * %(norm)s * (embedding <-> %(unit)s) ^ 2)"),
}

# First ids and distances, then the rows: text is not carried through the sort, and is read for the results only,
# and only when all of it fits the reply (otherwise `m` is all NULL).
EXACT = SQL("""/* search.exact */
WITH nearest AS (
    SELECT id, {distance} AS distance, text_bytes
    FROM memory_entries
    WHERE {where}
    ORDER BY distance, id
    LIMIT %(limit)s
), sized AS (
    SELECT id, distance, sum(text_bytes) OVER () AS text_bytes FROM nearest
)
SELECT sized.distance, sized.text_bytes, {columns}
FROM sized
LEFT JOIN memory_entries m ON m.user_id = %(user_id)s AND m.id = sized.id AND sized.text_bytes <= %(max_text_bytes)s
LEFT JOIN memory_access a ON a.user_id = %(user_id)s AND a.id = m.id
ORDER BY sized.distance, sized.id
""")

_UNLIMITED = 2**62


@lru_cache(maxsize=1_024)
def _statement(metric: Metric, view: View, shape: frozenset[str], *, exclude: bool) -> bytes:
    conditions = where(shape)
    if exclude:
        conditions += SQL(" AND id <> %(exclude)s")
    statement = EXACT.format(distance=_DISTANCE[metric], where=conditions, columns=SQL(COLUMNS[view]))
    return statement.as_bytes(None)


def search(conn: Connection, user_id: str, nearest: Nearest) -> list[Hit]:
    """Returns what is nearest, nearest first, equal distances by id.

    Raises:
        ReplyTooLarge: When the results hold more than `max_text_bytes` of text.
    """
    statement = _statement(nearest.metric, nearest.view, nearest.filter.shape(), exclude=nearest.exclude is not None)
    reads_text = nearest.view is not View.HEAD
    parameters = nearest.filter.parameters() | {
        "user_id": user_id,
        "unit": to_parameter(nearest.embedding),
        "norm": nearest.embedding.norm,
        "exclude": nearest.exclude,
        "limit": nearest.limit,
        "max_text_bytes": nearest.max_text_bytes if reads_text and nearest.max_text_bytes is not None else _UNLIMITED,
    }
    rows = conn.query(statement, parameters).fetchall()
    if rows and rows[0][2] is None:
        raise ReplyTooLarge(count=len(rows), size=rows[0][1], allowed=parameters["max_text_bytes"])
    hits = [Hit(from_row(row[2:]), _score(nearest.metric, row[0])) for row in rows]
    if nearest.min_score is None:
        return hits
    return [hit for hit in hits if hit.score >= nearest.min_score]


def _score(metric: Metric, distance: float) -> float:
    if metric is Metric.COSINE:
        return max(-1.0, min(1.0, 1.0 - distance))
    return -distance
