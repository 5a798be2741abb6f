"""Stores the memories of three users and searches them, the way any client would: over gRPC, with generated stubs.

Without --address it runs a service of its own on a free port, with an empty database in a temporary folder that is
erased in the end. With --address it uses a running service and leaves the memories there, under new user names.
"""

import argparse
import json
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
from google.protobuf.json_format import ParseDict

from examples.temporary_service import temporary_service
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

TEXTS = Path(__file__).with_name("memories.jsonl")
BATCH_SIZE = 25
CALL_TIMEOUT_S = 30.0


def main() -> int:
    """Runs the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", metavar="HOST:PORT", help="a running service, for example 127.0.0.1:50051")
    arguments = parser.parse_args()
    # SIGTERM unwinds the stack like Ctrl-C does, so that the service started here never outlives the demo.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.address is not None:
            run(arguments.address, suffix=f"-{uuid.uuid4().hex[:6]}")
        else:
            print("Starting a service with a new embedded PostgreSQL ...", flush=True)
            with temporary_service() as address:
                run(address, suffix="")
    except grpc.RpcError as error:
        print(f"\n{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(address: str, *, suffix: str) -> None:
    """Does everything the demonstration shows, with the service at `address`."""
    with grpc.insecure_channel(address) as channel:
        service = MemoryServiceStub(channel)
        info = service.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_TIMEOUT_S)
        print(
            f"Memory service {info.version} at {address}: PostgreSQL {info.postgres_version}, "
            f"pgvector {info.pgvector_version}, {info.embedding_model} ({info.embedding_dimensions} dimensions)"
        )
        amara, jonas, mei = (f"{name}{suffix}" for name in ("amara", "jonas", "mei"))
        texts = read_texts()

        print("\nStoring")
        stored = {amara: insert_one_by_one(service, amara, texts["amara"])}
        for user_id, name in ((jonas, "jonas"), (mei, "mei")):
            stored[user_id] = insert_in_batches(service, user_id, texts[name])

        for restriction, request in questions(amara=amara, jonas=jonas, mei=mei, ids=stored):
            words = [f'"{request.text}"'] if request.text else []
            title = f"{request.user_id}: {', '.join([*words, restriction] if restriction else words)}"
            print_results(title, service.SearchSimilar(request, timeout=CALL_TIMEOUT_S).results)
        print_recent(service, mei)
        print_statistics(service, jonas)
        print_isolation(service, owner=amara, owner_ids=set(stored[amara].values()), stranger=mei)
        if suffix:
            print(f"\nThe memories stay in the service; their users are {amara}, {jonas} and {mei}.")


def read_texts() -> dict[str, list[pb.NewMemory]]:
    """Returns the example memories by user."""
    texts: dict[str, list[pb.NewMemory]] = {}
    for line in TEXTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts.setdefault(row.pop("user_id"), []).append(ParseDict(row, pb.NewMemory()))
    return texts


def insert_one_by_one(service: MemoryServiceStub, user_id: str, memories: list[pb.NewMemory]) -> dict[str, str]:
    """Stores each memory with a call of its own; returns the ids by content."""
    ids = {}
    started_at = time.perf_counter()
    for number, memory in enumerate(memories, start=1):
        request = pb.InsertVectorRequest(user_id=user_id, memory=memory)
        ids[memory.content] = service.InsertVector(request, timeout=CALL_TIMEOUT_S).memory.id
        print_progress(user_id, number, len(memories))
    print_rate(user_id, "InsertVector", len(memories), len(memories), time.perf_counter() - started_at)
    return ids


def insert_in_batches(service: MemoryServiceStub, user_id: str, memories: list[pb.NewMemory]) -> dict[str, str]:
    """Stores the memories in batches, each of them all or none; returns the ids by content."""
    ids: dict[str, str] = {}
    calls = 0
    started_at = time.perf_counter()
    for start in range(0, len(memories), BATCH_SIZE):
        batch = memories[start : start + BATCH_SIZE]
        request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=batch)
        results = service.BatchInsertVectors(request, timeout=CALL_TIMEOUT_S).results
        ids |= {memory.content: result.id for memory, result in zip(batch, results, strict=True)}
        calls += 1
        print_progress(user_id, len(ids), len(memories))
    print_rate(user_id, "BatchInsertVectors", calls, len(memories), time.perf_counter() - started_at)
    return ids


def questions(
    *, amara: str, jonas: str, mei: str, ids: dict[str, dict[str, str]]
) -> Iterator[tuple[str, pb.SearchSimilarRequest]]:
    """Yields the searches, each with what restricts it."""
    yield "", pb.SearchSimilarRequest(user_id=amara, text="knee pain when running", limit=3)
    yield "", pb.SearchSimilarRequest(user_id=jonas, text="why did the service go down", limit=3)
    yield (
        "in the conversation glazes",
        pb.SearchSimilarRequest(
            user_id=mei, text="safe to eat from", limit=3, filter=pb.MemoryFilter(conversation_id="glazes")
        ),
    )
    yield (
        "of importance 7 or more",
        pb.SearchSimilarRequest(user_id=jonas, text="allergy", limit=3, filter=pb.MemoryFilter(min_importance=7)),
    )
    from_mail = pb.MemoryFilter()
    from_mail.metadata_contains.update({"source": "email"})
    yield (
        'with metadata {"source": "email"}',
        pb.SearchSimilarRequest(user_id=mei, text="what will it cost", limit=3, filter=from_mail),
    )
    yield (
        "with a score of 0.3 or more",
        pb.SearchSimilarRequest(user_id=amara, text="the wedding party", min_score=0.3),
    )
    since_may = pb.MemoryFilter()
    since_may.created_after.FromDatetime(datetime(2025, 5, 1, tzinfo=UTC))
    yield (
        "since 1 May 2025",
        pb.SearchSimilarRequest(user_id=jonas, text="blood pressure", limit=3, filter=since_may),
    )
    content, memory_id = next(item for item in ids[jonas].items() if "nut allergy" in item[0])
    yield (
        f"near the memory {shorten(content, 60)!r}",
        pb.SearchSimilarRequest(user_id=jonas, memory_id=memory_id, limit=3),
    )


def print_results(title: str, results: Iterable[pb.SearchResult]) -> None:
    """Prints search results as a table, nearest first."""
    print(f"\n{title}\n  score  importance  conversation  memory")
    for result in results:
        memory = result.memory
        print(
            f"  {result.score:5.3f}  {memory.importance:10}  {memory.conversation_id or '-':12}  "
            f"{shorten(memory.content, columns() - 35)}"
        )


def print_recent(service: MemoryServiceStub, user_id: str) -> None:
    """Prints a page of the newest memories and says whether there are more."""
    page = service.GetRecent(pb.GetRecentRequest(user_id=user_id, page_size=4), timeout=CALL_TIMEOUT_S)
    print(f"\n{user_id}: the newest memories\n  when              conversation  memory")
    for memory in page.memories:
        when = memory.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M")
        print(f"  {when}  {memory.conversation_id or '-':12}  {shorten(memory.content, columns() - 34)}")
    if page.next_page_token:
        print("  ... and more: the reply holds a token for the next page")


def print_statistics(service: MemoryServiceStub, user_id: str) -> None:
    """Prints what is stored for one user."""
    stats = service.GetStats(pb.GetStatsRequest(user_id=user_id, conversation_limit=3), timeout=CALL_TIMEOUT_S)
    latest = ", ".join(f"{entry.conversation_id or '-'} ({entry.live_count})" for entry in stats.conversations)
    print(
        f"\n{user_id}: {stats.live_count} memories in {stats.conversation_count} conversations, "
        f"{stats.stored_bytes / 1024:.0f} KiB, mean importance {stats.average_importance:.1f}; the latest: {latest}"
    )


def print_isolation(service: MemoryServiceStub, *, owner: str, owner_ids: set[str], stranger: str) -> None:
    """Shows that a user finds only memories of its own; ends the program where that does not hold."""
    request = pb.SearchSimilarRequest(
        user_id=stranger,
        text="knee pain when running",
        limit=1000,
        view=pb.MEMORY_VIEW_HEAD,
        skip_access_recording=True,
    )
    found = {result.memory.id for result in service.SearchSimilar(request, timeout=CALL_TIMEOUT_S).results}
    memory_id = min(owner_ids)
    try:
        service.GetVector(pb.GetVectorRequest(user_id=stranger, id=memory_id), timeout=CALL_TIMEOUT_S)
        answer = "OK"
    except grpc.RpcError as error:
        answer = error.code().name
    print(
        f"\n{stranger} asks {owner}'s question: {len(found)} memories found, "
        f"{len(found & owner_ids)} of them {owner}'s; reading one of those by its id: {answer}"
    )
    if found & owner_ids or answer != grpc.StatusCode.NOT_FOUND.name:
        sys.exit("a user can see the memories of another")


def print_progress(title: str, done: int, total: int) -> None:
    """Draws a progress bar over the current line of a terminal; prints nothing into a file or pipe."""
    if sys.stdout.isatty():
        width = 30
        bar = "#" * (width * done // total)
        print(f"\r  {title:14} [{bar:.<{width}}] {done}/{total}", end="", flush=True)


def print_rate(user_id: str, rpc: str, calls: int, rows: int, duration_s: float) -> None:
    """Prints how fast rows were stored, in place of the progress bar."""
    text = (
        f"{rows} memories by {calls} {rpc}: {1000 * duration_s / calls:.1f} ms a call, {rows / duration_s:.0f} rows/s"
    )
    print(f"{chr(13) if sys.stdout.isatty() else ''}  {user_id:14} {text:60}")


def shorten(text: str, width: int) -> str:
    """Returns the text cut to `width` characters."""
    return text if len(text) <= width else f"{text[: width - 3].rstrip()}..."


def columns() -> int:
    """Returns the width of the terminal, or 120 without one."""
    return shutil.get_terminal_size((120, 24)).columns


if __name__ == "__main__":
    sys.exit(main())
