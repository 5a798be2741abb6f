"""`memory-service keys`: makes API keys, lists, revokes and rotates them, in the database that the services use."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from db import api_keys
from db.api_keys import ApiKey, NewApiKey
from db.connection import Connection
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service import argument_types
from memory_service.access import api_key
from memory_service.command_audit import write_down
from memory_service.config import Settings
from memory_service.provisioning import open_database, provide_database, require_schema
from memory_service.text_table import printable, table

Say = Callable[[str], object]
Action = Literal["create", "list", "revoke", "rotate"]

DESCRIPTION = """\
API keys are asked for by services with MEMORY_AUTH=keys. Clients send them as metadata, `authorization: Bearer msk_...`
or `api-key: msk_...`. A key is shown once, when it is made: what is stored recognizes it and cannot bring it back.

A key has a role: reader (search and read), writer (also store, change and delete) or admin (also administer). It is for
all users, or for those named by --user and --user-prefix. The prefix acme is for acme, acme/ada and acme:ada, and never
for acme-corp.

A running service takes a new key at once, and refuses a revoked one within five seconds.
"""

EXAMPLES = """\
examples:
  memory-service keys create --name "chat service" --role writer --all-users
  memory-service keys create --name "acme, read only" --role reader --user-prefix acme --expires 90d
  memory-service keys rotate 4f1d0c8a9b2e7d63 --overlap 48h
  memory-service keys revoke 4f1d0c8a9b2e7d63
"""

PAGE_ROWS = 1_000
MAX_CHARACTERS = 255
ROLES = ("reader", "writer", "admin")

_text = argument_types.text(MAX_CHARACTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    action: Action
    key_id: str = ""
    name: str = ""
    role: str = ""
    users: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    all_users: bool = False
    expires: timedelta | datetime | None = None
    overlap: timedelta = timedelta()
    active: bool = False


def add_actions(keys: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Adds create, list, revoke and rotate to the parser of `keys`, and returns their parsers."""
    keys.description, keys.epilog = DESCRIPTION, EXAMPLES
    keys.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="make a key",
        description="Makes a key and prints it: the key alone to standard output, all else to standard error.",
    )
    _add_create(create)
    list_ = actions.add_parser(
        "list", help="show the keys, newest first", description="Shows the keys, newest first, without their secrets."
    )
    list_.add_argument("--active", action="store_true", help="only those that are neither revoked nor expired")
    revoke = actions.add_parser(
        "revoke",
        help="end a key for good",
        description="Ends a key for good. Every service refuses it within five seconds.",
    )
    rotate = actions.add_parser(
        "rotate",
        help="give a key a new secret",
        description="Gives a key a new secret and prints it. Id, role, users and expiry stay as they are.",
    )
    rotate.add_argument(
        "--overlap",
        type=argument_types.duration,
        default=api_key.OVERLAP,
        metavar="TIME",
        help="how long the secret it has now stays valid, such as 30m, 48h or 7d; 0s: not at all (24h)",
    )
    for parser in (revoke, rotate):
        parser.add_argument("key_id", metavar="ID", type=_key_id, help="its id, as `list` shows it, or the key itself")
    return [create, list_, revoke, rotate]


def _add_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("--name", required=True, type=_text, help="what it is for, for the list")
    create.add_argument("--role", required=True, choices=ROLES, help="what it may do")
    create.add_argument(
        "--user", action="append", dest="users", type=_text, metavar="ID", help="a user it is for; may be repeated"
    )
    create.add_argument(
        "--user-prefix",
        action="append",
        dest="prefixes",
        type=_text,
        metavar="PREFIX",
        help="users it is for: PREFIX itself, and what begins with PREFIX and / or :; may be repeated",
    )
    create.add_argument("--all-users", action="store_true", help="it is for everybody")
    create.add_argument(
        "--expires",
        type=argument_types.end,
        metavar="WHEN",
        help="after how long, such as 90d, or at which time, such as 2030-01-31 or 2030-01-31T12:00:00+00:00 (never)",
    )
    create.set_defaults(check=lambda options: _check_scope(create, options))


def _check_scope(create: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    confined = bool(options["users"] or options["prefixes"])
    if confined == options["all_users"]:
        create.error("say whom the key is for: --user and --user-prefix, or --all-users")


def take_request(options: dict[str, Any]) -> Request:
    """Removes what `add_actions` added from the options and returns it."""
    if (check := options.pop("check", None)) is not None:
        check(options)
    taken = {field.name: options.pop(field.name) for field in fields(Request) if field.name in options}
    return Request(**{name: value for name, value in taken.items() if value is not None})


def run(settings: Settings, request: Request, say: Say, note: Say | None = None) -> int:
    """Does what is asked; returns the exit status.

    Args:
        settings: Which database.
        request: What to do.
        say: Takes what was asked for: a new key, the list.
        note: Takes all else; by default standard error.

    Raises:
        DatabaseError: When the database cannot be reached or will not do.
    """
    note = note or (lambda text: sys.stderr.write(f"{text}\n"))
    with provide_database(settings) as provision:
        require_schema(settings, provision)
        with open_database(provision, settings) as database:
            return _ACTIONS[request.action](database, request, say, note)


def _create(database: Database, request: Request, say: Say, note: Say) -> int:
    now = datetime.now(UTC)
    key = api_key.new_key()
    expires_at = now + request.expires if isinstance(request.expires, timedelta) else request.expires
    stored = NewApiKey(
        id=key.id,
        name=request.name,
        role=request.role,
        everyone=request.all_users,
        users=tuple(request.users),
        prefixes=tuple(request.prefixes),
        expires_at=expires_at,
    )
    secret = api_key.digest_of(key)
    write_down(database, "CreateApiKey", key_id=key.id)
    database.write(database.call(), lambda conn: api_keys.insert(conn, stored, secret, now=now), user_id=ACROSS_USERS)
    write_down(database, "CreateApiKey", key_id=key.id, code="OK")
    say(key.written())
    note(
        f"made key {key.id} ({stored.role}, {_scope(stored)}, expires {_time(expires_at) or 'never'}); "
        "this is the only time it is shown"
    )
    return 0


def _list(database: Database, request: Request, say: Say, note: Say) -> int:
    now = datetime.now(UTC)
    rows = [_row(key, now) for key in _all(database) if not request.active or _state(key, now) == "active"]
    if not rows:
        note("no keys; `memory-service keys create --help` says how to make one")
        return 0
    say(table(("ID", "NAME", "ROLE", "USERS", "CREATED", "EXPIRES", "LAST USED", "STATE"), rows))
    return 0


def _all(database: Database) -> Iterator[ApiKey]:
    after: ApiKey | None = None

    def read(conn: Connection) -> list[ApiKey]:
        return api_keys.read_page(conn, limit=PAGE_ROWS, after=after)

    while page := database.read(database.call(), read, user_id=ACROSS_USERS):
        yield from page
        after = page[-1]


def _revoke(database: Database, request: Request, say: Say, note: Say) -> int:
    now = datetime.now(UTC)
    call = database.call()
    write_down(database, "RevokeApiKey", key_id=request.key_id)
    found = database.write(call, lambda conn: api_keys.revoke(conn, request.key_id, now=now), user_id=ACROSS_USERS)
    write_down(database, "RevokeApiKey", key_id=request.key_id, code="OK" if found else "NOT_FOUND")
    if not found:
        note(f"there is no key {request.key_id}")
        return 1
    say(f"revoked key {request.key_id}")
    return 0


def _rotate(database: Database, request: Request, say: Say, note: Say) -> int:
    now = datetime.now(UTC)
    key = api_key.with_new_secret(request.key_id)
    until = now + request.overlap
    secret = api_key.digest_of(key)
    write_down(database, "RotateApiKey", key_id=key.id)
    rotated = database.write(
        database.call(),
        lambda conn: api_keys.rotate(conn, key.id, secret, previous_valid_until=until, now=now),
        user_id=ACROSS_USERS,
    )
    write_down(database, "RotateApiKey", key_id=key.id, code="OK" if rotated else "NOT_FOUND")
    if not rotated:
        note(f"there is no key {request.key_id}, or it is revoked")
        return 1
    say(key.written())
    note(f"the secret before it is valid until {_time(until)}; this is the only time the new one is shown")
    return 0


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate}


def _row(key: ApiKey, now: datetime) -> tuple[str, ...]:
    return (
        key.id,
        printable(key.name),
        key.role,
        _scope(key),
        _time(key.created_at),
        _time(key.expires_at) or "never",
        _time(key.last_used_at) or "never",
        _state(key, now),
    )


def _scope(key: NewApiKey) -> str:
    if key.everyone:
        return "all"
    return ", ".join([*map(printable, key.users), *(f"{printable(prefix)} and below" for prefix in key.prefixes)])


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {_time(key.revoked_at)}"
    if key.expires_at is not None and key.expires_at <= now:
        return "expired"
    return "active"


def _time(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _key_id(text: str) -> str:
    """Returns the id of a key, which may be given whole."""
    text = _text(text)
    key = api_key.parse(text)
    return key.id if key is not None else text
