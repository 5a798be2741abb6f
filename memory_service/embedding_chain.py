"""What stands between the callers of an embedder and a provider whose calls take long and cost money.

    cache -> single flight -> micro-batching -> circuit breaker -> metrics -> provider

The cache (text_embeddings.py) comes first: what it holds needs none of the rest. Single flight comes before
micro-batching, so that a request never holds a text twice, nor one that is under way in another request. The circuit
breaker comes after both: it counts requests to the provider, not callers, and an open circuit answers all that wait at
once. Metrics come last: they time what the provider does, and see nothing of requests that were never made.
"""

from memory_service.config import Settings
from memory_service.embedding import Embedder
from memory_service.embedding.batches import REQUEST_BYTES
from memory_service.embedding.circuit_breaker import BreakerOptions, CircuitBreaker
from memory_service.embedding.micro_batching import MicroBatching
from memory_service.embedding.single_flight import SingleFlight
from memory_service.measured_embedder import MeasuredEmbedder
from memory_service.metrics.embeddings import EmbeddingMetrics

# Cool-downs grow up to so many times the first one: with the default of 2 s, a provider that is back is noticed within
# 10 s.
_COOL_DOWN_GROWTH = 4
# A provider's longest pause between two attempts, see openai_compatible.py.
_BACKOFF_S = 8.0


def assemble(embedder: Embedder, settings: Settings, metrics: EmbeddingMetrics) -> Embedder:
    """Returns an embedder that asks `embedder` as seldom as can be; closing it closes both.

    One whose vectors cost less than looking them up is only measured: a hand-over between threads takes longer than
    the local model needs for a sentence (17 µs).
    """
    measured = MeasuredEmbedder(embedder, metrics)
    if not embedder.cacheable:
        return measured
    breaker = CircuitBreaker(
        measured,
        BreakerOptions(
            failures=settings.embedding_breaker_failures,
            cool_down_s=settings.embedding_breaker_cool_down_s,
            longest_cool_down_s=_COOL_DOWN_GROWTH * settings.embedding_breaker_cool_down_s,
        ),
        on_state=metrics.circuit_changed,
        on_refusal=metrics.circuit_refusals.inc,
    )
    batching = MicroBatching(
        breaker,
        concurrent_requests=settings.embedding_concurrent_requests,
        max_texts=settings.openai_batch_size,
        max_bytes=REQUEST_BYTES,
        timeout_s=_longest_request_s(settings),
        on_request=metrics.request_texts.observe,
    )
    metrics.waiting_texts.set_function(lambda: batching.waiting)
    return SingleFlight(batching, on_shared=metrics.shared_texts.inc)


def assemble_for_bulk(embedder: Embedder, settings: Settings, *, concurrent_requests: int) -> MicroBatching:
    """Returns what embeds many texts for one caller who has time; closing it closes `embedder`.

    It tells of each text by itself what became of it. There is nobody to share with, and the caller does the waiting
    for a provider that fails.
    """
    return MicroBatching(
        embedder,
        concurrent_requests=concurrent_requests,
        max_texts=settings.openai_batch_size,
        max_bytes=REQUEST_BYTES,
        timeout_s=_longest_request_s(settings),
    )


def _longest_request_s(settings: Settings) -> float:
    # Retries included: a request ends by its own settings, not by this.
    return (1 + settings.embedding_retries) * (settings.embedding_timeout_s + _BACKOFF_S)
