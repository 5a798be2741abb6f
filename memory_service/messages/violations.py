"""What is wrong with a request's arguments, gathered field by field and raised at once."""

from dataclasses import dataclass, field

from memory_service.v1 import memory_pb2 as pb

# Error details travel in trailers, which clients cut off at 8 to 16 KiB.
MAX_REPORTED = 20
MAX_DESCRIPTION = 240


@dataclass(frozen=True, slots=True)
class Violation:
    """One field and what is wrong with it."""

    field: str
    """Path from the request, for example "memories[3].embedding"."""
    description: str
    """Says what was expected and what was received, and never quotes memory text."""
    reason: pb.ErrorReason.ValueType = pb.ERROR_REASON_INVALID_FIELD


class InvalidArgument(Exception):
    """The request's arguments cannot be served; nothing was done."""

    def __init__(self, violations: list[Violation], *, facts: dict[str, str] | None = None) -> None:
        super().__init__(f"{len(violations)} violations")
        self.violations = violations
        """At least one; the first one's reason stands for all."""
        self.facts = facts or {}
        """Values of the message that programs may want, for ErrorInfo.metadata."""


@dataclass(slots=True)
class Violations:
    """Gathers violations while a request is read."""

    found: list[Violation] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    """Where the message being read stands in the request."""

    def below(self, prefix: str) -> "Violations":
        """Returns a gatherer for a message inside the request; what it finds is found here."""
        return Violations(self.found, self.facts, self.prefix + prefix)

    def add(
        self,
        path: str,
        description: str,
        *,
        reason: pb.ErrorReason.ValueType = pb.ERROR_REASON_INVALID_FIELD,
        **facts: object,
    ) -> None:
        """Notes that the field at `path` is wrong."""
        if not self.found:
            self.facts.update({name: str(value) for name, value in facts.items()})
        if len(self.found) < MAX_REPORTED:
            self.found.append(Violation(self.prefix + path, description[:MAX_DESCRIPTION], reason))

    def raise_if_any(self) -> None:
        """Raises InvalidArgument when something was noted."""
        if self.found:
            raise InvalidArgument(self.found, facts=self.facts)
