"""The statements of the search by words, composed once for each shape of search and kept."""

from dataclasses import dataclass
from functools import lru_cache

from psycopg.sql import SQL, Composable

from db.filters import CompiledFilter, row_conditions

# The order of content_hash is random, and always the same: its first rows are a fair sample. The first are counted and
# their lengths averaged in the index alone; of a larger user some are read, to tell common words from rare ones.
TERMS = SQL(
    """/* lexical.terms */
WITH words AS MATERIALIZED (
    SELECT coalesce(array_agg(lexeme ORDER BY occurrences DESC, place, lexeme), '{{}}') AS lexemes
    FROM (
        SELECT lexeme, cardinality(positions) AS occurrences, positions[1] AS place
        FROM unnest(to_tsvector(%(language)s::regconfig, %(text)s))
        WHERE octet_length(lexeme) <= %(max_lexeme_bytes)s
        ORDER BY occurrences DESC, place, lexeme
        LIMIT %(max_lexemes)s
    ) first
), prefixes AS MATERIALIZED (
    SELECT given.place, start.lexeme AS start, stem.lexeme AS stem
    FROM unnest(%(prefixes)s::text[]) WITH ORDINALITY AS given (prefix, place)
    CROSS JOIN LATERAL (
        SELECT lexeme FROM unnest(to_tsvector('pg_catalog.simple', given.prefix))
        ORDER BY positions DESC, lexeme LIMIT 1
    ) start
    LEFT JOIN LATERAL (
        SELECT lexeme FROM unnest(to_tsvector(%(language)s::regconfig, given.prefix))
        ORDER BY positions DESC, lexeme LIMIT 1
    ) stem ON true
    WHERE octet_length(start.lexeme) <= %(max_lexeme_bytes)s
), sized AS MATERIALIZED (
    SELECT count(*) AS row_count, avg(lexeme_count)::float8 AS average_length
    FROM (
        SELECT lexeme_count FROM memory_entries WHERE user_id = %(user_id)s AND deleted_at IS NULL
        ORDER BY content_hash LIMIT %(count_up_to)s
    ) counted
), sampled AS MATERIALIZED (
    SELECT row_number() OVER () - 1 AS number, marked
    FROM (
        SELECT tsvector_to_array(
            ts_filter(setweight(lexemes, 'A', (SELECT lexemes FROM words)), '{{a}}')){prefixes_in_sample} AS marked
        FROM memory_entries
        WHERE user_id = %(user_id)s AND deleted_at IS NULL AND (SELECT row_count FROM sized) > %(exact_rows)s
        ORDER BY content_hash
        LIMIT %(sample_rows)s
    ) sample
), hits AS MATERIALIZED (
    SELECT number, name FROM sampled, unnest(marked) AS name
)
SELECT to_hex(hashtextextended(%(user_id)s::text, 0)),
    (SELECT lexemes FROM words),
    (SELECT array_agg(ARRAY[start, stem] ORDER BY place) FROM prefixes),
    (
        SELECT string_agg('(' || query::text || ')', ' & ')
        FROM unnest(%(phrases)s::text[]) AS phrase, phraseto_tsquery(%(language)s::regconfig, phrase) AS query
        WHERE numnode(query) > 0
    ),
    (
        SELECT array_agg(DISTINCT lexeme)
        FROM unnest(%(phrases)s::text[]) AS phrase, unnest(to_tsvector(%(language)s::regconfig, phrase))
        WHERE octet_length(lexeme) <= %(max_lexeme_bytes)s
    ),
    (SELECT row_count FROM sized),
    (SELECT average_length FROM sized),
    (SELECT count(*) FROM sampled),
    (SELECT array_agg(number) FROM hits),
    (SELECT array_agg(name) FROM hits)
"""
)

_PREFIXES_IN_SAMPLE = SQL(
    """ || ARRAY(
            SELECT start || '*' FROM prefixes WHERE EXISTS (
                SELECT FROM unnest(tsvector_to_array(lexemes)) AS lexeme
                WHERE starts_with(lexeme, start) OR lexeme = stem))"""
)

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

# `IS TRUE` keeps the planner from other indexes, where it would have to compute memory_terms for each row. Without
# casts to float8, PostgreSQL would compute logarithms of numerics (9 ms for 2,000 rows).
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
), hits AS MATERIALIZED (
    SELECT id, lexeme_count, passes, term, tf FROM found CROSS JOIN LATERAL ({tf}) AS hit (term, tf)
), terms AS MATERIALIZED (
    SELECT term, df, ln(1 + (row_count - df + 0.5::float8) / (df + 0.5::float8)) AS idf
    FROM (
        SELECT term, df, greatest(%(row_count)s::float8, max(df) OVER ()) AS row_count
        FROM (
            SELECT term, greatest(at_least, count(hits.term)) AS df
            FROM unnest(%(terms)s::text[], %(at_least)s::bigint[]) AS known (term, at_least)
            LEFT JOIN hits USING (term)
            GROUP BY term, at_least
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
    (SELECT count(*) FROM found),
    (SELECT array_agg(id ORDER BY score DESC, id) FROM best),
    (SELECT array_agg(score ORDER BY score DESC, id) FROM best),
    (SELECT array_agg(id ORDER BY score DESC, id) FROM others),
    (SELECT array_agg(score ORDER BY score DESC, id) FROM others),
    (SELECT array_agg(term ORDER BY df, term COLLATE "C") FROM terms),
    (SELECT array_agg(df ORDER BY df, term COLLATE "C") FROM terms),
    (SELECT array_agg(idf ORDER BY df, term COLLATE "C") FROM terms)
"""
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


def shape_of(compiled: CompiledFilter, *, exclude: bool, phrases: bool, prefixes: bool) -> Shape:
    """Returns the shape of a search."""
    return Shape(compiled.names, compiled.where, exclude, phrases, prefixes)


@lru_cache(maxsize=2)
def terms(*, prefixes: bool) -> bytes:
    """Returns the statement that reads a query's terms."""
    return TERMS.format(prefixes_in_sample=_PREFIXES_IN_SAMPLE if prefixes else SQL("")).as_bytes(None)


@lru_cache(maxsize=1_024)
def search(shape: Shape, *, all_found: bool, narrowed: bool) -> bytes:
    """Returns the statement that finds and scores.

    Args:
        shape: Of the search.
        all_found: Whether every row with any of the terms is found. Otherwise `also` is looked up by its ids.
        narrowed: Whether only rows that pass the filter are looked at, document frequencies being known.
    """
    passes, (tf, kept) = _passes(shape), _terms_of_a_row(shape)
    others = _OTHERS_FOUND if all_found else _read(shape, unless=_NOT_AMONG_THE_BEST)
    statement = SEARCH.format(
        passes=_TRUE if narrowed else passes,
        narrowed=passes if narrowed else _TRUE,
        kept=kept,
        tf=tf,
        score=_SCORE,
        others=others,
    )
    return statement.as_bytes(None)


@lru_cache(maxsize=1_024)
def score(shape: Shape) -> bytes:
    """Returns the statement that scores memories by their ids, the weights of the terms being known."""
    return SCORE.format(read=_read(shape, unless=SQL(""))).as_bytes(None)


def _read(shape: Shape, *, unless: Composable) -> Composable:
    tf, kept = _terms_of_a_row(shape)
    return _READ.format(score=_SCORE, kept=kept, tf=tf, passes=_passes(shape), unless=unless)


def _terms_of_a_row(shape: Shape) -> tuple[Composable, Composable]:
    return (_STEMS_AND_PREFIXES, _MARKED_AND_ALL) if shape.prefixes else (_STEMS, _MARKED)


def _passes(shape: Shape) -> Composable:
    conditions = row_conditions(shape.filter_names, shape.where)
    if shape.exclude:
        conditions.append(SQL("id <> %(exclude)s"))
    if shape.phrases:
        conditions.append(SQL("lexemes @@ (SELECT %(phrases)s::text::tsquery)"))
    return SQL(" AND ").join(conditions) if conditions else _TRUE
