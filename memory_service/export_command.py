"""`memory-service export`: writes the memories of a user, as a running service has them, to a file."""

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

from memory_service.bulk import download, target
from memory_service.bulk.channel import connect
from memory_service.bulk.formats import FORMATS, STANDARD_STREAM, Format, format_of, open_writer
from memory_service.bulk.output_file import open_output
from memory_service.bulk.progress import Progress
from memory_service.bulk.retrying import Retrying
from memory_service.bulk.target import Target, target_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    user_id: str
    target: Target
    output: str
    file_format: Format | None
    with_embeddings: bool
    show_deleted: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command, and that it is run by `run`."""
    parser.add_argument("--user", metavar="ID", dest="user_id", required=True, help="whose memories")
    parser.add_argument(
        "--output", metavar="FILE", default=STANDARD_STREAM, help="where to; by default, JSON Lines to standard output"
    )
    target.add_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, help="by default, as the name of the file says")
    parser.add_argument("--with-embeddings", action="store_true", help="write embeddings, too")
    parser.add_argument("--show-deleted", action="store_true", help="write soft-deleted memories, too, marked as such")
    parser.set_defaults(run=lambda options: run(_request(options)))


def _request(options: dict[str, Any]) -> Request:
    return Request(
        user_id=options["user_id"],
        target=target_of(options),
        output=options["output"],
        file_format=options["format"],
        with_embeddings=options["with_embeddings"],
        show_deleted=options["show_deleted"],
    )


def run(request: Request) -> int:
    """Exports the memories and says how many; returns the exit status.

    Raises:
        TransferError: When not everything could be read or written; there is no file then.
    """
    file_format = format_of(request.output, request.file_format)
    # The output last: it takes its name only when all else went well.
    with connect(request.target) as (stub, _), open_output(request.output) as stream:
        writer = open_writer(
            stream, file_format, with_embeddings=request.with_embeddings, with_deleted=request.show_deleted
        )
        progress = Progress(sys.stderr)
        retrying = Retrying(say=progress.say, sleep=time.sleep)
        progress.total = download.count(stub, request.user_id, show_deleted=request.show_deleted, retrying=retrying)
        found = download.memories(
            stub,
            request.user_id,
            with_embeddings=request.with_embeddings,
            show_deleted=request.show_deleted,
            retrying=retrying,
        )
        count = 0
        try:
            for count, memory in enumerate(found, start=1):
                writer.write(memory)
                progress.update(position=count, count=count)
            writer.close()
        finally:
            progress.close()
    rate = count / max(progress.elapsed_s, 1e-6)
    sys.stderr.write(f"exported {count:,} memories, in {progress.elapsed_s:.1f} s ({rate:,.0f}/s)\n")
    return 0
