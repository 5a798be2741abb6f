"""Which memories a query considers: the filter, and its conditions on the covering index and on the row."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg.sql import SQL, Composable
from psycopg.types.json import Jsonb

from db.conditions import Condition, compile_condition
from db.memory import Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Conditions on memories, combined with AND; None does not restrict."""

    conversation_id: str | None = None
    min_importance: int | None = None
    max_importance: int | None = None
    metadata_contains: Metadata | None = None
    created_after: datetime | None = None
    """Inclusive."""
    created_before: datetime | None = None
    """Exclusive."""
    where: Condition | None = None
    show_deleted: bool = False

    @property
    def reads_metadata(self) -> bool:
        """Whether the filter needs the row: everything else stands in the covering index."""
        return self.metadata_contains is not None or self.where is not None

    @property
    def restricts(self) -> bool:
        """Whether live memories may fail to pass."""
        return any(getattr(self, field.name) is not None for field in fields(self) if field.name != "show_deleted")

    def compiled(self) -> "CompiledFilter":
        """Returns the filter as SQL. Filters of one shape make the same text, and so share a plan."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        names = frozenset(name for name, value in values.items() if value is not None and value is not False)
        del values["where"]
        if self.metadata_contains is not None:
            values["metadata_contains"] = Jsonb(self.metadata_contains)
        where = None
        if self.where is not None:
            sql, parameters = compile_condition(self.where)
            where = sql.as_bytes(None)
            values |= parameters
        return CompiledFilter(names, where, values)


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter's text and its values, apart: the text is what statements are kept by."""

    names: frozenset[str]
    """Which conditions there are."""
    where: bytes | None
    """The condition on metadata, as SQL with named parameters."""
    parameters: dict[str, Any]


_INDEX = {
    "min_importance": SQL("importance >= %(min_importance)s"),
    "max_importance": SQL("importance <= %(max_importance)s"),
    "created_after": SQL("created_at >= %(created_after)s"),
    "created_before": SQL("created_at < %(created_before)s"),
}
_TIMES = ("created_after", "created_before")
_CONVERSATION = SQL("conversation_id = %(conversation_id)s")
# The covering index holds the hash; the row decides.
_CONVERSATION_KEY = SQL("conversation_key = hashtextextended(%(conversation_id)s, 0)")
_METADATA = SQL("metadata @> %(metadata_contains)s")
EMBEDDED = SQL("embedding IS NOT NULL")
"""A memory that waits for its embedding is not found by it."""

Conditions = list[Composable]


def row_conditions(names: frozenset[str], where: bytes | None) -> Conditions:
    """Returns all conditions, for a plan that reads the rows."""
    conditions: Conditions = [] if "show_deleted" in names else [SQL("deleted_at IS NULL")]
    conditions.extend(condition for name, condition in _INDEX.items() if name in names)
    if "conversation_id" in names:
        conditions.append(_CONVERSATION)
    if "metadata_contains" in names:
        conditions.append(_METADATA)
    if where is not None:
        conditions.append(SQL(where.decode()))  # composed by db.conditions
    return conditions


def key_conditions(names: frozenset[str]) -> Conditions:
    """Returns the conditions by which an index reads no other rows of the user: on the conversation and the time."""
    conditions: Conditions = [_INDEX[name] for name in _TIMES if name in names]
    if "conversation_id" in names:
        conditions.append(_CONVERSATION)
    return conditions


def index_conditions(names: frozenset[str]) -> Conditions:
    """Returns the conditions that the covering index can judge by itself."""
    conditions: Conditions = [SQL("deleted_at IS NULL"), EMBEDDED]
    # IS TRUE keeps a generic plan from the index on created_at, which takes any range for a narrow one and then has to
    # read each row.
    conditions.extend(SQL("({}) IS TRUE").format(condition) for name, condition in _INDEX.items() if name in names)
    if "conversation_id" in names:
        conditions.append(_CONVERSATION_KEY)
    return conditions


def of_user(conditions: Conditions) -> Composable:
    """Returns the conditions together with the one that every statement has."""
    return SQL("\n        AND ").join([SQL("user_id = %(user_id)s"), *conditions])
