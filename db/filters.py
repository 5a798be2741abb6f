"""Which memories a query considers: the filter, and its WHERE conditions."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg.sql import SQL, Composable
from psycopg.types.json import Jsonb

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
    show_deleted: bool = False

    def shape(self) -> frozenset[str]:
        """Returns which conditions there are: filters of one shape share a statement, and so its plan."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return frozenset(name for name, value in values.items() if value is not None and value is not False)

    def parameters(self) -> dict[str, Any]:
        """Returns the values for the conditions."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.metadata_contains is not None:
            values["metadata_contains"] = Jsonb(self.metadata_contains)
        return values


_CONDITIONS = {
    "conversation_id": SQL("conversation_id = %(conversation_id)s"),
    "min_importance": SQL("importance >= %(min_importance)s"),
    "max_importance": SQL("importance <= %(max_importance)s"),
    "metadata_contains": SQL("metadata @> %(metadata_contains)s"),
    "created_after": SQL("created_at >= %(created_after)s"),
    "created_before": SQL("created_at < %(created_before)s"),
}


def where(shape: frozenset[str]) -> Composable:
    """Returns the conditions on memory_entries for filters of this shape, the user's own included."""
    conditions: list[Composable] = [SQL("user_id = %(user_id)s")]
    if "show_deleted" not in shape:
        conditions.append(SQL("deleted_at IS NULL"))
    conditions.extend(condition for name, condition in _CONDITIONS.items() if name in shape)
    return SQL("\n        AND ").join(conditions)
