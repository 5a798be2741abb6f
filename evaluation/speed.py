"""The part that measures how long each mode takes for one user of many memories.

The memories are real sentences in new combinations: three drawn at random from all of the Cranfield collection, so that
words are as frequent as they are in it. Rounds of the modes alternate, so that the machine's noise hits all of them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.asking import WARM_UP_QUESTIONS, Asked, Library
from evaluation.judged import Document, JudgedSet, Question
from evaluation.sizes import Sizes
from evaluation.variants import DENSE, HYBRID, LEXICAL
from harness.outcome import Figures
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

USER = "many"
SENTENCES = 3
SEED = 1


def recombined(sentences: Sequence[str], count: int) -> list[Document]:
    """Returns `count` documents of three different sentences each, drawn from a fixed seed."""
    random = np.random.default_rng(SEED)
    return [
        Document(
            id=str(number),
            user=USER,
            text=" ".join(f"{sentences[row]}." for row in random.choice(len(sentences), SENTENCES, replace=False)),
        )
        for number in range(count)
    ]


def measure(
    stub: MemoryServiceStub,
    *,
    sentences: Sequence[str],
    questions: Sequence[Question],
    sizes: Sizes,
    after_storing: Callable[[], None],
) -> Figures:
    """Stores one user's memories and asks questions in rounds; returns the latencies and their ratios to DENSE."""
    library = Library(stub, JudgedSet("speed", recombined(sentences, sizes.memories), []))
    after_storing()
    theirs = [Question(number=q.number, user=USER, text=q.text, gains={}) for q in questions]
    modes = (DENSE, LEXICAL, HYBRID)
    rounds: list[dict[str, Asked]] = []
    for number in range(sizes.rounds):
        start = number * sizes.questions_a_round
        some = [theirs[(start + step) % len(theirs)] for step in range(sizes.questions_a_round)]
        rounds.append(library.ask(some, modes, warm_up=0 if rounds else WARM_UP_QUESTIONS))
    return {
        "memories": sizes.memories,
        "rounds": sizes.rounds,
        "calls_per_round": sizes.questions_a_round,
        "modes": {
            mode.name: {
                "p50_ms": _median([asked[mode.name].percentile_ms(50) for asked in rounds]),
                "p95_ms": _median([asked[mode.name].percentile_ms(95) for asked in rounds]),
                "times_dense": _median(
                    [asked[mode.name].percentile_ms(50) / asked[DENSE.name].percentile_ms(50) for asked in rounds]
                ),
            }
            for mode in modes
        },
    }


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
