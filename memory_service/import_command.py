"""`memory-service import`: sends the memories of a file to a running service, and resumes where it was broken off."""

import argparse
import hashlib
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

from memory_service.bulk import target
from memory_service.bulk.channel import connect
from memory_service.bulk.chunks import Chunk, Chunking
from memory_service.bulk.errors import TransferError
from memory_service.bulk.formats import FORMATS, STANDARD_STREAM, Format, format_of, open_source
from memory_service.bulk.progress import Progress
from memory_service.bulk.retrying import Retrying
from memory_service.bulk.target import Target, target_of
from memory_service.bulk.upload import Upload
from memory_service.v1 import memory_pb2 as pb

# Import ids of files follow from what is in them.
NAMESPACE = UUID("6d8f5f0e-3c1b-5d0a-9c59-2f4f1f0f6b7e")

DEFAULT_CHUNK_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    file: str
    user_id: str
    target: Target
    file_format: Format | None
    chunk_size: int
    import_id: UUID | None
    keep_ids: bool
    duplicates: pb.Duplicates | None = None
    """None: they are allowed."""
    embed_async: bool = False
    """Whether texts are embedded after they are stored."""


POLICIES = {
    "skip": pb.DUPLICATE_POLICY_SKIP,
    "reinforce": pb.DUPLICATE_POLICY_REINFORCE,
    "supersede": pb.DUPLICATE_POLICY_SUPERSEDE,
}


@dataclass(slots=True)
class Tally:
    """What became of the memories so far."""

    done: int = 0
    outcomes: Counter[int] = field(default_factory=Counter)
    """By InsertOutcome, of the memories of this attempt."""
    dealt_with_before: int = 0
    """By an earlier attempt."""

    def add(self, reply: pb.ImportVectorsResponse) -> None:
        """Counts the memories of a chunk."""
        self.done += len(reply.ids)
        if reply.already_stored:
            self.dealt_with_before += len(reply.ids)
        else:
            self.outcomes.update(reply.outcomes or [pb.INSERT_OUTCOME_STORED] * len(reply.ids))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command, and that it is run by `run`."""
    parser.add_argument("file", metavar="FILE", help="what to import; - for JSON Lines from standard input")
    parser.add_argument("--user", metavar="ID", dest="user_id", required=True, help="whose memories they become")
    target.add_arguments(parser)
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="by default, as the name says")
    parser.add_argument(
        "--chunk-size", type=int, metavar="N", default=DEFAULT_CHUNK_SIZE, help="memories in a chunk (%(default)s)"
    )
    parser.add_argument(
        "--import-id",
        type=UUID,
        metavar="UUID",
        help="resumes the import of this id; by default, the one of the same content and user",
    )
    parser.add_argument("--keep-ids", action="store_true", help="give memories the ids of the file, not new ones")
    parser.add_argument(
        "--on-duplicate",
        choices=("allow", *POLICIES),
        default="allow",
        help="what to do with memories whose content the user has already (%(default)s)",
    )
    parser.add_argument(
        "--min-similarity",
        type=float,
        metavar="X",
        help="takes memories of at least this cosine similarity for duplicates too, above 0 and at most 1",
    )
    parser.add_argument(
        "--embed-async",
        action="store_true",
        help="store texts at once and let the service embed them later; not with --min-similarity",
    )
    parser.set_defaults(run=lambda options: run(_request(options)))


def _request(options: dict[str, Any]) -> Request:
    return Request(
        file=options["file"],
        user_id=options["user_id"],
        target=target_of(options),
        file_format=None if options["format"] == "auto" else options["format"],
        chunk_size=options["chunk_size"],
        import_id=options["import_id"],
        keep_ids=options["keep_ids"],
        duplicates=_duplicates(options),
        embed_async=options["embed_async"],
    )


def _duplicates(options: dict[str, Any]) -> pb.Duplicates | None:
    on_duplicate, min_similarity = options["on_duplicate"], options["min_similarity"]
    if on_duplicate == "allow":
        if min_similarity is not None:
            raise TransferError("--min-similarity needs --on-duplicate skip, reinforce or supersede")
        return None
    if min_similarity is not None and not 0.0 < min_similarity <= 1.0:
        raise TransferError(f"--min-similarity is {min_similarity:g}, expected above 0 and at most 1")
    if min_similarity is not None and options["embed_async"]:
        raise TransferError("--min-similarity compares embeddings, which with --embed-async are not there yet")
    return pb.Duplicates(policy=POLICIES[on_duplicate], min_similarity=min_similarity)


def run(request: Request) -> int:
    """Imports the file and says what became of it; returns the exit status.

    Raises:
        TransferError: When not everything could be stored.
    """
    file_format = format_of(request.file, request.file_format)
    with open_source(request.file, file_format) as source, connect(request.target) as (stub, info):
        _check_chunk_size(request.chunk_size, info.limits)
        import_id = request.import_id or _import_id(request)
        chunking = Chunking(
            user_id=request.user_id,
            import_id=str(import_id),
            max_count=request.chunk_size,
            max_bytes=info.limits.max_batch_bytes,
            keep_ids=request.keep_ids,
            duplicates=request.duplicates,
            embed_async=request.embed_async,
        )
        tally = Tally()
        progress = Progress(sys.stderr, total=source.size)

        def acknowledged(chunk: Chunk, reply: pb.ImportVectorsResponse) -> None:
            tally.add(reply)
            progress.update(position=chunk.position, count=tally.done)

        retrying = Retrying(say=progress.say, sleep=time.sleep)
        upload = Upload(stub, chunking.chunks(source.records), acknowledged=acknowledged, retrying=retrying)
        try:
            upload.run()
        except BaseException:
            progress.close()
            _say_how_to_resume(tally, import_id)
            raise
        progress.close()
    _say_summary(tally, chunking.left_out, progress.elapsed_s)
    return 0


def _check_chunk_size(chunk_size: int, limits: pb.Limits) -> None:
    if not 1 <= chunk_size <= limits.max_import_chunk_size:
        raise TransferError(f"--chunk-size is {chunk_size}, expected 1 to {limits.max_import_chunk_size}")


def _import_id(request: Request) -> UUID:
    """Returns the id of a file's content, user and policy; where it can be read only once, a new one."""
    if request.file == STANDARD_STREAM or not Path(request.file).is_file():
        return uuid4()
    with Path(request.file).open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    name = f"{content} {request.user_id}"
    if request.duplicates is not None:
        name += f" {request.duplicates.SerializeToString(deterministic=True).hex()}"
    return uuid5(NAMESPACE, name)


def _say_how_to_resume(tally: Tally, import_id: UUID) -> None:
    sys.stderr.write(
        f"{tally.done:,} memories are stored; the same command with --import-id {import_id} goes on from there\n"
    )


def _say_summary(tally: Tally, left_out: int, elapsed_s: float) -> None:
    superseding = tally.outcomes[pb.INSERT_OUTCOME_SUPERSEDED]
    stored = tally.outcomes[pb.INSERT_OUTCOME_STORED] + superseding
    parts = [f"stored {stored:,} memories"]
    parts += [
        said.format(f"{count:,}")
        for said, count in (
            ("{} of them in place of duplicates", superseding),
            ("skipped {} duplicates", tally.outcomes[pb.INSERT_OUTCOME_SKIPPED]),
            ("reinforced {} duplicates", tally.outcomes[pb.INSERT_OUTCOME_REINFORCED]),
            ("skipped {} stored before", tally.dealt_with_before),
            ("left out {} deleted", left_out),
        )
        if count
    ]
    rate = tally.done / max(elapsed_s, 1e-6)
    sys.stdout.write(f"{', '.join(parts)}, in {elapsed_s:.1f} s ({rate:,.0f}/s)\n")
