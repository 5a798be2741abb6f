"""Eight callers of small users against one server process and against two that share the port."""

from benchmarks.callers import Callers, Job
from benchmarks.client import ServiceSource
from benchmarks.comparison import alternate
from benchmarks.part import CALLER_PROCESSES, CALLERS, Bench, Questions
from harness.outcome import PartResult
from harness.service_process import ServiceProcess

SEED = 7
QUESTIONS_A_ROUND = 2_000


def run(bench: Bench) -> PartResult:
    """Measures both by turns. No target: on two cores, PostgreSQL and the callers need those a worker would."""
    scale, table = bench.scale, bench.tables.many()
    questions = Questions(table, ["small-"], seed=SEED)
    dimensions = table.collection.dimensions
    threads = CALLERS // CALLER_PROCESSES
    with (
        ServiceProcess(table.url, dimensions=dimensions) as one,
        ServiceProcess(table.url, dimensions=dimensions, workers=2) as two,
        Callers(ServiceSource(one.address), processes=CALLER_PROCESSES, threads=threads) as of_one,
        Callers(ServiceSource(two.address), processes=CALLER_PROCESSES, threads=threads) as of_two,
    ):
        compared = alternate(
            of_one,
            of_two,
            lambda: Job(questions.draw(QUESTIONS_A_ROUND), scale.seconds_per_round),
            rounds=scale.rounds,
            limit_s=scale.comparison_limit_s,
        )
        resident = {"workers_1": one.resident_bytes(), "workers_2": two.resident_bytes()}
    figures = {
        "callers": CALLERS,
        "comparison": compared.figures(floor="workers_1", service="workers_2"),
        "resident_bytes": resident,
    }
    return PartResult(figures)
