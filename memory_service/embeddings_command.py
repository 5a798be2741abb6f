"""`memory-service embeddings`: what waits for its embedding, what failed, and having it tried again."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from db import embedding_queue_state, revisions, schema
from db.connection import Connection
from db.embedding_queue_state import FailedJob, UserQueue
from db.facts import facts_of
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service import argument_types
from memory_service.command_audit import write_down
from memory_service.config import Settings
from memory_service.provisioning import open_database, provide_database, space_in_force
from memory_service.text_table import duration, printable, table

Say = Callable[[str], None]
Action = Literal["status", "failed", "retry"]

DESCRIPTION = """\
Memories stored with embed_async wait for their embedding in a queue of the database; the running services work it off.
While one waits it is found by its words, by recency and by id, not by meaning.

A memory fails for good when the model refuses its text, or when its embedding failed MEMORY_EMBEDDING_QUEUE_ATTEMPTS
times. It stays stored. Its owner mends it with UpdateVector and a new content or embedding; the operator with `retry`,
once what was wrong with the provider or the model is put right.
"""

DEFAULT_LIMIT = 100
RETRY = "embeddings retry"
"""What the audit log calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    action: Action
    user_id: str | None = None
    every_user: bool = False
    limit: int = DEFAULT_LIMIT


def add_actions(embeddings: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Adds status, failed and retry to the parser of `embeddings`, and returns their parsers."""
    embeddings.description = DESCRIPTION
    embeddings.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = embeddings.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = []
    for action, help_ in (
        ("status", "count what waits and what failed, user by user"),
        ("failed", "list the memories that failed for good, the latest first, with the reason"),
        ("retry", "put memories that failed for good back in the queue, with all their attempts"),
    ):
        parser = actions.add_parser(action, help=help_, description=help_[0].upper() + help_[1:] + ".")
        whose = parser.add_mutually_exclusive_group(required=action == "retry")
        whose.add_argument("--user", metavar="ID", dest="user_id", help="of this user only")
        whose.add_argument("--all", action="store_true", dest="every_user", help="of all users")
        if action != "retry":
            parser.add_argument(
                "--limit",
                type=argument_types.count("lines"),
                metavar="N",
                default=DEFAULT_LIMIT,
                help=f"at most N lines ({DEFAULT_LIMIT})",
            )
        parsers.append(parser)
    return parsers


def take_request(options: dict[str, Any]) -> Request:
    """Removes what `add_actions` added from the options and returns it."""
    return Request(**{field.name: options.pop(field.name) for field in fields(Request) if field.name in options})


def run(settings: Settings, request: Request, say: Say) -> int:
    """Does what is asked; returns 0.

    Raises:
        DatabaseError: When the database cannot be reached or will not do.
    """
    with provide_database(settings) as provision:
        schema.require(facts_of(provision.url), head=revisions.head(), space=space_in_force(settings, provision.url))
        with open_database(provision, settings) as database:
            {"status": _status, "failed": _failed, "retry": _retry}[request.action](database, request, say)
    return 0


def _status(database: Database, request: Request, say: Say) -> None:
    user_id, limit = request.user_id, request.limit

    def read(conn: Connection) -> list[UserQueue]:
        return embedding_queue_state.read_users(conn, user_id=user_id, limit=limit + 1)

    users = database.read(database.call(), read, user_id=ACROSS_USERS)
    if not users:
        say("nothing waits for its embedding, and nothing failed")
        return
    now = datetime.now(UTC)
    headings = ("USER", "PENDING", "FAILED", "OLDEST", "LAST ERROR")
    rows = [_user_row(user, now) for user in users[:limit]]
    say(table(headings, rows, right=frozenset({"PENDING", "FAILED", "OLDEST"})))
    if user_id is None:
        total = database.read(database.call(), embedding_queue_state.read_counts, user_id=ACROSS_USERS)
        more = f"; the {limit:,} longest queues are shown, see --limit" if len(users) > limit else ""
        say(f"{total.pending:,} pending and {total.failed:,} failed of all users{more}")


def _user_row(user: UserQueue, now: datetime) -> tuple[str, ...]:
    oldest = user.counts.oldest_queued_at
    return (
        printable(user.user_id),
        f"{user.counts.pending:,}",
        f"{user.counts.failed:,}",
        "" if oldest is None else duration((now - oldest).total_seconds()),
        _one_line(user.last_error or ""),
    )


def _failed(database: Database, request: Request, say: Say) -> None:
    user_id, limit = request.user_id, request.limit

    def read(conn: Connection) -> list[FailedJob]:
        return embedding_queue_state.list_failed(conn, user_id=user_id, limit=limit + 1)

    found = database.read(database.call(), read, user_id=ACROSS_USERS)
    if not found:
        say("nothing failed")
        return
    rows = [
        (
            printable(job.user_id),
            str(job.id),
            str(job.attempts),
            job.failed_at.astimezone(UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00"),
            _one_line(job.error),
        )
        for job in found[:limit]
    ]
    say(table(("USER", "MEMORY", "ATTEMPTS", "FAILED AT (UTC)", "ERROR"), rows, right=frozenset({"ATTEMPTS"})))
    if len(found) > limit:
        say(f"the latest {limit:,} are shown, there are more; see --limit")


def _retry(database: Database, request: Request, say: Say) -> None:
    now, total = datetime.now(UTC), 0
    write_down(database, RETRY, user_id=request.user_id)

    def retry(conn: Connection) -> int:
        return embedding_queue_state.retry(conn, user_id=request.user_id, now=now)

    while count := database.write(database.call(), retry, user_id=ACROSS_USERS):
        total += count
    write_down(database, RETRY, user_id=request.user_id, memory_count=total, code="OK")
    say(f"{total:,} put back in the queue" if total else "nothing failed, nothing to do")


def _one_line(text: str) -> str:
    return " ".join(text.split())
