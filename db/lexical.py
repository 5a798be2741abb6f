"""Finding the memories of one user by words: BM25 over their stems, with the user's own document frequencies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from db import lexical_statements
from db.connection import Connection, Statement
from db.filters import Filter
from db.lexical_query import Finders, Sample, all_find, choose_finders, stem_of, tsquery
from db.lexical_statements import Shape
from db.lexical_terms import DEFAULT_BOUNDS, Bounds, Query, TermsRequest, read_terms

# Of the rows that may be found so many times are looked at, should the sample have misled.
CUT_OFF = 1.25
# The rows of a conversation or a time are read, in place of those with the words, up to this share of them and up to so
# many times as the words may find. 6,000 of 60,000 took 22 ms in place of 35; by words reading stops early where more
# pass.
KEYED_SHARE = 0.5
MOST_KEYED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What to look for by words."""

    text: str
    language: str
    """One of db.languages, to stem the text in."""
    k1: float = 1.2
    b: float = 0.75
    max_terms: int = 32


@dataclass(frozen=True, slots=True)
class Term:
    """A term that was looked for."""

    lexeme: str
    """A stem, or a prefix with a star."""
    document_frequency: int
    """How many live memories of the user have it; an estimate where it was too frequent."""
    idf: float
    too_frequent: bool
    """Whether it found nobody by itself and only counted where others had."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a search scored what it found."""

    shape: Shape
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LexicalAnswer:
    """What was found."""

    scores: dict[UUID, float]
    """BM25, above 0, of the best `limit`, best first and equals by id, and then of those of `also` that match."""
    terms: list[Term]
    """Rarest first; empty when the text has no words to look for."""
    maybe_incomplete: bool
    """Whether fewer than `limit` were found although there may be more."""
    scoring: Scoring | None = None
    """To score other memories likewise, see `score_words`; None when the text has no words to look for."""


def search_words(
    conn: Connection,
    user_id: str,
    words: Words,
    *,
    filter: Filter,  # noqa: A002 - as everywhere else
    exclude: UUID | None,
    limit: int,
    also: Sequence[UUID] = (),
    user_rows: int | None,
    bounds: Bounds = DEFAULT_BOUNDS,
) -> LexicalAnswer:
    """Returns the memories with any of the words that pass the filter, by BM25, and the BM25 of those of `also`.

    The length of a memory is the number of its distinct stems. Memories found have every "phrase" of the text.

    Args:
        conn: Where to ask.
        user_id: Whose memories.
        words: What to look for.
        filter: Which memories may be found. Soft-deleted ones never are.
        exclude: One that is not to be found.
        limit: How many at most.
        also: Ids whose score is wanted even where they are not among the best.
        user_rows: About how many live memories the user has, None while not known.
        bounds: How much to look at.
    """
    request = TermsRequest(
        text=words.text, language=words.language, max_terms=words.max_terms, user_rows=user_rows, bounds=bounds
    )
    query = read_terms(conn, user_id, request)
    if not query.terms:
        return LexicalAnswer({}, [], maybe_incomplete=False)
    compiled = filter.compiled()
    shape = lexical_statements.shape_of(
        compiled, exclude=exclude is not None, phrases=query.phrases is not None, prefixes=query.has_prefixes
    )
    wanted = {"user_id": user_id, "exclude": exclude, "limit": limit, "also": list(dict.fromkeys(also))}
    weights = {"k1": words.k1, "b": words.b, "max_terms": words.max_terms}
    parameters = compiled.parameters | query.parameters() | wanted | weights
    most_found = max(bounds.found_rows(query.rows), 2 * limit)
    run = _Run(
        conn=conn,
        query=query,
        shape=shape,
        parameters=parameters,
        limit=limit,
        most_found=most_found,
        most_rows=2 * bounds.exact_rows if query.sample is None else round(CUT_OFF * most_found),
    )
    return run.answer(restricted=filter.restricts or exclude is not None)


@dataclass(frozen=True, slots=True)
class _Found:
    """What one statement found."""

    passed: int
    """How many rows have words of the query and pass the filter."""
    cut_off: bool
    """Whether there are more rows to look at than were."""
    scores: dict[UUID, float]
    frequencies: dict[str, tuple[int, float]]
    """Of each term the document frequency and idf, rarest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One search: its statements share parameters."""

    conn: Connection
    query: Query
    shape: Shape
    parameters: dict[str, Any]
    limit: int
    most_found: int
    """About how many rows the finders may find of a user who is too large for all terms to find."""
    most_rows: int
    """How many are looked at, however many they find."""

    def answer(self, *, restricted: bool) -> LexicalAnswer:
        """Finds by the terms that are not too frequent, and by the others where a filter leaves too few."""
        query, sample = self.query, self.query.sample
        if sample is None:
            finders = all_find(query.terms)
            return self._answer(self._find(finders, known={}, narrowed=False), finders)
        estimates = {term.name: round(query.rows * sample.count(term) / sample.rows) for term in query.terms}
        if query.phrase_stems:
            finders = Finders((tuple(stem_of(stem) for stem in query.phrase_stems),), frozenset())
            return self._answer(self._find_passing(finders, sample, known=estimates), finders)
        finders = choose_finders(query.terms, sample, most_share=self.most_found / query.rows)
        known = {name: estimates[name] for name in finders.too_frequent}
        found = self._find(finders, known=known, narrowed=False)
        if finders.too_frequent and restricted and found.passed < self.limit:
            # Those beyond `max_terms` are not among the frequencies; where few rows pass they must not look rare.
            known = estimates | {name: frequency for name, (frequency, _) in found.frequencies.items()}
            finders = all_find(query.terms)
            found = self._find_passing(finders, sample, known=known)
        return self._answer(found, finders)

    def _find_passing(self, finders: Finders, sample: Sample, *, known: Mapping[str, int]) -> _Found:
        """Finds all that pass the filter: by its keys, where they select fewer rows than the words."""
        with_words = self.query.rows * sample.share(finders.clauses)
        if self.shape.has_keys and with_words > self.most_found:
            most_rows = round(min(KEYED_SHARE * with_words, MOST_KEYED * self.most_found))
            found = self._find_keyed(most_rows, known=known)
            if not found.cut_off:
                return found
        return self._find(finders, known=known, narrowed=True)

    def _find(self, finders: Finders, *, known: Mapping[str, int], narrowed: bool) -> _Found:
        """Finds by words; `known` are document frequencies that the rows found may not show."""
        all_found = not finders.too_frequent and not narrowed
        statement = lexical_statements.search(self.shape, all_found=all_found, narrowed=narrowed)
        words = tsquery(finders.clauses, self.query.user_hash)
        # Behind the wall PostgreSQL compares users before words, and so finds words without their index: 100 ms for 5.
        with self.conn.across_users():
            return self._found(statement, self.most_rows, known, finders=words)

    def _find_keyed(self, most_rows: int, *, known: Mapping[str, int]) -> _Found:
        """Finds among what the filter's keys select; nothing where that is so many rows or more."""
        return self._found(lexical_statements.search_keyed(self.shape), most_rows, known)

    def _found(self, statement: Statement, most_rows: int, known: Mapping[str, int], **more: str) -> _Found:
        at_least = [known.get(term.name, 0) for term in self.query.terms]
        parameters = self.parameters | more | {"at_least": at_least, "most_rows": most_rows}
        row = self.conn.query(statement, parameters).fetchone()
        assert row is not None  # noqa: S101 - it selects no table
        passed, looked_at, best, best_scores, others, others_scores, terms, frequencies, idfs = row
        ids = [*(best or ()), *(others or ())]
        scores = [*(best_scores or ()), *(others_scores or ())]
        return _Found(
            passed,
            looked_at == most_rows,
            dict(zip(ids, scores, strict=True)),
            dict(zip(terms, zip(frequencies, idfs, strict=True), strict=True)),
        )

    def _answer(self, found: _Found, finders: Finders) -> LexicalAnswer:
        terms = [
            Term(name, frequency, idf, too_frequent=name in finders.too_frequent)
            for name, (frequency, idf) in found.frequencies.items()
        ]
        overlooked = found.cut_off or bool(finders.too_frequent)
        weights = {"terms": list(found.frequencies), "idfs": [idf for _, idf in found.frequencies.values()]}
        return LexicalAnswer(
            found.scores,
            terms,
            maybe_incomplete=overlooked and found.passed < self.limit,
            scoring=Scoring(self.shape, self.parameters | weights),
        )


def score_words(conn: Connection, answer: LexicalAnswer, ids: Sequence[UUID]) -> dict[UUID, float]:
    """Returns the BM25 of those of these memories that the search would find, as it would score them.

    Costs a look-up for each, not another search.
    """
    if answer.scoring is None or not ids:
        return {}
    parameters = {**answer.scoring.parameters, "also": list(dict.fromkeys(ids))}
    rows = conn.query(lexical_statements.score(answer.scoring.shape), parameters).fetchall()
    return dict(rows)
