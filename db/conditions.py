"""Typed conditions on metadata: a small tree, and the SQL it becomes.

A comparison holds only for a stored value of the JSON type compared with. PostgreSQL alone would not see to that:
`metadata->>'n' >= '10'` compares texts, so that 9 is greater (langgraph#7684), and a cast of a value that is no
number ends the whole query.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from psycopg.sql import SQL, Composable
from psycopg.types.json import Jsonb

Scalar = float | str | bool | datetime
Path = tuple[str, ...]


class Operator(Enum):
    """How two values compare; the value is the SQL operator."""

    EQUAL = "="
    NOT_EQUAL = "<>"
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of these hold; there is at least one."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of these holds; there is at least one."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Negated:
    """This does not hold."""

    condition: "Condition"


@dataclass(frozen=True, slots=True)
class Compares:
    """The value at `path` is of the type of `value`, and compares so."""

    path: Path
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class MemberOf:
    """The value at `path` is one of these; there is at least one."""

    path: Path
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """There is a value at `path`, be it null."""

    path: Path


Condition = AllOf | AnyOf | Negated | Compares | MemberOf | Exists


class _Parameters:
    """Names the values of a tree c0, c1, …: trees of one shape make the same text, and so share a plan."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def add(self, value: object, kind: str) -> Composable:
        name = f"c{len(self.values)}"
        self.values[name] = value
        return SQL(f"%({name})s::{kind}")


def compile_condition(condition: Condition) -> tuple[Composable, dict[str, Any]]:
    """Returns the condition on memory_entries.metadata as SQL that is true or false, never NULL, and its values."""
    parameters = _Parameters()
    return _sql(condition, parameters), parameters.values


def _sql(condition: Condition, parameters: _Parameters) -> Composable:
    match condition:
        case AllOf(conditions):
            return _joined(SQL(" AND "), conditions, parameters)
        case AnyOf(conditions):
            return _joined(SQL(" OR "), conditions, parameters)
        case Negated(inner):
            return SQL("NOT {}").format(_sql(inner, parameters))
        case Compares(path, operator, value):
            return _comparison(_stored(path, parameters), operator, value, parameters)
        case MemberOf(path, values):
            return _membership(_stored(path, parameters), values, parameters)
        case Exists(path):
            return SQL("({} IS NOT NULL)").format(_stored(path, parameters))


def _joined(glue: SQL, conditions: tuple[Condition, ...], parameters: _Parameters) -> Composable:
    return SQL("({})").format(glue.join(_sql(condition, parameters) for condition in conditions))


def _stored(path: Path, parameters: _Parameters) -> Composable:
    """Returns the JSON value at `path`, NULL where there is none. Unlike #>, -> takes "0" for no array's element."""
    keys = [parameters.add(key, "text") for key in path]
    return SQL("({})").format(SQL(" -> ").join([SQL("metadata"), *keys]))


# CASE decides the order of evaluation: the cast sees values of its type only.
_NUMBER = SQL("(CASE WHEN jsonb_typeof({stored}) = 'number' THEN {stored}::numeric {operator} {value} ELSE false END)")
_FLAG = SQL("(CASE WHEN jsonb_typeof({stored}) = 'boolean' THEN {stored}::boolean {operator} {value} ELSE false END)")
_TEXT = SQL(
    "(CASE WHEN jsonb_typeof({stored}) = 'string' "
    """THEN ({stored} #>> '{{}}') COLLATE "C" {operator} {value} ELSE false END)"""
)
# RFC 3339 by its form, then by its value: 2026-02-30 has the form and is no day.
_TIME = SQL(
    "(CASE WHEN jsonb_typeof({stored}) = 'string' AND ({stored} #>> '{{}}') ~ "
    r"'^\d{{4}}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$' "
    "AND pg_input_is_valid({moment}, 'timestamptz') THEN {moment}::timestamptz {operator} {value} ELSE false END)"
)
# PostgreSQL would round to microseconds; the values compared with were cut off.
_MOMENT = SQL(r"regexp_replace({stored} #>> '{{}}', '(\.\d{{6}})\d+', '\1')")


def _comparison(stored: Composable, operator: Operator, value: Scalar, parameters: _Parameters) -> Composable:
    match value:
        case bool():
            return _typed(_FLAG, stored, operator, parameters.add(value, "boolean"))
        case str():
            return _typed(_TEXT, stored, operator, parameters.add(value, "text"))
        case datetime():
            return _typed(_TIME, stored, operator, parameters.add(value, "timestamptz"))
        case _:
            # The digits that JSON has for it: PostgreSQL keeps 15 when it casts a double.
            return _typed(_NUMBER, stored, operator, parameters.add(Decimal(repr(value)), "numeric"))


def _typed(template: SQL, stored: Composable, operator: Operator, value: Composable) -> Composable:
    moment = _MOMENT.format(stored=stored)
    return template.format(stored=stored, moment=moment, operator=SQL(operator.value), value=value)


def _membership(stored: Composable, values: tuple[Scalar, ...], parameters: _Parameters) -> Composable:
    """JSON equality is typed already; times are compared as such, because their texts may differ."""
    times = [value for value in values if isinstance(value, datetime)]
    others = [Jsonb(value) for value in values if not isinstance(value, datetime)]
    parts: list[Composable] = []
    if times:
        any_time = SQL("ANY({})").format(parameters.add(times, "timestamptz[]"))
        parts.append(_typed(_TIME, stored, Operator.EQUAL, any_time))
    if others:
        part = SQL("coalesce({} = ANY({}), false)").format(stored, parameters.add(others, "jsonb[]"))
        parts.append(part)
    return SQL("({})").format(SQL(" OR ").join(parts))
