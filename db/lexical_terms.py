"""What the words of a query mean for one user: their stems, how many memories there are, and a sample of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from psycopg.sql import SQL

from db import lexical_query
from db.connection import Connection
from db.lexical_query import MAX_LEXEME_BYTES, Sample, Sought, prefix_of, stem_of

# Of a long text so many stems are looked for, the most frequent and then the first, and the rarest of them count.
LEXEMES_PER_TERM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much one search looks at. A row that is found costs about 5 µs, one of the sample 2."""

    exact_rows: int = 2_000
    """Of users with more memories, frequent words are told from rare ones by a sample."""
    sample_share: float = 1 / 100
    min_sample: int = 300
    max_sample: int = 1_000
    found_share: float = 3 / 100
    min_found: int = 750
    max_found: int = 3_000
    count_up_to: int = 100_000
    """Rows of a user whose number is not known yet."""

    def sample_rows(self, rows: int | None) -> int:
        """Returns how many rows are read to tell frequent words from rare ones."""
        return round(min(self.max_sample, max(self.min_sample, (rows or 0) * self.sample_share)))

    def found_rows(self, rows: int) -> int:
        """Returns about how many rows may be found of a user with so many."""
        return round(min(self.max_found, max(self.min_found, rows * self.found_share)))


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsRequest:
    """A text to look for."""

    text: str
    language: str
    max_terms: int
    user_rows: int | None
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What the first statement tells of a query."""

    terms: list[Sought]
    phrases: str | None
    """A tsquery, as text."""
    phrase_stems: list[str]
    user_hash: str
    rows: int
    average_length: float
    sample: Sample | None
    """None for a user small enough for all terms to find."""

    @property
    def has_prefixes(self) -> bool:
        """Whether some terms are prefixes."""
        return any(term.start is not None for term in self.terms)

    def parameters(self) -> dict[str, Any]:
        """Returns what statements need of it."""
        prefixes = [term for term in self.terms if term.start is not None]
        return {
            "terms": [term.name for term in self.terms],
            "lexemes": [term.stem for term in self.terms if term.start is None],
            "starts": [term.start for term in prefixes],
            "stems": [term.stem for term in prefixes],
            "phrases": self.phrases,
            "row_count": self.rows,
            "average_length": self.average_length,
        }


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


@lru_cache(maxsize=2)
def statement(*, prefixes: bool) -> bytes:
    """Returns the statement that reads a query's terms."""
    return TERMS.format(prefixes_in_sample=_PREFIXES_IN_SAMPLE if prefixes else SQL("")).as_bytes(None)


def read_terms(conn: Connection, user_id: str, request: TermsRequest) -> Query:
    """Returns what the text asks for, and what there is to find."""
    bounds = request.bounds
    text = lexical_query.read(request.text)
    parameters = {
        "user_id": user_id,
        "language": f"pg_catalog.{request.language}",
        "text": text.words,
        "prefixes": list(text.prefixes),
        "phrases": list(text.phrases),
        "max_lexeme_bytes": MAX_LEXEME_BYTES,
        "max_lexemes": request.max_terms * LEXEMES_PER_TERM,
        "count_up_to": max(bounds.exact_rows + 1, bounds.count_up_to if request.user_rows is None else 0),
        "exact_rows": bounds.exact_rows,
        "sample_rows": bounds.sample_rows(request.user_rows),
    }
    row = conn.query(statement(prefixes=bool(text.prefixes)), parameters).fetchone()
    assert row is not None  # noqa: S101 - it selects from no table
    user_hash, lexemes, prefixes, phrases, phrase_stems, rows, average_length, sampled, numbers, names = row
    terms = [stem_of(lexeme) for lexeme in lexemes] + [prefix_of(start, stem) for start, stem in prefixes or ()]
    return Query(
        terms=list({term.name: term for term in terms}.values()),
        phrases=phrases,
        phrase_stems=phrase_stems or [],
        user_hash=user_hash,
        rows=rows if rows <= bounds.exact_rows else max(rows, request.user_rows or 0),
        average_length=average_length or 1.0,  # no rows, or none with words
        sample=Sample(sampled, zip(numbers or (), names or (), strict=True)) if sampled else None,
    )
