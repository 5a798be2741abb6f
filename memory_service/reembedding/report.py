"""What an operator is told of a move to another embedding model: before it, while it lasts, and afterwards."""

from collections.abc import Iterator

from db.reembedding import Phase, Progress, Reembedding, SwitchOutcome
from db.reembedding_estimate import Estimate
from db.schema import EmbeddingSpace
from memory_service.space_settings import what_to_set
from memory_service.text_table import size

# English prose in most tokenizers; other languages take more tokens a byte.
BYTES_A_TOKEN = 4


def plan(estimate: Estimate, live: EmbeddingSpace, target: EmbeddingSpace, embedder: str) -> Iterator[str]:
    """Yields what a move would do, line by line."""
    yield f"from {live} to {target}, made by the embedder {embedder}"
    tokens = round(estimate.text_bytes / BYTES_A_TOKEN)
    yield f"{estimate.memories:,} memories with {size(estimate.text_bytes)} of text, some {tokens:,} tokens"
    if estimate.blank:
        yield (
            f"{estimate.blank:,} have nothing to embed: after the switch they are found by words, recency and id, not "
            "by meaning"
        )
    if estimate.brought:
        yield (
            f"{estimate.brought:,} have an embedding that their caller brought: it gives way to one of their content, "
            "and searches with vectors of the callers' own model no longer fit"
        )


def status(live: EmbeddingSpace | None, move: Reembedding | None, progress: Progress | None) -> Iterator[str]:
    """Yields where the database is, line by line; `progress` where a move is under way."""
    if move is None or progress is None:
        yield f"no move is under way; the embeddings are of {live or 'no space yet'}"
        return
    began = move.started_at.astimezone().isoformat(sep=" ", timespec="seconds")
    counts = f"{progress.fresh:,} of {progress.total:,} memories embedded, {progress.refused:,} refused, "
    counts += f"{progress.missing:,} to go"
    if move.phase is Phase.BACKFILL:
        yield f"moving from {move.live} to {move.standby}, since {began}: {counts}"
        yield "next: `memory-service reembed` goes on and switches; --cancel ends it"
        return
    yield f"moved from {move.standby} to {move.live}, begun {began}"
    yield f"to go back to: {counts}"
    yield "next: `memory-service reembed --clean-up`, or --switch-back"


def switched(outcome: SwitchOutcome, embedder: str) -> Iterator[str]:
    """Yields what a switch has done and what is to be done now, line by line."""
    yield (
        f"switched: the embeddings are of {outcome.live} now. Memories were locked for {outcome.locked_ms:,.0f} ms; "
        f"{outcome.terminated:,} sessions of servers were ended, which connect anew"
    )
    if outcome.pending:
        yield f"{outcome.pending:,} memories wait for their embedding in the queue, found by their words meanwhile"
    if outcome.refused:
        yield f"{outcome.refused:,} memories have none: `memory-service embeddings failed` lists them with the reason"
    yield "running servers follow by themselves. Set, before one is started the next time:"
    for name, value in what_to_set(embedder, outcome.live).items():
        yield f"  {name}={value}"
    yield "`memory-service reembed --clean-up` frees the former embeddings; until then --switch-back leads back"
