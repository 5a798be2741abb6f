"""The part that measures one judged set: every mode, a sweep of the weights, the gain of both sides over one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

from evaluation import scores, tuning, variants
from evaluation.asking import Asked, Library
from evaluation.judged import JudgedSet, Question
from evaluation.variants import Variant
from harness.outcome import Figures
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub


def measure(stub: MemoryServiceStub, judged: JudgedSet, *, after_storing: Callable[[], None]) -> Figures:
    """Stores the set, asks all its questions in every way, and returns the scores."""
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    library = Library(stub, judged)
    after_storing()
    compared = variants.modes()
    if judged.as_of is not None:
        compared += variants.of_conversations(judged.as_of)
    asked = library.ask(judged.questions, compared)
    return {
        "memories": len(judged.documents),
        "users": len(judged.by_user()),
        "questions": len(judged.questions),
        "left_out": list(judged.left_out),
        "embedding_model": info.embedding_model,
        "default_dense_weight": info.default_dense_weight,
        "modes": {variant.name: _scored(judged.questions, asked[variant.name]) for variant in compared},
        "hybrid_over": {
            side.name: scores.gain(
                judged.questions, of=asked[variants.HYBRID.name].rankings, over=asked[side.name].rankings
            )
            for side in (variants.DENSE, variants.LEXICAL)
        },
        "dense_weight": _sweep(library, judged.questions, variants.DENSE_WEIGHTS, variants.by_weight),
        "rrf_k": _sweep(library, judged.questions, variants.RRF_KS, variants.by_rank),
    }


def _scored(questions: Sequence[Question], asked: Asked) -> Figures:
    figures: Figures = {
        **scores.by_half(questions, asked.rankings),
        "p50_ms": asked.percentile_ms(50),
        "p95_ms": asked.percentile_ms(95),
    }
    if any(question.category for question in questions):
        figures["categories"] = scores.by_category(questions, asked.rankings)
    return figures


def _sweep(
    library: Library, questions: Sequence[Question], values: Sequence[float], variant: Callable[[float], Variant]
) -> Figures:
    tried = {value: variant(value) for value in values}
    rankings = {
        value: {question.number: library.search(question, way) for question in questions}
        for value, way in tried.items()
    }
    points = tuning.points(questions, rankings)
    return {"points": [asdict(point) for point in points], "chosen": asdict(tuning.chosen(points))}
