"""The statements of the search by words, composed once for each shape of search and kept."""

from dataclasses import dataclass

from psycopg.sql import SQL, Composable

from db.filters import CompiledFilter, key_conditions, row_conditions
from db.statement_cache import StatementCache

# Marking the query's stems keeps the others from being unpacked.
_MARKED = SQL("ts_filter(setweight(lexemes, 'A', %(lexemes)s::text[]), '{a}') AS marked")
_MARKED_AND_ALL = _MARKED + SQL(", lexemes")

# How often a row has each term.
_STEMS = SQL("SELECT lexeme, cardinality(positions) FROM unnest(marked)")
_STEMS_AND_PREFIXES = _STEMS + SQL(
    """
        UNION ALL
        SELECT prefix.start || '*', sum(cardinality(positions))
        FROM unnest(lexemes)
        JOIN unnest(%(starts)s::text[], %(stems)s::text[]) AS prefix (start, stem)
            ON starts_with(lexeme, prefix.start) OR lexeme = prefix.stem
        GROUP BY prefix.start"""
)

# The hits of what was found, and who has which term. Unpacking positions takes most of the time: only of what passes,
# but where prefixes have to be looked for in all stems.
_HITS = SQL(
    """SELECT id, lexeme_count, passes, (hit).lexeme AS term, cardinality((hit).positions) AS tf
    FROM (SELECT id, lexeme_count, passes, unnest(marked) AS hit FROM found WHERE passes) unpacked"""
)
_PRESENT = SQL("SELECT unnest(tsvector_to_array(marked)) AS term FROM found")
_HITS_WITH_PREFIXES = SQL(
    "SELECT id, lexeme_count, passes, term, tf FROM found CROSS JOIN LATERAL ({tf}) AS hit (term, tf)"
).format(tf=_STEMS_AND_PREFIXES)
_PRESENT_WITH_PREFIXES = SQL("SELECT term FROM hits")

# Ends both ways to find. Without casts to float8, PostgreSQL would compute logarithms of numerics (9 ms for 2,000
# rows).
_SCORED = SQL(
    """hits AS (
    {hits}
), terms AS MATERIALIZED (
    SELECT term, df, ln(1 + (row_count - df + 0.5::float8) / (df + 0.5::float8)) AS idf
    FROM (
        SELECT term, df, greatest(%(row_count)s::float8, max(df) OVER ()) AS row_count
        FROM (
            SELECT term, greatest(at_least, coalesce(found_in, 0)) AS df
            FROM unnest(%(terms)s::text[], %(at_least)s::bigint[]) AS known (term, at_least)
            LEFT JOIN (SELECT term, count(*) AS found_in FROM ({present}) present GROUP BY term) counted USING (term)
        ) frequencies
    ) of_rows
    ORDER BY df = 0, df, term COLLATE "C"
    LIMIT %(max_terms)s
), scored AS MATERIALIZED (
    SELECT id, sum({score}) AS score
    FROM hits JOIN terms USING (term)
    WHERE passes
    GROUP BY id
), best AS MATERIALIZED (
    SELECT id, score FROM scored ORDER BY score DESC, id LIMIT %(limit)s
), others AS (
    {others}
)
SELECT
    (SELECT count(*) FROM scored),
    (SELECT row_count FROM looked_at),
    (SELECT array_agg(id ORDER BY score DESC, id) FROM best),
    (SELECT array_agg(score ORDER BY score DESC, id) FROM best),
    (SELECT array_agg(id ORDER BY score DESC, id) FROM others),
    (SELECT array_agg(score ORDER BY score DESC, id) FROM others),
    (SELECT array_agg(term ORDER BY df, term COLLATE "C") FROM terms),
    (SELECT array_agg(df ORDER BY df, term COLLATE "C") FROM terms),
    (SELECT array_agg(idf ORDER BY df, term COLLATE "C") FROM terms)
"""
)

# By words. `IS TRUE` keeps the planner from other indexes, where it would have to compute memory_terms for each row.
SEARCH = SQL(
    """/* lexical.search */
WITH found AS MATERIALIZED (
    SELECT id, lexeme_count, ({passes}) AS passes, {kept}
    FROM memory_entries
    WHERE memory_terms(user_id, lexemes) @@ (SELECT %(finders)s::text::tsquery)
        AND deleted_at IS NULL
        AND (user_id = %(user_id)s) IS TRUE
        AND ({narrowed}) IS TRUE
    LIMIT %(most_rows)s
), looked_at AS (
    SELECT count(*) AS row_count FROM found
), {scored}"""
)

# By the filter's keys: rows with none of the words have no hits. Where the keys select too many, an index tells, and
# none is read.
SEARCH_KEYED = SQL(
    """/* lexical.search_keyed */
WITH looked_at AS MATERIALIZED (
    SELECT count(*) AS row_count
    FROM (SELECT FROM memory_entries WHERE user_id = %(user_id)s AND {keys} LIMIT %(most_rows)s) keyed
), found AS MATERIALIZED (
    SELECT id, lexeme_count, true AS passes, {kept}
    FROM memory_entries
    WHERE user_id = %(user_id)s AND deleted_at IS NULL AND {passes}
        AND (SELECT row_count FROM looked_at) < %(most_rows)s
), {scored}"""
)

# BM25 (Robertson and Zaragoza 2009), with the idf that is never negative.
_SCORE = SQL(
    "idf * (tf * (%(k1)s::float8 + 1) / "
    "(tf + %(k1)s::float8 * (1 - %(b)s::float8 + %(b)s::float8 * lexeme_count / %(average_length)s::float8)))"
)

# Every row with any of the terms was looked at.
_OTHERS_FOUND = SQL("SELECT id, score FROM scored WHERE id = ANY(%(also)s) AND id NOT IN (SELECT id FROM best)")

# Rows looked up by their ids: they may have common terms only, which find nobody.
_READ = SQL(
    """SELECT id, sum({score}) AS score
    FROM unnest(%(also)s::uuid[]) AS given (given_id)
    CROSS JOIN LATERAL (
        SELECT id, lexeme_count, {kept}
        FROM memory_entries
        WHERE user_id = %(user_id)s AND id = given_id AND deleted_at IS NULL AND ({passes}) IS TRUE
        OFFSET 0
    ) entry
    CROSS JOIN LATERAL ({tf}) AS hit (term, tf)
    JOIN terms USING (term)
    {unless}
    GROUP BY id"""
)
_NOT_AMONG_THE_BEST = SQL("WHERE id NOT IN (SELECT id FROM best)")

SCORE = SQL(
    """/* lexical.score */
WITH terms AS (
    SELECT term, idf FROM unnest(%(terms)s::text[], %(idfs)s::float8[]) AS known (term, idf)
)
{read}
"""
)

_TRUE = SQL("true")


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a search is in a statement's text; everything else is a parameter."""

    filter_names: frozenset[str]
    where: bytes | None
    exclude: bool
    phrases: bool
    prefixes: bool

    @property
    def has_keys(self) -> bool:
        """Whether an index finds what the filter lets through, or little more, without reading all of the user's."""
        return bool(key_conditions(self.filter_names))


def shape_of(compiled: CompiledFilter, *, exclude: bool, phrases: bool, prefixes: bool) -> Shape:
    """Returns the shape of a search."""
    return Shape(compiled.names, compiled.where, exclude, phrases, prefixes)


@StatementCache
def search(shape: Shape, *, all_found: bool, narrowed: bool) -> bytes:
    """Returns the statement that finds and scores.

    Args:
        shape: Of the search.
        all_found: Whether every row with any of the terms is found. Otherwise `also` is looked up by its ids.
        narrowed: Whether only rows that pass the filter are looked at, document frequencies being known.
    """
    passes = _passes(shape)
    others = _OTHERS_FOUND if all_found else _read(shape, unless=_NOT_AMONG_THE_BEST)
    statement = SEARCH.format(
        passes=_TRUE if narrowed else passes,
        narrowed=passes if narrowed else _TRUE,
        kept=_kept(shape),
        scored=_scored(shape, others),
    )
    return statement.as_bytes(None)


@StatementCache
def search_keyed(shape: Shape) -> bytes:
    """Returns the statement that finds by the filter's keys, which it has, and scores; frequencies are known."""
    statement = SEARCH_KEYED.format(
        keys=SQL(" AND ").join(key_conditions(shape.filter_names)),
        passes=_passes(shape),
        kept=_kept(shape),
        scored=_scored(shape, _read(shape, unless=_NOT_AMONG_THE_BEST)),
    )
    return statement.as_bytes(None)


@StatementCache
def score(shape: Shape) -> bytes:
    """Returns the statement that scores memories by their ids, the weights of the terms being known."""
    return SCORE.format(read=_read(shape, unless=SQL(""))).as_bytes(None)


def _scored(shape: Shape, others: Composable) -> Composable:
    hits, present = (_HITS_WITH_PREFIXES, _PRESENT_WITH_PREFIXES) if shape.prefixes else (_HITS, _PRESENT)
    return _SCORED.format(hits=hits, present=present, score=_SCORE, others=others)


def _read(shape: Shape, *, unless: Composable) -> Composable:
    tf = _STEMS_AND_PREFIXES if shape.prefixes else _STEMS
    return _READ.format(score=_SCORE, kept=_kept(shape), tf=tf, passes=_passes(shape), unless=unless)


def _kept(shape: Shape) -> Composable:
    return _MARKED_AND_ALL if shape.prefixes else _MARKED


def _passes(shape: Shape) -> Composable:
    conditions = row_conditions(shape.filter_names, shape.where)
    if shape.exclude:
        conditions.append(SQL("id <> %(exclude)s"))
    if shape.phrases:
        conditions.append(SQL("lexemes @@ (SELECT %(phrases)s::text::tsquery)"))
    return SQL(" AND ").join(conditions) if conditions else _TRUE
