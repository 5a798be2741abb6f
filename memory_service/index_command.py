"""`memory-service index`: lists approximate indexes, and creates, drops or builds them anew, as maintenance would."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import structlog

from db import ann_counts, revisions, schema
from db.ann_catalog import GLOBAL_NAME, IndexInfo, list_indexes, name_of, progress, wanted_users
from db.ann_policy import AnnPolicy
from db.ann_session import AnnLock, AnnSession
from db.facts import facts_of
from db.user_sizes import COUNT_UP_TO, count_live
from db.wall import ACROSS_USERS
from memory_service.ann_settings import ann_policy
from memory_service.command_audit import written_down
from memory_service.config import Settings
from memory_service.index_changes import NONE_FOR_USERS, Changes, Target
from memory_service.provisioning import open_database, provide_database, space_in_force
from memory_service.text_table import printable, size, table

log = structlog.get_logger(__name__)

Say = Callable[[str], None]
Action = Literal["list", "create", "drop", "rebuild"]

POLL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    action: Action
    user_id: str | None = None
    every_user: bool = False
    across_users: bool = False
    dry_run: bool = False


def add_actions(index: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Adds list, create, drop and rebuild to the parser of `index`, and returns their parsers."""
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = [actions.add_parser("list", help="show the indexes, and who is to get one")]
    for action, help_ in (
        ("create", "build indexes now that maintenance would build"),
        ("drop", "drop indexes"),
        ("rebuild", "build indexes anew, searches using the old ones meanwhile"),
    ):
        parser = actions.add_parser(action, help=help_, description=help_[0].upper() + help_[1:] + ".")
        whose = parser.add_mutually_exclusive_group()
        whose.add_argument("--user", metavar="ID", dest="user_id", help="of this user")
        whose.add_argument("--all", action="store_true", dest="every_user", help="of all users, the largest first")
        parser.add_argument("--global", action="store_true", dest="across_users", help="the index across users")
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
        parser.set_defaults(refuse=parser.error)
        parsers.append(parser)
    return parsers


def take_request(options: dict[str, Any]) -> Request:
    """Removes what `add_actions` added from the options and returns it; ends the process where nothing is selected."""
    values = {field.name: options.pop(field.name) for field in fields(Request) if field.name in options}
    request = Request(**values)
    refuse = options.pop("refuse", None)
    if refuse is not None and not (request.user_id or request.every_user or request.across_users):
        refuse("name the indexes: --user ID, --all or --global")
    return request


def run(settings: Settings, request: Request, say: Say) -> int:
    """Does what is asked; returns 0 when all of it was done, 1 when something was refused or failed.

    Raises:
        DatabaseError: When the database cannot be reached or will not do.
    """
    with provide_database(settings) as provision:
        facts = facts_of(provision.direct_url)
        space = space_in_force(settings, provision.direct_url)
        schema.require(facts, head=revisions.head(), space=space)
        policy = ann_policy(settings, space.dimensions)
        with AnnSession(provision.direct_url, build_memory_mb=settings.ann_build_memory_mb) as session:
            if request.action == "list":
                return _list(policy, session, say)
            with AnnSession(provision.direct_url) as onlooker, _exclusive(session, request):
                changes = Changes(
                    session=session,
                    onlooker=onlooker,
                    policy=policy,
                    dry_run=request.dry_run,
                    say=say,
                )
                if request.dry_run:
                    return _change(changes, request, session)
                with open_database(provision, settings) as database:
                    return written_down(
                        database,
                        f"index {request.action}",
                        lambda: _change(changes, request, session),
                        user_id=request.user_id,
                    )


@contextmanager
def _exclusive(session: AnnSession, request: Request) -> Iterator[None]:
    """Waits until nobody else changes indexes, and keeps it so; a dry run needs no such thing."""
    if request.dry_run:
        yield
        return
    said = False
    while not session.try_lock(AnnLock.WORK):
        if not said:
            said = True
            going_on = session.query(progress)
            log.info("waiting_for_index_maintenance", phase=going_on.phase if going_on is not None else None)
        time.sleep(POLL_S)
    yield


def _change(changes: Changes, request: Request, session: AnnSession) -> int:
    if request.action == "create" and request.every_user and not changes.policy.enabled:
        changes.say(f"refused: {NONE_FOR_USERS}")
        return 1
    act = {"create": changes.create, "drop": changes.drop, "rebuild": changes.rebuild}[request.action]
    targets = _targets(changes, request, session)
    if not targets:
        changes.say("nothing to do")
    outcomes = [act(target) for target in targets]  # all of them, whatever becomes of the first
    return 0 if all(outcomes) else 1


def _targets(changes: Changes, request: Request, session: AnnSession) -> list[Target]:
    """Returns what the selection means: for `create` users who have earned an index, else indexes there are."""
    targets = []
    if request.user_id is not None:
        user_id = request.user_id
        targets.append(
            Target(name_of(user_id), user_id, session.query(lambda conn: count_live(conn, user_id), user_id=user_id))
        )
    if request.every_user and request.action == "create":
        targets.extend(changes.earned())
    elif request.every_user:
        targets.extend(changes.existing(leftovers=request.action == "drop"))
    if request.across_users:
        targets.append(Target(GLOBAL_NAME, None, session.query(ann_counts.total_rows)))
    return targets


def _list(policy: AnnPolicy, session: AnnSession, say: Say) -> int:
    indexes = session.query(list_indexes, user_id=ACROSS_USERS)
    missing = [
        user_id
        for user_id in session.query(wanted_users, user_id=ACROSS_USERS)
        if user_id not in {i.user_id for i in indexes}
    ]
    if not indexes and not missing:
        say(f"no approximate indexes; {_how_to_earn_one(policy)}")
        return 0
    rows = [_row(session, index) for index in indexes]
    rows += [
        (printable(user_id), name_of(user_id), "", "wanted", "", "", _rows(session, user_id)) for user_id in missing
    ]
    headings = ("USER", "INDEX", "METHOD", "STATE", "SIZE", "SCANS", "MEMORIES")
    say(table(headings, rows, right=frozenset({"SIZE", "SCANS", "MEMORIES"})))
    return 0


def _row(session: AnnSession, index: IndexInfo) -> tuple[str, ...]:
    if index.user_id is not None:
        user, memories = printable(index.user_id), _rows(session, index.user_id)
    else:
        user, memories = ("(all users)", f"{index.entries:,}") if index.is_global else ("(nobody)", "")
    return user, index.name, index.method, index.state.value, size(index.bytes), f"{index.scans:,}", memories


def _rows(session: AnnSession, user_id: str) -> str:
    rows = session.query(lambda conn: count_live(conn, user_id), user_id=user_id)
    return f"{rows:,}" + ("+" if rows >= COUNT_UP_TO else "")


def _how_to_earn_one(policy: AnnPolicy) -> str:
    if not policy.enabled:
        return NONE_FOR_USERS
    return f"a user earns one with {policy.min_rows:,} memories (MEMORY_ANN_MIN_ROWS), once they are searched"
