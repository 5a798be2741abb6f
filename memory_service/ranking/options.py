"""What a ranking can be told: how sides are joined, what lifts a memory, and how results are kept apart."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto

DEFAULT_HALF_LIFE_S = timedelta(days=30).total_seconds()


class Mode(Enum):
    """What relevance is made of."""

    DENSE = auto()
    LEXICAL = auto()
    HYBRID = auto()


@dataclass(frozen=True, slots=True)
class Convex:
    """HYBRID by a weighted mean of the normalized scores of both sides."""

    dense_weight: float
    """0 to 1; the lexical side has the rest."""


@dataclass(frozen=True, slots=True)
class Rrf:
    """HYBRID by reciprocal rank fusion."""

    k: float
    """1 to 1,000; the larger, the less the first ranks stand out."""


Fusion = Convex | Rrf


class Clock(Enum):
    """What a memory's age counts from."""

    CREATED = auto()
    UPDATED = auto()
    ACCESSED = auto()
    """Creation, where it was never accessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boosts:
    """What lifts a memory beside its relevance; weights are 0 (without effect) to 0.5."""

    recency_weight: float = 0.0
    half_life_s: float = DEFAULT_HALF_LIFE_S
    """The age, in seconds, at which recency is one half."""
    clock: Clock = Clock.CREATED
    importance_weight: float = 0.0
    access_weight: float = 0.0

    @property
    def neutral(self) -> bool:
        """Whether scores are relevance alone."""
        return not (self.recency_weight or self.importance_weight or self.access_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationWeights:
    """What a memory gains from its conversation."""

    neighbour: float = 0.0
    """Share of the relevance of the memories before and after it, 0 to 1."""
    conversation: float = 0.0
    """Share of its conversation's own score, 0 to 1."""

    @property
    def neutral(self) -> bool:
        """Whether conversations are without effect."""
        return not (self.neighbour or self.conversation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How results are kept from repeating one another."""

    mmr_lambda: float | None = None
    """1 is score alone, 0 difference alone; None switches maximal marginal relevance off."""
    collapse_similarity: float | None = None
    """The cosine similarity, above 0, from which on only the better of two is a result; None keeps both."""

    @property
    def neutral(self) -> bool:
        """Whether embeddings are not needed."""
        return self.mmr_lambda is None and self.collapse_similarity is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingOptions:
    """Everything that a ranking depends on beside its candidates."""

    mode: Mode
    fusion: Fusion
    """Of HYBRID; without effect in the other modes."""
    boosts: Boosts = field(default_factory=Boosts)
    conversation: ConversationWeights = field(default_factory=ConversationWeights)
    diversity: Diversity = field(default_factory=Diversity)
    as_of: datetime
    """When ages are counted to, aware of its zone."""
    limit: int
    """The most results, at least 1."""
    min_score: float | None = None
    """The least score of a result; None takes all."""

    @property
    def formula(self) -> str:
        """The name of the way scores are computed; its number grows when the same data would be scored differently."""
        match self.mode, self.fusion:
            case Mode.DENSE, _:
                return "dense-1"
            case Mode.LEXICAL, _:
                return "lexical-1"
            case Mode.HYBRID, Convex():
                return "convex-1"
            case Mode.HYBRID, Rrf():
                return "rrf-1"
