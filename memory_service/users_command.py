"""`memory-service users`: who has stored how much, and erasing a user for good."""

import argparse
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from db import erase, user_list
from db.erase import UserContents
from db.pool import Database, PoolOptions
from db.user_list import UserSummary
from db.wall import ACROSS_USERS
from memory_service.command_audit import write_down
from memory_service.config import Settings
from memory_service.provisioning import provide_database, require_schema
from memory_service.text_table import printable, size, table

Say = Callable[[str], None]
Ask = Callable[[str], str]
Action = Literal["list", "erase"]

DESCRIPTION = """\
Works on the database itself, whether services are running or not. What `erase` does is written to the audit log, with
"cli:" and the account that ran it.
"""

ERASE = """\
Erases a user for good: memories, live and soft-deleted, conversations, counters, remembered requests. Asks for the user
id once more unless --yes is given. Broken off, it goes on from there when it is run again. The audit log keeps who did
what to which ids.
"""

DEFAULT_LIMIT = 100
PAGE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    action: Action
    user_id: str = ""
    dry_run: bool = False
    yes: bool = False
    limit: int = DEFAULT_LIMIT
    after: str = ""


def add_actions(users: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Adds list and erase to the parser of `users`, and returns their parsers."""
    users.description = DESCRIPTION
    actions = users.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show users and what they have stored", description="Shows users.")
    listing.add_argument(
        "--limit", type=_positive, metavar="N", default=DEFAULT_LIMIT, help=f"at most N users ({DEFAULT_LIMIT})"
    )
    listing.add_argument("--after", metavar="ID", default="", help="those that follow this user id")
    erasing = actions.add_parser("erase", help="erase a user for good", description=ERASE)
    erasing.add_argument("user_id", metavar="ID", help="the user")
    erasing.add_argument("--dry-run", action="store_true", help="only count what there is to erase")
    erasing.add_argument("--yes", action="store_true", help="do not ask")
    return [listing, erasing]


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of users, 1 or more")
    return int(text)


def take_request(options: dict[str, Any]) -> Request:
    """Removes what `add_actions` added from the options and returns it."""
    return Request(**{field.name: options.pop(field.name) for field in fields(Request) if field.name in options})


def run(settings: Settings, request: Request, say: Say, *, ask: Ask = input) -> int:
    """Does what is asked; returns 0 when it was done, 1 when the user id was not confirmed.

    Raises:
        DatabaseError: When the database cannot be reached or will not do.
    """
    with provide_database(settings) as provision:
        require_schema(settings, provision)
        options = PoolOptions(
            min_size=1,
            max_size=1,
            timeout_s=settings.pool_timeout_s,
            statement_timeout_s=settings.statement_timeout_s,
            prepared_statements=settings.prepared_statements,
        )
        with closing(Database(provision.url, options)) as database:
            database.open()
            if request.action == "list":
                return _list(database, request, say)
            return _erase(database, request, say, ask)


def _list(database: Database, request: Request, say: Say) -> int:
    users: list[UserSummary] = []
    after, wanted = request.after, request.limit + 1
    while len(users) < wanted:
        count = min(PAGE, wanted - len(users))
        page = database.read(
            database.call(),
            lambda conn, after=after, count=count: user_list.read_page(conn, after=after, limit=count),  # type: ignore[misc]  # bound now
            user_id=ACROSS_USERS,
        )
        users.extend(page)
        if len(page) < count:
            break
        after = page[-1].user_id
    if not users:
        say("no users")
        return 0
    rows = [
        (
            printable(user.user_id),
            f"{user.live_count:,}",
            f"{user.deleted_count:,}",
            size(user.stored_bytes),
            _date(user.created_at),
            "" if user.newest_created_at is None else _date(user.newest_created_at),
        )
        for user in users[: request.limit]
    ]
    headings = ("USER", "LIVE", "DELETED", "SIZE", "SINCE (UTC)", "NEWEST (UTC)")
    say(table(headings, rows, right=frozenset({"LIVE", "DELETED", "SIZE"})))
    if len(users) > request.limit:
        say(f"there are more; see --limit and --after {printable(users[request.limit - 1].user_id)}")
    return 0


def _date(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


def _erase(database: Database, request: Request, say: Say, ask: Ask) -> int:
    user_id = request.user_id
    found = database.read(database.call(), lambda conn: erase.count(conn, user_id), user_id=user_id)
    say(f"{printable(user_id)} has {_described(found)}")
    if request.dry_run:
        return 0
    if not request.yes and not _confirmed(user_id, ask):
        say("not confirmed; nothing was erased")
        return 1
    write_down(database, "EraseUser", user_id=user_id)
    erased = erase.erase(database, database.call(), user_id, now=datetime.now(UTC))
    write_down(database, "EraseUser", user_id=user_id, memory_count=erased.memories, code="OK")
    say(f"erased {_described(erased)}; nothing is left of this user but the audit log")
    return 0


def _confirmed(user_id: str, ask: Ask) -> bool:
    try:
        return ask("This cannot be undone. Enter the user id to go on: ") == user_id
    except EOFError:  # no terminal
        return False


def _described(contents: UserContents) -> str:
    return (
        f"{contents.memories:,} memories, {contents.conversations:,} conversations, "
        f"{contents.request_ids:,} remembered requests"
    )
