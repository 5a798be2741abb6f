"""Searches of a user with an approximate index of its own: latency and recall, by ef_search and under filters."""

from benchmarks import ann_index
from benchmarks.callers import Callers, Job
from benchmarks.client import ServiceSource
from benchmarks.comparison import alternate
from benchmarks.floor import FloorSource
from benchmarks.part import Bench, Questions
from benchmarks.question import Knobs, Restriction
from benchmarks.recall_truth import Asked, ask_all
from benchmarks.tables import user_of_size
from harness.outcome import Figures, PartResult
from harness.service_process import ServiceProcess
from harness.targets import Target, at_least, at_most

SEED = 3
EF_SEARCH = (10, 20, 40, 80, 100, 200, 400, 800)
CALLS_A_ROUND = 10
"""The floor compares 100,000 memories for each."""
FILTERS = {
    "importance, 10 %": Restriction(importance=7),
    "metadata, 10 %": Restriction(tenth=3),
    "metadata, 1 %": Restriction(hundredth=42),
    "conversation, about 1 %": Restriction(conversation=5),
}


def run(bench: Bench) -> PartResult:
    """Builds the index and measures."""
    scale, table = bench.scale, bench.tables.sizes()
    name = user_of_size(scale.large_user)
    took = ann_index.build(table, [name], scale)
    questions = Questions(table, [name], seed=SEED)
    with (
        ServiceProcess(table.url, dimensions=table.collection.dimensions, **ann_index.settings(scale)) as service,
        Callers(FloorSource(table.url)) as theirs,
        Callers(ServiceSource(service.address)) as ours,
    ):
        ask_all(table.truth, ours, questions.all())  # warms the index up
        answers = ask_all(table.truth, ours, questions.all())
        compared = alternate(
            theirs,
            ours,
            lambda: Job(questions.draw(CALLS_A_ROUND)),
            rounds=scale.rounds,
            limit_s=scale.comparison_limit_s,
        )
        sweep: list[Figures] = [
            {"ef_search": ef, **ask_all(table.truth, ours, questions.all(knobs=Knobs(ef_search=ef))).figures()}
            for ef in EF_SEARCH
        ]
        filtered = {
            title: ask_all(table.truth, ours, questions.all(restriction=restriction))
            for title, restriction in FILTERS.items()
        }
    figures: Figures = {
        "vectors": table.kind,
        "memories": scale.large_user,
        "rows_in_table": len(table.collection),
        "index_built_in_s": took[name],
        "answers": answers.figures(),
        "comparison": compared.figures(),
        "by_ef_search": sweep,
        "filtered": {title: found.figures() for title, found in filtered.items()},
    }
    return PartResult(figures, _targets(f"{scale.large_user:,}-memory user", answers, filtered))


def _targets(user: str, answers: Asked, filtered: dict[str, Asked]) -> list[Target]:
    return [
        at_most(f"{user}: p50", answers.p50_ms, 5.0, "ms"),
        at_least(f"{user}: recall@10", answers.recall.mean, 0.99),
        *(
            at_least(f"{user}, filter on {title}: recall@10", found.recall.mean, 0.98)
            for title, found in filtered.items()
        ),
        at_most(
            f"{user}, filters: answers shorter than they had to be",
            sum(found.recall.short_answers for found in filtered.values()),
            0,
        ),
    ]
