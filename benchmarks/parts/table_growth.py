"""The cost of a search and of a single insert against the size of the table, for users who stay as they are."""

from benchmarks.callers import Callers, Job
from benchmarks.client import ServiceSource, insert_request
from benchmarks.comparison import alternate
from benchmarks.floor import FloorInserter, FloorSource
from benchmarks.growing_table import NAME, GrowingTable
from benchmarks.part import SMALL_USER, Bench
from benchmarks.stopwatch import timed
from harness.channel import open_stub
from harness.outcome import Figures, PartResult
from harness.service_process import ServiceProcess
from harness.targets import Target, at_most

ROUNDS = 3
QUESTIONS_A_ROUND = 500
SHARE = 3
WARM_UP_INSERTS = 20
INSERT_LIMIT_S = 20.0
INSERT_REACH_MS = 2.0
FLAT = 1.25
"""What counts as unchanged between the smallest table and the largest: two medians of one thing differ by less."""


def run(bench: Bench) -> PartResult:
    """Grows a table step by step and measures at each."""
    scale = bench.scale
    table = GrowingTable(bench.tables, first=scale.table_ladder[0])
    steps: list[Figures] = []
    searches: list[float] = []
    inserts: list[float] = []
    try:
        for rows in scale.table_ladder:
            table.grow_to(rows)
            step, search_ms, insert_ms = _at(bench, table, rows)
            steps.append(step)
            searches.append(search_ms)
            inserts.append(insert_ms)
    finally:
        bench.tables.drop(NAME)
    figures: Figures = {"memories_of_each_user": SMALL_USER, "by_table_size": steps}
    return PartResult(figures, _targets(scale.table_ladder, searches, inserts))


def _at(bench: Bench, table: GrowingTable, rows: int) -> tuple[Figures, float, float]:
    scale = bench.scale
    with ServiceProcess(table.url, dimensions=scale.dimensions) as service:
        with Callers(FloorSource(table.url)) as theirs, Callers(ServiceSource(service.address)) as ours:
            compared = alternate(
                theirs,
                ours,
                lambda: Job(table.draw(QUESTIONS_A_ROUND), scale.seconds_per_round / SHARE),
                rounds=ROUNDS,
                limit_s=scale.comparison_limit_s,
            )
        with open_stub(service.address) as stub, FloorInserter(table.url) as floor:
            newcomers = table.newcomers(2 * (scale.inserts + WARM_UP_INSERTS))
            requests = [insert_request(newcomer) for newcomer in newcomers[::2]]
            timed(stub.InsertVector, requests[:WARM_UP_INSERTS], limit_s=INSERT_LIMIT_S)
            ours_times = timed(stub.InsertVector, requests[WARM_UP_INSERTS:], limit_s=INSERT_LIMIT_S)
            timed(floor.insert, newcomers[1 : 2 * WARM_UP_INSERTS : 2], limit_s=INSERT_LIMIT_S)
            theirs_times = timed(floor.insert, newcomers[2 * WARM_UP_INSERTS + 1 :: 2], limit_s=INSERT_LIMIT_S)
    search = compared.figures()
    figures: Figures = {
        "rows_in_table": rows,
        "search": {"floor": search["floor"], "service": search["service"]},
        "insert": {"floor": theirs_times.figures(), "service": ours_times.figures()},
    }
    return figures, compared.service_p50_ms(), ours_times.p50_ms


def _targets(ladder: tuple[int, ...], searches: list[float], inserts: list[float]) -> list[Target]:
    largest, smallest = f"{ladder[-1]:,}", f"{ladder[0]:,}"
    return [
        at_most(f"InsertVector with a vector, {largest} rows in the table: p50", inserts[-1], INSERT_REACH_MS, "ms"),
        at_most(f"InsertVector: p50 at {largest} rows against {smallest}", inserts[-1] / inserts[0], FLAT, "times"),
        at_most(
            f"{SMALL_USER}-memory users: search p50 at {largest} rows against {smallest}",
            searches[-1] / searches[0],
            FLAT,
            "times",
        ),
    ]
