"""Reading a filter's typed condition: a tree of bounded depth and size, each value of a type that can be compared."""

import math
from dataclasses import dataclass

from db.conditions import AllOf, AnyOf, Compares, Condition, Exists, MemberOf, Negated, Operator, Path, Scalar
from memory_service.messages.fields import FieldReader
from memory_service.v1 import memory_pb2 as pb

MAX_PATH_KEYS = 8

OPERATORS = {
    pb.COMPARISON_OPERATOR_EQUAL: Operator.EQUAL,
    pb.COMPARISON_OPERATOR_NOT_EQUAL: Operator.NOT_EQUAL,
    pb.COMPARISON_OPERATOR_LESS: Operator.LESS,
    pb.COMPARISON_OPERATOR_LESS_OR_EQUAL: Operator.LESS_OR_EQUAL,
    pb.COMPARISON_OPERATOR_GREATER: Operator.GREATER,
    pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL: Operator.GREATER_OR_EQUAL,
}
EQUALITY = {Operator.EQUAL, Operator.NOT_EQUAL}

# Stands for what could not be read: a violation is noted, and the tree is never used.
_UNREADABLE = AllOf(())


def read(fields: FieldReader, message: pb.Condition, path: str) -> Condition:
    """Reads the tree below `message`, noting violations with the path of each."""
    return _Reader(fields).condition(message, path, depth=1)


@dataclass(slots=True)
class _Reader:
    fields: FieldReader
    count: int = 0

    def condition(self, message: pb.Condition, path: str, *, depth: int) -> Condition:  # noqa: PLR0911 - one a kind
        limits = self.fields.limits
        self.count += 1
        if depth > limits.max_filter_depth:
            self._wrong(path, f"is nested more than {limits.max_filter_depth} levels deep")
            return _UNREADABLE
        if self.count > limits.max_filter_conditions:
            if self.count == limits.max_filter_conditions + 1:
                self._wrong(path, f"makes more than {limits.max_filter_conditions} conditions")
            return _UNREADABLE
        match message.WhichOneof("kind"):
            case "all_of":
                return AllOf(self._list(message.all_of, f"{path}.all_of", depth))
            case "any_of":
                return AnyOf(self._list(message.any_of, f"{path}.any_of", depth))
            case "negated":
                return Negated(self.condition(message.negated, f"{path}.negated", depth=depth + 1))
            case "comparison":
                return self._comparison(message.comparison, f"{path}.comparison")
            case "member_of":
                return self._membership(message.member_of, f"{path}.member_of")
            case "exists":
                return Exists(self._path(message.exists, f"{path}.exists"))
            case _:
                self._wrong(path, "is empty; set one of all_of, any_of, negated, comparison, member_of and exists")
                return _UNREADABLE

    def _list(self, message: pb.ConditionList, path: str, depth: int) -> tuple[Condition, ...]:
        if not message.conditions:
            self._wrong(f"{path}.conditions", "is empty, expected at least one condition")
        return tuple(
            self.condition(inner, f"{path}.conditions[{index}]", depth=depth + 1)
            # One beyond the limit is enough to report it.
            for index, inner in enumerate(message.conditions[: self.fields.limits.max_filter_conditions + 1])
        )

    def _comparison(self, message: pb.Comparison, path: str) -> Condition:
        operator = self._operator(message.operator, f"{path}.operator")
        value = self._scalar(message.value, f"{path}.value")
        if isinstance(value, bool) and operator not in EQUALITY:
            self._wrong(f"{path}.value", "is a flag, which has no order; expected EQUAL or NOT_EQUAL")
        return Compares(self._path(message.path, f"{path}.path"), operator, value)

    def _operator(self, value: pb.ComparisonOperator.ValueType, path: str) -> Operator:
        if value == pb.COMPARISON_OPERATOR_UNSPECIFIED:
            self._wrong(path, "is required")
            return Operator.EQUAL
        return self.fields.choice(path, value, OPERATORS)

    def _membership(self, message: pb.Membership, path: str) -> Condition:
        maximum = self.fields.limits.max_filter_values
        self.fields.integer(f"{path}.values", len(message.values), minimum=1, maximum=maximum)
        values = [
            self._scalar(value, f"{path}.values[{index}]") for index, value in enumerate(message.values[:maximum])
        ]
        return MemberOf(self._path(message.path, f"{path}.path"), tuple(values))

    def _path(self, message: pb.MetadataPath, path: str) -> Path:
        self.fields.integer(f"{path}.keys", len(message.keys), minimum=1, maximum=MAX_PATH_KEYS)
        maximum = self.fields.limits.max_metadata_bytes
        return tuple(
            self.fields.text(f"{path}.keys[{index}]", key, max_bytes=maximum)
            for index, key in enumerate(message.keys[:MAX_PATH_KEYS])
        )

    def _scalar(self, message: pb.Scalar, path: str) -> Scalar:
        match message.WhichOneof("kind"):
            case "number":
                if not math.isfinite(message.number):
                    self._wrong(f"{path}.number", "is NaN or infinite, which JSON cannot hold")
                return message.number
            case "text":
                return self.fields.text(f"{path}.text", message.text, max_bytes=self.fields.limits.max_metadata_bytes)
            case "flag":
                return message.flag
            case "time":
                return self.fields.time(f"{path}.time", message.time)
            case _:
                self._wrong(path, "is empty; set one of number, text, flag and time")
                return 0.0

    def _wrong(self, path: str, description: str) -> None:
        self.fields.violations.add(path, description)
