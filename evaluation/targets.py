"""What searches have to reach, from the figures of all parts that were measured."""

from collections.abc import Iterator

from harness.results_file import Json
from harness.targets import Target, at_least, at_most

# Measured outside the service on the same texts: BM25 without stemming, and the local model by brute force.
OUTSIDE = {
    "LEXICAL": {"ndcg_at_10": 0.342, "recall_at_10": 0.382},
    "DENSE": {"ndcg_at_10": 0.328, "recall_at_10": 0.349},
}
REACH = {"LEXICAL": 0.37, "HYBRID": 0.40}
TIMES_DENSE = 3.0
DIGITS = 3
"""As many as the figures to reach have."""

SETS = {"cranfield": "Cranfield", "conversations": "conversations"}


def of(part: str, figures: Json) -> list[Target]:
    """Returns the targets that a part's figures speak to."""
    if part == "speed":
        times = figures["modes"]["HYBRID"]["times_dense"]
        name = f"p50 of HYBRID for a user of {figures['memories']:,} memories"
        return [at_most(name, times, TIMES_DENSE, "times that of DENSE")]
    return list(_of_set(part, figures))


def _of_set(part: str, figures: Json) -> Iterator[Target]:
    modes = figures["modes"]
    found = {mode: round(modes[mode]["all"]["ndcg_at_10"], DIGITS) for mode in ("DENSE", "LEXICAL", "HYBRID")}
    title = SETS[part]
    if part == "cranfield":
        for mode, reach in REACH.items():
            yield at_least(f"{title}, {mode}, NDCG@10", found[mode], reach)
        for mode, outside in OUTSIDE.items():
            yield at_least(f"{title}, {mode}, NDCG@10, against outside the service", found[mode], outside["ndcg_at_10"])
            recall = round(modes[mode]["all"]["recall_at_10"], DIGITS)
            yield at_least(f"{title}, {mode}, recall@10, against outside the service", recall, outside["recall_at_10"])
    better = max(found["DENSE"], found["LEXICAL"])
    yield at_least(f"{title}, HYBRID, NDCG@10, against the better of its sides", found["HYBRID"], better)
