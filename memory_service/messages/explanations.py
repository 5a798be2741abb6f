"""Telling how scores came about: the explanation of each result, and the words that were looked for."""

from collections.abc import Iterable

from db.lexical import Term
from memory_service.ranking.rank import Ranked
from memory_service.search_outcome import FORMULA_OF_COSINE, Outcome, Result
from memory_service.v1 import memory_pb2 as pb


def fill(message: pb.Explanation, result: Result, outcome: Outcome, *, rank: int) -> None:
    """Says how the score of a result came about; `rank` is its place among the results, from 1."""
    if result.ranked is not None:
        _fill_ranked(message, result.ranked)
        return
    message.relevance = result.score
    message.dense_rank = rank
    if outcome.formula == FORMULA_OF_COSINE:
        message.cosine = result.score


def _fill_ranked(message: pb.Explanation, ranked: Ranked) -> None:
    candidate = ranked.candidate
    message.relevance = ranked.relevance
    if candidate.cosine is not None:
        message.cosine = candidate.cosine
    if ranked.dense is not None:
        message.dense = ranked.dense
    if ranked.lexical is not None:
        message.bm25 = candidate.bm25
        message.lexical = ranked.lexical
    if candidate.dense_rank is not None:
        message.dense_rank = candidate.dense_rank
    if candidate.lexical_rank is not None:
        message.lexical_rank = candidate.lexical_rank
    if ranked.conversation is not None:
        message.conversation = ranked.conversation
    if ranked.max_similarity is not None:
        message.max_similarity = ranked.max_similarity
    for boost in ranked.boosts:
        message.boosts.add(name=boost.name, value=boost.value, weight=boost.weight, factor=boost.factor)


def fill_terms(message: pb.SearchSimilarResponse, terms: Iterable[Term]) -> None:
    """Lists the words that were looked for, rarest first."""
    for term in terms:
        message.terms.add(
            lexeme=term.lexeme,
            document_frequency=term.document_frequency,
            idf=term.idf,
            too_frequent=term.too_frequent,
        )
