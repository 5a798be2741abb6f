"""What a search has found, whichever way: the results and how they came about."""

from dataclasses import dataclass, field

from db.lexical import Term
from db.memory import Memory
from db.search import Answer, Nearest
from db.search_plan import Plan
from db.search_statements import Metric
from db.surroundings import Surroundings
from memory_service.ranking.options import Mode
from memory_service.ranking.rank import Ranked

FORMULA_OF_COSINE = "cosine-1"
# How scores are computed that are the nearness itself.
FORMULAS = {Metric.COSINE: FORMULA_OF_COSINE, Metric.INNER_PRODUCT: "inner-product-1", Metric.L2: "l2-1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One memory found."""

    memory: Memory
    score: float
    ranked: Ranked | None = None
    """How the score came about; None where it is the nearness itself."""
    surroundings: Surroundings | None = None
    """None where they were not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results, best first, and how they were found."""

    results: list[Result]
    mode: Mode
    plan: Plan
    considered: int
    """How many memories were compared precisely."""
    maybe_incomplete: bool
    """Whether there are fewer results than asked for although some may have been overlooked."""
    formula: str
    terms: list[Term] = field(default_factory=list)
    dense: tuple[Nearest, Answer] | None = None
    """The search by meaning that recall may be measured by: what was looked for and what was found."""


def of_nearest(nearest: Nearest, answer: Answer) -> Outcome:
    """Returns the outcome of a search that the nearest embeddings are the answer to."""
    return Outcome(
        results=[Result(memory=hit.memory, score=hit.score) for hit in answer.hits],
        mode=Mode.DENSE,
        plan=answer.plan,
        considered=answer.considered,
        maybe_incomplete=answer.maybe_incomplete,
        formula=FORMULAS[nearest.metric],
        dense=(nearest, answer),
    )
