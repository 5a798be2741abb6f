"""Searches of a 10,000-memory user, 1536-d synthetic and 256-d real text, against the exact scan of inline vectors."""

from benchmarks.callers import Callers, Job
from benchmarks.client import ServiceSource
from benchmarks.comparison import alternate
from benchmarks.floor import FloorSource
from benchmarks.part import Bench, Questions
from benchmarks.question import Knobs
from benchmarks.recall_truth import ask_all
from benchmarks.tables import Table
from harness.outcome import Figures, PartResult
from harness.service_process import ServiceProcess
from harness.targets import Target, at_least

SEED = 2
CANDIDATES = (10, 20, 50, 100, 200, 400, 800)
CALLS_A_ROUND = 100


def run(bench: Bench) -> PartResult:
    """Measures both kinds of embeddings."""
    figures: Figures = {}
    targets: list[Target] = []
    for table, reach in ((bench.tables.many(), 5.0), (bench.tables.real(), 3.0)):
        name = f"{table.collection.dimensions}-d"
        measured, found = _measure(bench, table, reach=reach, name=name)
        figures[name] = measured
        targets += found
    return PartResult(figures, targets)


def _measure(bench: Bench, table: Table, *, reach: float, name: str) -> tuple[Figures, list[Target]]:
    scale = bench.scale
    questions = Questions(table, ["middle-"], seed=SEED)
    calls = min(CALLS_A_ROUND, scale.calls_per_round)
    floor = FloorSource(table.url, index_only=False)
    with ServiceProcess(table.url, dimensions=table.collection.dimensions) as service:
        source = ServiceSource(service.address)
        with Callers(floor) as theirs, Callers(source) as ours:
            answers = ask_all(table.truth, ours, questions.all())
            compared = alternate(
                theirs, ours, lambda: Job(questions.draw(calls)), rounds=scale.rounds, limit_s=scale.comparison_limit_s
            )
            sweep = [_at(table, ours, questions, candidates) for candidates in CANDIDATES]
    speed_up = 1 / compared.latency_ratio()
    figures: Figures = {
        "vectors": table.kind,
        "memories": scale.middle_user,
        "rows_in_table": len(table.collection),
        "answers": answers.figures(),
        "speed_up": speed_up,
        "comparison": compared.figures(),
        "by_candidates": sweep,
    }
    user = f"{scale.middle_user:,}-memory user, {name}"
    return figures, [
        at_least(f"{user}: speed-up over the exact inline scan", speed_up, reach, "times"),
        at_least(f"{user}: recall@10", answers.recall.mean, 0.99),
    ]


def _at(table: Table, callers: Callers, questions: Questions, candidates: int) -> Figures:
    answers = ask_all(table.truth, callers, questions.all(knobs=Knobs(candidates=candidates)))
    return {"candidates": candidates, **answers.figures()}
