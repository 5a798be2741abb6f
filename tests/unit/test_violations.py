"""Violations: all of them at once, but no more than a trailer carries."""

import pytest

from memory_service.messages.violations import MAX_DESCRIPTION, MAX_REPORTED, InvalidArgument, Violation, Violations
from memory_service.v1 import memory_pb2 as pb


def test_nothing_noted_nothing_raised() -> None:
    Violations().raise_if_any()


def test_all_are_raised_and_the_first_brings_its_facts() -> None:
    violations = Violations()
    violations.add("a", "is wrong", reason=pb.ERROR_REASON_DIMENSION_MISMATCH, expected=4, received="5")
    violations.add("b", "is wrong too", other="fact")
    with pytest.raises(InvalidArgument) as caught:
        violations.raise_if_any()
    assert caught.value.violations == [
        Violation("a", "is wrong", pb.ERROR_REASON_DIMENSION_MISMATCH),
        Violation("b", "is wrong too", pb.ERROR_REASON_INVALID_FIELD),
    ]
    assert caught.value.facts == {"expected": "4", "received": "5"}


def test_what_would_not_fit_a_trailer_is_cut() -> None:
    violations = Violations()
    for index in range(500):
        violations.add(f"memories[{index}].content", "x" * 10_000)
    assert len(violations.found) == MAX_REPORTED
    assert violations.found[0].field == "memories[0].content"
    assert {len(violation.description) for violation in violations.found} == {MAX_DESCRIPTION}
    assert sum(len(violation.field) + len(violation.description) for violation in violations.found) < 8_192
