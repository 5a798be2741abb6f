"""Reading the single fields of a request: identifiers, texts, numbers, times. What is wrong is noted, not raised.

A method returns a value of the right type in any case, so that reading goes on and all violations are found; the
value is not used when there are any.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, TypeVar
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from db.languages import LANGUAGES
from db.vectors import Embedding
from memory_service.limits import Limits
from memory_service.messages import metadata, wire_vectors
from memory_service.messages.violations import Violations
from memory_service.v1 import memory_pb2 as pb

T = TypeVar("T")

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL = UUID(int=0)
MIN_IMPORTANCE, MAX_IMPORTANCE, DEFAULT_IMPORTANCE = 1, 10, 5
NANOS_A_SECOND = 1_000_000_000
# Of what may be meant for a language, so much is compared with those there are.
MAX_LANGUAGE_CHARACTERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToEmbed:
    """A text the server has to embed, and the field it came from."""

    text: str
    path: str


@dataclass(frozen=True, slots=True)
class FieldReader:
    """Reads fields under the server's limits, noting violations."""

    limits: Limits
    dimensions: int
    can_embed: bool
    """Whether the server has an embedder."""
    violations: Violations

    def user_id(self, value: str) -> str:
        """Reads the mandatory user_id."""
        if not value:
            self.violations.add("user_id", "is required")
        return self._identifier("user_id", value)

    def conversation_id(self, path: str, value: str) -> str | None:
        """Reads an optional conversation_id."""
        return self._identifier(path, value) or None

    def name(self, path: str, value: str) -> str | None:
        """Reads the optional name of anything else."""
        return self._identifier(path, value) or None

    def _identifier(self, path: str, value: str) -> str:
        if len(value) > self.limits.max_id_characters:
            self.violations.add(
                path, f"has {len(value)} characters, at most {self.limits.max_id_characters} are allowed"
            )
        return self._without_nul(path, value)

    def uuid(self, path: str, value: str) -> UUID:
        """Reads a mandatory UUID in its usual form of 36 characters."""
        if _UUID.fullmatch(value) is None:
            self.violations.add(path, "is required" if not value else "is not a UUID (8-4-4-4-12 hexadecimal digits)")
            return _NIL
        return UUID(value)

    def optional_uuid(self, path: str, value: str) -> UUID | None:
        """Reads a UUID that may be empty."""
        return self.uuid(path, value) if value else None

    def text(self, path: str, value: str, *, max_bytes: int) -> str:
        """Reads a text of limited size in UTF-8."""
        size = len(value.encode())
        if size > max_bytes:
            self.violations.add(path, f"has {size} bytes of UTF-8, at most {max_bytes} are allowed")
        return self._without_nul(path, value)

    def text_to_embed(self, path: str, value: str) -> str:
        """Reads a text that serves only to be embedded."""
        self.embeddable(path, value)
        return self.text(path, value, max_bytes=self.limits.max_content_bytes)

    def embeddable(self, path: str, value: str) -> None:
        """Notes when a text, read already, cannot be embedded."""
        if not self.can_embed:
            self.violations.add(
                path,
                "cannot be embedded: this server has no embedder (MEMORY_EMBEDDER=none), so send an embedding",
                reason=pb.ERROR_REASON_EMBEDDER_DISABLED,
            )
        elif not value.strip():
            self.violations.add(path, "has nothing to embed: it is empty or blank")

    def embed_async(self, *, value: bool) -> bool:
        """Reads whether texts are to be embedded later."""
        if value and not self.can_embed:
            self.violations.add(
                "embed_async",
                "is set, but this server has no embedder (MEMORY_EMBEDDER=none), so send an embedding",
                reason=pb.ERROR_REASON_EMBEDDER_DISABLED,
            )
        return value

    def _without_nul(self, path: str, value: str) -> str:
        if "\0" in value:
            self.violations.add(path, "holds a NUL character, which PostgreSQL cannot store")
        return value

    def metadata(self, path: str, struct: Struct) -> dict[str, Any]:
        """Reads a Struct of limited size and depth."""
        try:
            return metadata.from_struct(struct, self.limits)
        except metadata.InvalidMetadata as error:
            self.violations.add(path, str(error))
            return {}

    def embedding(self, path: str, vector: pb.Vector) -> Embedding | None:
        """Reads a vector of the server's dimensions."""
        return wire_vectors.read(vector, path, self.dimensions, self.violations)

    def importance(self, path: str, value: int) -> int:
        """Reads an importance from 1 to 10."""
        return self.integer(path, value, minimum=MIN_IMPORTANCE, maximum=MAX_IMPORTANCE)

    def integer(self, path: str, value: int, *, minimum: int, maximum: int) -> int:
        """Reads an integer within bounds, both included."""
        if not minimum <= value <= maximum:
            self.violations.add(path, f"is {value}, expected {minimum} to {maximum}")
        return value

    def number(self, path: str, value: float, *, minimum: float, maximum: float) -> float:
        """Reads a number within bounds, both included."""
        if not minimum <= value <= maximum:  # NaN is not
            self.violations.add(path, f"is {value:g}, expected {minimum:g} to {maximum:g}")
            return minimum
        return value

    def positive_number(self, path: str, value: float, *, maximum: float) -> float:
        """Reads a number above 0, up to a bound that is included."""
        if not 0.0 < value <= maximum:
            self.violations.add(path, f"is {value:g}, expected a number above 0, at most {maximum:g}")
            return maximum
        return value

    def duration(self, path: str, value: Duration, *, minimum: timedelta, maximum: timedelta) -> timedelta:
        """Reads a span of time within bounds, both included."""
        seconds = value.seconds + value.nanos / 1e9
        if not minimum.total_seconds() <= seconds <= maximum.total_seconds() or not 0 <= value.nanos < NANOS_A_SECOND:
            expected = f"{minimum.total_seconds():.0f} to {maximum.total_seconds():.0f} seconds"
            received = f"has {value.seconds} seconds and {value.nanos} nanoseconds"
            self.violations.add(path, f"{received}, expected {expected}")
            return minimum
        return timedelta(seconds=value.seconds, microseconds=value.nanos / 1_000)

    def language(self, path: str, value: str) -> str:
        """Reads a language to stem words in, empty standing for the server's own."""
        if not value:
            return self.limits.default_language
        if value not in LANGUAGES:
            close = get_close_matches(value.lower()[:MAX_LANGUAGE_CHARACTERS], LANGUAGES, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            self.violations.add(path, f"is no language known here; {meant}GetServerInfo.languages lists them")
            return self.limits.default_language
        return value

    def time(self, path: str, value: Timestamp) -> datetime:
        """Reads a point in time, to the microsecond."""
        try:
            return value.ToDatetime(UTC)
        except ValueError:
            received = f"has {value.seconds} seconds and {value.nanos} nanoseconds"
            self.violations.add(path, f"{received}, expected 0 to 999999999 nanoseconds within the years 1 to 9999")
            return datetime.min.replace(tzinfo=UTC)

    def choice(self, path: str, value: int, choices: Mapping[Any, T]) -> T:
        """Reads an enum through a table of what its values stand for."""
        if value not in choices:
            self.violations.add(path, f"is {value}, which this version of the contract does not define")
            return next(iter(choices.values()))
        return choices[value]

    def page_size(self, value: int) -> int:
        """Reads a page_size, 0 standing for the default and what is beyond the largest page for that."""
        if value < 0:
            self.violations.add("page_size", f"is {value}, expected 0 or more")
        return min(value, self.limits.max_page_size) if value > 0 else self.limits.default_page_size

    def size(self, path: str, value: int, *, default: int, maximum: int) -> int:
        """Reads a number of results, 0 standing for the default."""
        return self.integer(path, value, minimum=1, maximum=maximum) if value else default
