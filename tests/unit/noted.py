"""Reading in tests what a FieldReader has noted."""

from memory_service.messages.fields import FieldReader


def noted(fields: FieldReader) -> dict[str, str]:
    """Returns what is wrong, by field; asserts that no field is noted twice."""
    found = {violation.field: violation.description for violation in fields.violations.found}
    assert len(found) == len(fields.violations.found)
    return found
