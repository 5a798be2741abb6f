"""How a text asks for words: its phrases and prefixes, and which of its words may find memories by themselves."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_

MAX_PHRASES = 32
MAX_PREFIXES = 32
MAX_PHRASE_CHARACTERS = 4_000
"""What a phrase has beyond is not required: PostgreSQL walks a phrase recursively, and its stack is small."""
MAX_LEXEME_BYTES = 2_000
"""A query's lexeme may have 2,046 bytes together with the hash of its user; memories with longer words are found by
their other words."""

# Common words find memories in pairs: of the rarest so many of them, the rarest so many pairs. Each pair makes
# PostgreSQL read the postings of both: 3 pairs among 20,000 rows each took 6 to 15 ms, 15 pairs 21 ms.
PAIRED_TERMS = 4
MAX_PAIRS = 3
# A term that the sample lacks may still be found in a few rows.
UNSEEN_SHARE = 0.25

_PHRASE = re.compile(r'"([^"]*)"')
# From the beginning of a word, and without trying again from within: 64 KiB of one word would take minutes.
_PREFIX = re.compile(r"(?<![^\W_])([^\W_]{2,}+)\*")


@dataclass(frozen=True, slots=True)
class QueryText:
    """What a text asks for."""

    words: str
    """All of it but the prefixes: the words of phrases score like others."""
    phrases: tuple[str, ...]
    prefixes: tuple[str, ...]


def read(text: str) -> QueryText:
    """Returns what a text asks for; nothing in it is an error.

    "in double quotes" is a phrase, as far as quotes come in pairs, and two or more letters or digits before a star
    outside of quotes are a prefix. At most MAX_PHRASES and MAX_PREFIXES count as such.
    """
    phrases = [_shortened(phrase) for phrase in _PHRASE.findall(text)]
    outside = _PHRASE.sub(" ", text)
    prefixes = list(dict.fromkeys(_PREFIX.findall(outside)))[:MAX_PREFIXES]
    words = " ".join([_PREFIX.sub(" ", outside), *_PHRASE.findall(text)])
    return QueryText(words, tuple(dict.fromkeys(filter(None, phrases)))[:MAX_PHRASES], tuple(prefixes))


def _shortened(phrase: str) -> str:
    """Returns the phrase up to the last word that begins and ends within MAX_PHRASE_CHARACTERS."""
    if len(phrase) <= MAX_PHRASE_CHARACTERS:
        return phrase.strip()
    kept = phrase[: MAX_PHRASE_CHARACTERS + 1]
    return " ".join(kept.split()[: None if kept[-1].isspace() else -1])


@dataclass(frozen=True, slots=True)
class Sought:
    """A term to look for: one stem, or all that begin in some way."""

    name: str
    """The stem, or the prefix with a star, which no stem has at its end."""
    stem: str | None
    """None where a prefix is no word of its own."""
    start: str | None = None
    """Of a prefix."""


def stem_of(lexeme: str) -> Sought:
    """Returns the term for one stem."""
    return Sought(lexeme, lexeme)


def prefix_of(start: str, stem: str | None) -> Sought:
    """Returns the term for all stems that begin with `start`, and for `stem`: that of happy* is happi."""
    return Sought(f"{start}*", stem, start)


@dataclass(frozen=True, slots=True)
class Finders:
    """Which terms find memories. The others only add to the scores of what these find."""

    clauses: tuple[tuple[Sought, ...], ...]
    """A memory is found that has all terms of one of these."""
    too_frequent: frozenset[str]
    """The names of the terms that find nobody by themselves."""


def all_find(terms: Iterable[Sought]) -> Finders:
    """Returns finders that leave out no memory with any of the terms."""
    return Finders(tuple((term,) for term in terms), frozenset())


def choose_finders(terms: Sequence[Sought], sample: "Sample", *, most_share: float) -> Finders:
    """Returns the terms that together find at most about this share of the rows, rarest first, then pairs of others.

    Where even the rarest finds more, pairs do alone; where these do as well, all terms together, as one clause.
    """
    most = most_share * sample.rows
    rarest_first = sorted(terms, key=sample.count)  # equally rare ones as in the query
    clauses: list[tuple[Sought, ...]] = []
    covered, unseen = 0, 0.0
    for term in rarest_first:
        union = covered | sample.having(term)
        unseen += 0.0 if sample.having(term) else UNSEEN_SHARE
        if union.bit_count() + unseen > most:
            break
        covered = union
        clauses.append((term,))
    others = rarest_first[len(clauses) :]
    pairs = sorted(
        itertools.combinations(others[:PAIRED_TERMS], 2),
        key=lambda pair: (sample.having(pair[0]) & sample.having(pair[1])).bit_count(),
    )
    for first, second in pairs[:MAX_PAIRS]:
        union = covered | (sample.having(first) & sample.having(second))
        if union.bit_count() + unseen <= most:
            covered = union
            clauses.append((first, second))
    if not clauses and others:
        clauses.append(tuple(others))
    return Finders(tuple(clauses), frozenset(term.name for term in others))


class Sample:
    """Some of a user's rows, and which of them have which terms: one bit a row."""

    def __init__(self, rows: int, hits: Iterable[tuple[int, str]]) -> None:
        """Takes the number of rows, and pairs of a row's number and the name of a term that it has."""
        self.rows = rows
        self._having: dict[str, int] = {}
        for row, name in hits:
            self._having[name] = self._having.get(name, 0) | 1 << row

    def having(self, term: Sought) -> int:
        """Returns the rows that have the term."""
        return self._having.get(term.name, 0)

    def share(self, clauses: Iterable[Sequence[Sought]]) -> float:
        """Returns which share of the rows has all terms of one of these clauses."""
        found = 0
        for clause in clauses:
            found |= reduce(and_, (self.having(term) for term in clause))
        return found.bit_count() / self.rows

    def count(self, term: Sought) -> int:
        """Returns how many rows have the term."""
        return self.having(term).bit_count()


def tsquery(clauses: Iterable[Sequence[Sought]], user_hash: str) -> str:
    """Returns the clauses as the text of a tsquery over `memory_terms`, whose lexemes begin with a hash of the user."""
    return " | ".join("(" + " & ".join(_operand(term, user_hash) for term in clause) + ")" for clause in clauses)


def _operand(term: Sought, user_hash: str) -> str:
    operands = [] if term.stem is None else [_quoted(f"{user_hash}:{term.stem}")]
    if term.start is not None:
        operands.append(_quoted(f"{user_hash}:{term.start}") + ":*")
    return "(" + " | ".join(operands) + ")"


def _quoted(lexeme: str) -> str:
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"
