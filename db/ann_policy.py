"""Which approximate indexes there should be: the rules, apart from the database, as one function of what there is."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from db.ann_catalog import GLOBAL_NAME, IndexInfo, IndexState, name_of
from db.ann_indexes import IndexOptions, suits

# A user has to be this much larger than the smallest with an index to take its place: two alike must not alternate.
DISPLACES = 1.5
# Deleted memories stay in the graph until vacuum, and the pages they took for good.
REBUILD_BELOW = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnPolicy:
    """Who gets an index of their own, and how many do."""

    options: IndexOptions
    enabled: bool = True
    """Whether users get indexes at all."""
    min_rows: int = 20_000
    """Live memories that earn an index."""
    drop_rows: int = 10_000
    """Live memories below which it is dropped."""
    max_indexes: int = 100
    """Most indexes of users: every statement on memories plans with all of them."""
    global_index: bool = False
    """Whether there is to be one across users."""


class Act(Enum):
    """What to do about an index."""

    DROP = "drop"
    FORGET = "forget"
    """Drop it, and the wish for it."""
    BUILD = "build"
    REBUILD = "rebuild"
    """Build it anew, searches using the old one meanwhile if it is of the same method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do."""

    act: Act
    name: str
    """The index."""
    user_id: str | None
    rows: int
    """Memories it holds, or will."""
    reason: str
    """For people to read; names no user."""


@dataclass(frozen=True, slots=True)
class UserRows:
    """How many live memories a user has, and had at most since the index was built."""

    now: int
    peak: int


def steps(
    indexes: Collection[IndexInfo], wanted: Mapping[str, UserRows], total_rows: int, policy: AnnPolicy
) -> list[Step]:
    """Returns what to do for the indexes to be as they should: first what makes room, then builds, largest first.

    Args:
        indexes: What there is, as read from the catalogs.
        wanted: The users for whom an index is wanted, and their sizes.
        total_rows: Memories of all users, roughly; 0 where PostgreSQL has not looked yet.
        policy: The rules.
    """
    names = {name_of(user_id) for user_id in wanted} | ({GLOBAL_NAME} if policy.global_index else set())
    remains = {index.name: reason for index in indexes if (reason := _useless(index, names)) is not None}
    there = {index.name: index for index in indexes if index.name not in remains}
    result = [Step(act=Act.DROP, name=name, user_id=None, rows=0, reason=reason) for name, reason in remains.items()]
    kept: dict[str, UserRows] = {}
    for user_id, rows in wanted.items():
        if (reason := _not_earned(rows.now, policy, has_index=name_of(user_id) in there)) is None:
            kept[user_id] = rows
        else:
            result.append(_step(Act.FORGET, user_id, rows.now, reason))
    chosen, displaced = _choose(kept, there, policy.max_indexes)
    reason = f"no room: {policy.max_indexes} larger users have one"
    result.extend(_step(Act.DROP, user_id, kept[user_id].now, reason) for user_id in displaced)
    for user_id in chosen:
        result.extend(_due(user_id, there.get(name_of(user_id)), kept[user_id], policy.options))
    if policy.global_index:
        result.extend(_due(None, there.get(GLOBAL_NAME), UserRows(total_rows, total_rows), policy.options))
    return result


def _useless(index: IndexInfo, names: Collection[str]) -> str | None:
    """Returns why an index has to go whatever the sizes, None where it may stay."""
    if index.state is IndexState.BUILDING:
        return None
    if index.is_leftover:
        return "an interrupted replacement left it"
    if index.name not in names:
        return "nobody wants it"
    return "its build or removal was interrupted" if index.state is IndexState.INVALID else None


def _not_earned(rows: int, policy: AnnPolicy, *, has_index: bool) -> str | None:
    if not policy.enabled:
        return "users get no indexes"
    needed = policy.drop_rows if has_index else policy.min_rows
    return f"{rows:,} memories are fewer than {needed:,}" if rows < needed else None


def _choose(
    users: Mapping[str, UserRows], there: Mapping[str, IndexInfo], max_indexes: int
) -> tuple[list[str], list[str]]:
    """Returns who is to have an index, largest first, and who has one but loses it to them."""
    largest_first = sorted(users, key=lambda user_id: (-users[user_id].now, user_id))
    holders = [user_id for user_id in largest_first if name_of(user_id) in there]
    candidates = [user_id for user_id in largest_first if name_of(user_id) not in there]
    holders, displaced = holders[:max_indexes], holders[max_indexes:]
    added = candidates[: max_indexes - len(holders)]
    for candidate in candidates[len(added) :]:
        if not holders or users[candidate].now < DISPLACES * users[holders[-1]].now:
            break
        displaced.append(holders.pop())
        added.append(candidate)
    chosen = {*holders, *added}
    return [user_id for user_id in largest_first if user_id in chosen], displaced


def _due(user_id: str | None, index: IndexInfo | None, rows: UserRows, options: IndexOptions) -> Iterator[Step]:
    if index is None:
        reason = "searches across users need it" if user_id is None else f"{rows.now:,} memories have earned it"
        yield _step(Act.BUILD, user_id, rows.now, reason)
    elif index.state is IndexState.READY and rows.now:
        if not suits(index, options, rows.now):
            yield _step(Act.REBUILD, user_id, rows.now, "it was built for other settings or another size")
        elif rows.now < REBUILD_BELOW * max(index.entries, rows.peak):
            yield _step(Act.REBUILD, user_id, rows.now, "most of its memories were deleted")


def _step(act: Act, user_id: str | None, rows: int, reason: str) -> Step:
    name = GLOBAL_NAME if user_id is None else name_of(user_id)
    return Step(act=act, name=name, user_id=user_id, rows=rows, reason=reason)
