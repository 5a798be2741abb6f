"""Twenty searches of one user in one BatchSearchSimilar, against as many single calls one after the other."""

from benchmarks.client import search_request
from benchmarks.part import Bench, Questions
from benchmarks.stopwatch import Times, timed
from harness.channel import open_stub
from harness.outcome import Figures, PartResult
from harness.service_process import ServiceProcess
from harness.targets import at_most
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

SEED = 6
SEARCHES = 20
BATCHES = 200
WARM_UP = 5
REACH = 1.0


def run(bench: Bench) -> PartResult:
    """Times both on users of 250 memories and on a middle user."""
    table = bench.tables.many()
    figures: Figures = {"vectors": table.kind, "searches_a_batch": SEARCHES}
    targets = []
    with (
        ServiceProcess(table.url, dimensions=table.collection.dimensions) as service,
        open_stub(service.address) as stub,
    ):
        for kind, user in (("small user", "small-001"), ("middle user", "middle-0")):
            questions = Questions(table, [user], seed=SEED)
            single, batch = _measure(stub, questions, limit_s=2 * bench.scale.seconds_per_round)
            ratio = batch.p50_ms / single.p50_ms
            figures[kind.replace(" ", "_")] = {
                "single_calls": single.figures(),
                "batch": batch.figures(),
                "ratio": ratio,
                "batch_searches_per_s": SEARCHES / batch.mean_ms * 1e3,
                "single_searches_per_s": SEARCHES / single.mean_ms * 1e3,
            }
            targets.append(at_most(f"{SEARCHES} searches of a {kind} in one call against single calls", ratio, REACH))
    return PartResult(figures, targets)


def _measure(stub: MemoryServiceStub, questions: Questions, *, limit_s: float) -> tuple[Times, Times]:
    sets = [[search_request(question) for question in questions.draw(SEARCHES)] for _ in range(BATCHES)]
    batches = [pb.BatchSearchSimilarRequest(user_id=searches[0].user_id, searches=searches) for searches in sets]

    def one_by_one(searches: list[pb.SearchSimilarRequest]) -> None:
        for search in searches:
            stub.SearchSimilar(search)

    timed(one_by_one, sets[:WARM_UP], limit_s=limit_s)
    timed(stub.BatchSearchSimilar, batches[:WARM_UP], limit_s=limit_s)
    return timed(one_by_one, sets[WARM_UP:], limit_s=limit_s), timed(
        stub.BatchSearchSimilar, batches[WARM_UP:], limit_s=limit_s
    )
