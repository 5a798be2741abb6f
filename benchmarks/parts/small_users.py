"""Searches of users with 100 and 250 memories, drawn at random among many, against plain psycopg in process."""

from benchmarks.callers import Callers, Job
from benchmarks.client import ServiceSource
from benchmarks.comparison import alternate
from benchmarks.floor import FloorSource
from benchmarks.part import CALLER_PROCESSES, CALLERS, Bench, Questions
from benchmarks.recall_truth import ask_all
from harness.outcome import PartResult
from harness.service_process import ServiceProcess
from harness.targets import at_least, at_most

SEED = 1
QUESTIONS_A_ROUND = 2_000


def run(bench: Bench) -> PartResult:
    """Measures one caller, and eight."""
    scale, table = bench.scale, bench.tables.many()
    questions = Questions(table, ["small-"], seed=SEED)
    floor = FloorSource(table.url)
    with ServiceProcess(table.url, dimensions=table.collection.dimensions) as service:
        source = ServiceSource(service.address)
        with Callers(floor) as theirs, Callers(source) as ours:
            answers = ask_all(table.truth, ours, questions.all())
            one = alternate(
                theirs,
                ours,
                lambda: Job(questions.draw(scale.calls_per_round)),
                rounds=scale.rounds,
                limit_s=scale.comparison_limit_s,
            )
        with (
            Callers(floor, threads=CALLERS) as theirs,
            Callers(source, processes=CALLER_PROCESSES, threads=CALLERS // CALLER_PROCESSES) as ours,
        ):
            several = alternate(
                theirs,
                ours,
                lambda: Job(questions.draw(QUESTIONS_A_ROUND), scale.seconds_per_round),
                rounds=scale.rounds,
                limit_s=scale.comparison_limit_s,
            )
    figures = {
        "vectors": table.kind,
        "users": scale.small_users,
        "rows_in_table": len(table.collection),
        "answers": answers.figures(),
        "callers_1": one.figures(),
        f"callers_{CALLERS}": several.figures(),
    }
    return PartResult(
        figures,
        [
            at_most("small users, 1 caller: p50 against psycopg in process", one.latency_ratio(), 2.2, "times"),
            at_least(
                "small users, 8 callers: calls/s against psycopg in process", several.throughput_ratio(), 0.65, "times"
            ),
            at_least("small users: recall@10", answers.recall.mean, 0.999),
        ],
    )
