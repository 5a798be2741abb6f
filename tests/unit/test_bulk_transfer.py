"""The client's side of imports and exports, without a server: chunks, progress, and what failures mean."""

import io
from collections.abc import Iterator

import grpc
import pytest

from memory_service.bulk.call_failure import CallFailure
from memory_service.bulk.chunks import ENVELOPE_BYTES, Chunk, Chunking
from memory_service.bulk.errors import BadRecord, TransferError
from memory_service.bulk.progress import CLEAR, Progress
from memory_service.bulk.records import Record
from memory_service.bulk.retrying import Retrying
from memory_service.v1 import memory_pb2 as pb
from tests.clock import SecondsClock


def records(*sizes: int) -> Iterator[Record]:
    """Yields records of contents of these sizes."""
    for index, size in enumerate(sizes):
        yield Record(f"line {index + 1}", index + 1, pb.NewMemory(id="i", content="x" * size))


def chunks_of(source: Iterator[Record], *, max_count: int, max_bytes: int = 10_000) -> list[Chunk]:
    """Returns the chunks of a file."""
    chunking = Chunking(user_id="u", import_id="i", max_count=max_count, max_bytes=max_bytes, keep_ids=False)
    return list(chunking.chunks(source))


def test_chunks_are_full_numbered_and_know_their_places() -> None:
    found = chunks_of(records(*range(1, 8)), max_count=3)
    assert [chunk.places for chunk in found] == [
        ["line 1", "line 2", "line 3"],
        ["line 4", "line 5", "line 6"],
        ["line 7"],
    ]
    assert [chunk.position for chunk in found] == [3, 6, 7]
    for number, chunk in enumerate(found):
        request = chunk.request
        assert (request.user_id, request.import_id, request.chunk) == ("u", "i", number)
        assert len(request.memories) == len(chunk.places)
        assert not any(memory.id for memory in request.memories)


def test_a_full_chunk_waits_for_nothing() -> None:
    def source() -> Iterator[Record]:
        yield from records(1, 2)
        raise AssertionError("read on")

    chunking = Chunking(user_id="u", import_id="i", max_count=2, max_bytes=10_000, keep_ids=True)
    chunk = next(chunking.chunks(source()))
    assert [memory.id for memory in chunk.request.memories] == ["i", "i"]


def test_no_chunk_exceeds_the_bytes_of_a_request() -> None:
    found = chunks_of(records(*[700] * 50), max_count=100, max_bytes=10_000)
    assert sum(len(chunk.places) for chunk in found) == 50
    for chunk in found[:-1]:
        assert 10_000 - ENVELOPE_BYTES - 1_500 < chunk.request.ByteSize() <= 10_000


def test_a_record_that_fits_no_request_is_named() -> None:
    chunking = Chunking(user_id="u", import_id="i", max_count=2, max_bytes=10_000, keep_ids=True)
    chunks = chunking.chunks(records(1, 1, 1, 9_000))
    assert next(chunks).places == ["line 1", "line 2"]
    with pytest.raises(BadRecord, match="line 4: has 90"):
        next(chunks)


def test_deleted_records_are_counted_and_left_out() -> None:
    def source() -> Iterator[Record]:
        for record in records(1, 2, 3):
            yield Record(record.place, record.position, record.memory, deleted=record.position != 2)

    chunking = Chunking(user_id="u", import_id="i", max_count=2, max_bytes=10_000, keep_ids=True)
    [chunk] = chunking.chunks(source())
    assert chunk.places == ["line 2"]
    assert chunking.left_out == 2


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Says so."""
        return True


def test_progress_is_one_line_redrawn_on_a_terminal() -> None:
    terminal, clock = Terminal(), SecondsClock()
    progress = Progress(terminal, total=4_000, clock=clock)
    clock.now += 2
    progress.update(position=1_000, count=5_000)
    clock.now += 0.05
    progress.update(position=1_001, count=5_001)
    line = " 25%  5,000 memories, 2,500/s, 0:06 left"
    assert terminal.getvalue() == CLEAR + line
    progress.say("trying again")
    assert terminal.getvalue().endswith(f"{CLEAR}trying again\n{line}")
    clock.now += 118
    progress.update(position=4_001, count=20_000)
    assert terminal.getvalue().endswith(f"{CLEAR}100%  20,000 memories, 167/s, 0:00 left")
    progress.close()
    assert terminal.getvalue().endswith(CLEAR)
    assert progress.elapsed_s == pytest.approx(120.05)


def test_progress_without_a_total_counts() -> None:
    terminal, clock = Terminal(), SecondsClock()
    progress = Progress(terminal, clock=clock)
    clock.now += 10
    progress.update(position=10, count=1_000)
    assert terminal.getvalue() == f"{CLEAR}1,000 memories, 100/s"


def test_progress_elsewhere_is_silent_but_for_messages() -> None:
    stream, clock = io.StringIO(), SecondsClock()
    progress = Progress(stream, total=10, clock=clock)
    clock.now += 10
    progress.update(position=5, count=5)
    progress.say("trying again")
    progress.close()
    assert stream.getvalue() == "trying again\n"


def failure(code: grpc.StatusCode, reason: str = "", *, retry_after_s: float = 0.0) -> CallFailure:
    return CallFailure(
        code=code, message="it failed", reason=reason, facts={}, violations=[], retry_after_s=retry_after_s
    )


@pytest.mark.parametrize(
    ("code", "reason", "may_pass"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", True),
        (grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE", True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", False),
        (grpc.StatusCode.ABORTED, "CONFLICT", True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", True),
        (grpc.StatusCode.INTERNAL, "", True),
        (grpc.StatusCode.INTERNAL, "INTERNAL", False),
        (grpc.StatusCode.CANCELLED, "", True),
        (grpc.StatusCode.CANCELLED, "CANCELLED", False),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", False),
        (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS", False),
        (grpc.StatusCode.UNIMPLEMENTED, "", False),
    ],
)
def test_which_failures_are_worth_another_try(code: grpc.StatusCode, reason: str, *, may_pass: bool) -> None:
    waited: list[float] = []
    retrying = Retrying(say=lambda _: None, sleep=waited.append)
    if may_pass:
        retrying.wait(failure(code, reason))
    else:
        with pytest.raises(TransferError, match=f"it failed \\({reason or code.name}\\)"):
            retrying.wait(failure(code, reason))
    assert len(waited) == may_pass


def test_waiting_grows_until_something_is_achieved_and_respects_the_server() -> None:
    waited: list[float] = []
    retrying = Retrying(say=lambda _: None, sleep=waited.append)
    for _ in range(4):
        retrying.wait(failure(grpc.StatusCode.UNAVAILABLE))
    for delay_s, most_s in zip(waited, (0.5, 1, 2, 4), strict=True):
        assert most_s / 2 <= delay_s <= most_s
    retrying.progressed()
    retrying.wait(failure(grpc.StatusCode.UNAVAILABLE))
    assert waited[-1] <= 0.5
    retrying.wait(failure(grpc.StatusCode.UNAVAILABLE, retry_after_s=7.0))
    assert waited[-1] == 7.0
