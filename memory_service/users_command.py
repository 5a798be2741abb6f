"""`memory-service users`: who has stored how much and may store how much, and erasing a user for good."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from db import erase, user_list, user_quotas
from db.erase import UserContents
from db.pool import Database
from db.user_list import UserSummary
from db.user_quotas import MAX_AMOUNT, UserQuota
from db.wall import ACROSS_USERS
from memory_service import argument_types
from memory_service.access.quotas import quota_of_all
from memory_service.command_audit import write_down
from memory_service.config import Settings
from memory_service.provisioning import open_database, provide_database, require_schema
from memory_service.text_table import printable, size, table

Say = Callable[[str], None]
Ask = Callable[[str], str]
Action = Literal["list", "quota", "erase"]

DESCRIPTION = """\
Works on the database itself, whether services are running or not. Erasing a user and setting a quota are written to the
audit log, with "cli:" and the account that ran the command.
"""

ERASE = """\
Erases a user for good: memories, live and soft-deleted, conversations, counters, remembered requests, its quota. Asks
for the user id once more unless --yes is given. Broken off, it goes on from there when it is run again. The audit log
keeps who did what to which ids.
"""

QUOTA = """\
Shows what a user may store; with --memories or --bytes, sets it for this user alone, before it has stored anything or
afterwards: a number, `any` for any amount, `default` for what the settings of the services say. In force on all
services within 15 seconds. What the user has stored already stays, also where that is more.
"""

DEFAULT_LIMIT = 100
PAGE = 1_000
MAX_CHARACTERS = 255

_user_id = argument_types.text(MAX_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Amount:
    """What a quota is to be."""

    value: int | None
    """None: what all users may store, 0: any amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    action: Action
    user_id: str = ""
    dry_run: bool = False
    yes: bool = False
    limit: int = DEFAULT_LIMIT
    after: str = ""
    memories: Amount | None = None
    bytes: Amount | None = None


def add_actions(users: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Adds list, quota and erase to the parser of `users`, and returns their parsers."""
    users.description = DESCRIPTION
    actions = users.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show users and what they have stored", description="Shows users.")
    listing.add_argument(
        "--limit",
        type=argument_types.count("users"),
        metavar="N",
        default=DEFAULT_LIMIT,
        help=f"at most N users ({DEFAULT_LIMIT})",
    )
    listing.add_argument("--after", metavar="ID", default="", help="those that follow this user id")
    quota = actions.add_parser("quota", help="show or set what a user may store", description=QUOTA)
    quota.add_argument("user_id", metavar="ID", type=_user_id, help="the user")
    quota.add_argument("--memories", type=_amount, metavar="N", help="so many memories, soft-deleted ones included")
    quota.add_argument("--bytes", type=_amount, metavar="N", help="so many bytes, as GetStats counts them")
    erasing = actions.add_parser("erase", help="erase a user for good", description=ERASE)
    erasing.add_argument("user_id", metavar="ID", type=_user_id, help="the user")
    erasing.add_argument("--dry-run", action="store_true", help="only count what there is to erase")
    erasing.add_argument("--yes", action="store_true", help="do not ask")
    return [listing, quota, erasing]


def _amount(text: str) -> Amount:
    if text in {"any", "default"}:
        return Amount(0 if text == "any" else None)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= MAX_AMOUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number, 1 or more, nor `any` or `default`")
    return Amount(int(text))


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
        with open_database(provision, settings) as database:
            if request.action == "list":
                return _list(database, request, say)
            if request.action == "quota":
                return _quota(settings, database, request, say)
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


def _quota(settings: Settings, database: Database, request: Request, say: Say) -> int:
    user_id, of_all = request.user_id, quota_of_all(settings)
    own = database.read(database.call(), lambda conn: user_quotas.read(conn, user_id), user_id=user_id)
    if request.memories is not None or request.bytes is not None:
        own = UserQuota(
            memories=own.memories if request.memories is None else request.memories.value,
            bytes=own.bytes if request.bytes is None else request.bytes.value,
        )
        now = datetime.now(UTC)
        write_down(database, "SetUserQuota", user_id=user_id)
        database.write(
            database.call(), lambda conn: user_quotas.write(conn, user_id, own, now=now), user_id=ACROSS_USERS
        )
        write_down(database, "SetUserQuota", user_id=user_id, code="OK")
    say(
        f"{printable(user_id)} may store {_allowed(own.memories, of_all.memories, 'memories')} "
        f"and {_allowed(own.bytes, of_all.bytes, 'bytes')}"
    )
    return 0


def _allowed(own: int | None, of_all: int, unit: str) -> str:
    allowed = of_all if own is None else own
    return (f"any number of {unit}" if allowed == 0 else f"{allowed:,} {unit}") + (" (default)" if own is None else "")


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
