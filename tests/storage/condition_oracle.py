"""What a condition on metadata means, worked out in plain Python from the contract."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from db.conditions import AllOf, AnyOf, Compares, Condition, Exists, MemberOf, Negated, Operator, Path, Scalar

COMPARISONS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: eq,
    Operator.NOT_EQUAL: ne,
    Operator.LESS: lt,
    Operator.LESS_OR_EQUAL: le,
    Operator.GREATER: gt,
    Operator.GREATER_OR_EQUAL: ge,
}
MISSING = object()

_RFC_3339 = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<minute>\d\d:\d\d):(?P<second>\d\d)(?P<fraction>\.\d+)?"
    r"(?P<offset>[Zz]|[+-]\d\d:[0-5]\d)",
    re.ASCII,
)
# PostgreSQL's bound on offsets; no clock on earth is more than 14 hours away from UTC.
MAX_OFFSET = timedelta(hours=16)


def holds(condition: Condition, metadata: dict[str, Any]) -> bool:
    """Tells whether the condition holds for this metadata."""
    match condition:
        case AllOf(conditions):
            return all(holds(inner, metadata) for inner in conditions)
        case AnyOf(conditions):
            return any(holds(inner, metadata) for inner in conditions)
        case Negated(inner):
            return not holds(inner, metadata)
        case Compares(path, operator, value):
            return compares(stored_at(metadata, path), operator, value)
        case MemberOf(path, values):
            return any(compares(stored_at(metadata, path), Operator.EQUAL, value) for value in values)
        case Exists(path):
            return stored_at(metadata, path) is not MISSING


def stored_at(metadata: dict[str, Any], path: Path) -> Any:
    """Returns the value at the path, through objects only."""
    value: Any = metadata
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def compares(stored: Any, operator: Operator, value: Scalar) -> bool:
    """Tells whether a stored value is of the type compared with, and compares so."""
    comparable: Any
    match value:
        case bool():
            comparable = stored if isinstance(stored, bool) else None
        case str():
            comparable = stored if isinstance(stored, str) else None
        case datetime():
            comparable = moment_of(stored) if isinstance(stored, str) else None
        case _:
            is_number = isinstance(stored, int | float) and not isinstance(stored, bool)
            comparable = float(stored) if is_number else None
    return comparable is not None and COMPARISONS[operator](comparable, value)


def moment_of(text: str) -> datetime | None:
    """Returns the time that an RFC 3339 string stands for, cut off to microseconds; None for any other string."""
    parts = _RFC_3339.fullmatch(text)
    if parts is None:
        return None
    is_leap_second = parts["second"] == "60"
    second = "59" if is_leap_second else parts["second"]
    offset = "+00:00" if parts["offset"] in "Zz" else parts["offset"]
    fraction = (parts["fraction"] or ".0")[:7]
    try:
        moment = datetime.fromisoformat(f"{parts['day']}T{parts['minute']}:{second}{fraction:0<7}{offset}")
    except ValueError:
        return None
    if abs(moment.utcoffset() or timedelta()) >= MAX_OFFSET:
        return None
    return moment + timedelta(seconds=1) if is_leap_second else moment
