"""The cost of a search against the size of the user, from 10 memories to 200,000, each by the plan it gets."""

from benchmarks import ann_index
from benchmarks.callers import Callers, Job
from benchmarks.client import ServiceSource
from benchmarks.comparison import alternate
from benchmarks.floor import FloorSource
from benchmarks.part import Bench, Questions
from benchmarks.recall_truth import ask_all
from benchmarks.tables import Table, user_of_size
from harness.outcome import Figures, PartResult
from harness.service_process import ServiceProcess

SEED = 4
ROUNDS = 2
QUESTIONS = 100
QUESTIONS_A_ROUND = 200
SHARE = 3
"""A round is so much shorter than those of several callers: there are two for each size."""


def run(bench: Bench) -> PartResult:
    """Measures floor and service at every size of the ladder."""
    scale, table = bench.scale, bench.tables.sizes()
    settings = ann_index.settings(scale)
    large = [user_of_size(size) for size in scale.user_ladder if size >= settings["ann_min_rows"]]
    took = ann_index.build(table, large, scale)
    with (
        ServiceProcess(table.url, dimensions=table.collection.dimensions, **settings) as service,
        Callers(FloorSource(table.url)) as theirs,
        Callers(ServiceSource(service.address)) as ours,
    ):
        sizes = [_at(bench, table, size, theirs, ours) for size in sorted(scale.user_ladder)]
    return PartResult(
        {
            "vectors": table.kind,
            "rows_in_table": len(table.collection),
            "indexes_built_in_s": took,
            "by_user_size": sizes,
        }
    )


def _at(bench: Bench, table: Table, size: int, theirs: Callers, ours: Callers) -> Figures:
    questions = Questions(table, [user_of_size(size)], seed=SEED)
    answers = ask_all(table.truth, ours, questions.all()[:QUESTIONS])
    compared = alternate(
        theirs,
        ours,
        lambda: Job(questions.draw(QUESTIONS_A_ROUND), bench.scale.seconds_per_round / SHARE),
        rounds=ROUNDS,
        limit_s=bench.scale.comparison_limit_s,
    )
    rounds = compared.figures()
    return {
        "memories": size,
        "plans": answers.plans,
        "recall_at_10": answers.recall.mean,
        "floor": rounds["floor"],
        "service": rounds["service"],
    }
