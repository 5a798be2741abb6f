"""Requests of every shape: Hypothesis strategies that follow from the messages' descriptors.

A request is made in one of two moods. Sane ones keep to what the contract allows as far as one field can tell, so that
they come far; wild ones take anything that a field of its type can hold.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from memory_service.v1 import memory_pb2 as pb
from tests.fuzz.population import CONVERSATIONS, ERASED_USER, Population

MAX_DEPTH = 5
# Beyond protobuf's own limit of 100 levels of messages a request is no message; see mutations.
DEEP_LEVELS = (33, 45)
HUGE_COUNTS = (101, 501, 1_001)

WORDS = ("harbour", "cello", "Ada", "ice", "the", "of", "others", "zeppelin", "naïve", "Zürich")
# What PostgreSQL's full text search, JSON paths, LIKE and SQL itself give a meaning to.
OPERATORS = (
    *("&", "|", "!", "<->", "<2>", ":*", ":A", "*", '"', "'", "''", "\\", "(", ")", "((", "--", ";", "%", "_", "$1"),
    *("$.a", "{}", "[]", "::int", "\r\n", "\t", "%(user_id)s", "\u202e", "\ufeff", "\N{ZERO WIDTH JOINER}"),
)
SECONDS = (0, 1, 60, 86_400, 1_760_000_000, -1, -62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800)
EXTREME_SECONDS = (315_576_000_000, 315_576_000_001, 2**63 - 1, -(2**63), -315_576_000_001)
NUMBERS = (0.0, 1.0, 0.5, -1.0, 0.2, 0.999, 1e-300, 1e308, 60.0)
WILD_NUMBERS = (*NUMBERS, float("nan"), float("inf"), float("-inf"), -0.0, 5e-324)
INTEGERS = (1, 2, 3, 5, 10)
WILD_INTEGERS = (0, -1, 11, 100, 101, 500, 1_000, 1_001, 10_001, 2**31 - 1, -(2**31))

# Of these groups a sane request sets exactly one field, where it would be refused for several or none.
ALTERNATIVES = {
    "SearchSimilarRequest": ("embedding", "text", "memory_id"),
    "SearchAllUsersRequest": ("embedding", "text"),
    "NewMemory": ("embedding", "content"),
}
# Those a sane request always sets.
NEEDED = {
    "user_id",
    "id",
    "import_id",
    "memory",
    "memories",
    "searches",
    "conditions",
    "keys",
    "path",
    "values",
    "value",
}
NEEDED |= {"operator", "chunk", "confirm_user_id", "confirm", "name", "role", "user_ids", "key_id"}
# Those a sane request leaves out mostly: they narrow down or rule out all the rest.
RARE = {"page_token", "show_deleted", "etag", "request_id", "metric", "embed_async", "duplicates", "language"}
RARE |= {"embed_text", "hard", "show_deleted", "all_users", "expires_at"}
# Those a sane message leaves out inside another one: ids that are taken, and users who are not the request's.
OUTERMOST = {"id", "user_id"}
MEMORY_PATHS = ("content", "summary", "metadata", "embedding", "importance", "conversation_id", "language", "*")

texts: SearchStrategy[str] = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
    st.lists(st.sampled_from(WORDS + OPERATORS), min_size=1, max_size=8).map(" ".join),
    st.lists(st.sampled_from(WORDS + OPERATORS), min_size=1, max_size=8).map("".join),
)
wild_texts: SearchStrategy[str] = st.one_of(
    st.text(max_size=40),  # of every category of Unicode; surrogates, which protobuf cannot write, come as bytes
    st.text(max_size=8).map(lambda text: text * 40),
    st.sampled_from(["", " ", "\0", "x" * 256, "x" * 65_537, "word " * 10_000, "\U0001f9d1\u200d\U0001f680" * 500]),
)


class Requests:
    """Makes strategies of messages for one server."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._vectors = _vectors(population.dimensions)
        self._named: dict[str, SearchStrategy[str]] = {
            "user_id": st.sampled_from((*[population.user_ids[0]] * 4, *population.user_ids)),
            "user_ids": st.sampled_from(population.user_ids),
            "name": st.sampled_from(WORDS),
            "id": st.sampled_from(population.ids),
            "memory_id": st.sampled_from(population.ids),
            "request_id": st.sampled_from(population.request_ids),
            "import_id": st.sampled_from(population.request_ids),
            "etag": st.sampled_from(population.etags),
            "page_token": st.sampled_from(population.page_tokens),
            "language": st.sampled_from(("", *population.languages)),
            "conversation_id": st.sampled_from(CONVERSATIONS),
            "paths": st.sampled_from(MEMORY_PATHS),
            "keys": st.sampled_from(("a", "b", "c")),
            "key_id": st.sampled_from(population.key_ids),
            "method": st.sampled_from(("InsertVector", "EraseUser")),
        }
        # Those of which any other value would leave less to the requests to come.
        self._confined: dict[str, SearchStrategy[str]] = {
            "EraseUserRequest.user_id": st.just(ERASED_USER),
            "EraseUserRequest.confirm_user_id": st.just(ERASED_USER),
            "SetUserQuotaRequest.user_id": st.just(ERASED_USER),
            "RevokeApiKeyRequest.key_id": st.sampled_from(population.revoked_key_ids),
        }

    def of(self, descriptor: Descriptor) -> SearchStrategy[Any]:
        """Returns messages of a type, two of three of them sane."""
        return st.sampled_from([True, True, False]).flatmap(lambda sane: self._messages(descriptor, sane=sane, depth=0))

    def _messages(self, descriptor: Descriptor, *, sane: bool, depth: int) -> SearchStrategy[Any]:
        match descriptor.full_name:
            case "memory_service.v1.Vector":
                return st.sampled_from(self._vectors[:6] if sane else self._vectors)
            case "google.protobuf.Struct":
                return _structs(sane=sane)
            case "google.protobuf.Timestamp" | "google.protobuf.Duration":
                return _times(descriptor, sane=sane)
            case _:
                return self._composed(descriptor, sane=sane, depth=depth)

    def _composed(self, descriptor: Descriptor, *, sane: bool, depth: int) -> SearchStrategy[Any]:
        kind = message_factory.GetMessageClass(descriptor)

        @st.composite
        def compose(draw: DrawFn) -> Any:
            message = kind()
            for field in self._chosen(draw, descriptor, sane=sane, depth=depth):
                _set(message, field, draw(self._values(field, sane=sane, depth=depth)))
            return message

        return compose()

    def _chosen(self, draw: DrawFn, descriptor: Descriptor, *, sane: bool, depth: int) -> list[FieldDescriptor]:
        """Returns the fields to set."""
        fields = list(descriptor.fields)
        wanted = draw(st.integers(0, 2 ** len(fields) - 1)) & (
            draw(st.integers(0, 2 ** len(fields) - 1)) if sane else -1
        )
        chosen = [field for place, field in enumerate(fields) if wanted >> place & 1]
        if not sane:
            return chosen
        alternatives = ALTERNATIVES.get(descriptor.name, ())
        only = draw(st.sampled_from(alternatives)) if alternatives else None
        rare = draw(st.integers(0, 3)) == 0
        if depth:
            fields = [field for field in fields if field.name not in OUTERMOST]
        return [
            field
            for field in fields
            if field.name == only
            or (field.name in NEEDED and field.containing_oneof is None)
            or (field in chosen and field.name not in alternatives and (rare or field.name not in RARE))
        ] or fields[:1]

    def _values(self, field: FieldDescriptor, *, sane: bool, depth: int) -> SearchStrategy[Any]:
        one = self._singular(field, sane=sane, depth=depth)
        if not field.is_repeated:
            return one
        if depth >= MAX_DEPTH:
            return st.just([])
        few = st.lists(one, min_size=1 if sane else 0, max_size=3)
        return (
            few
            if sane
            else st.one_of(few, st.tuples(one, st.sampled_from(HUGE_COUNTS)).map(lambda of: [of[0]] * of[1]))
        )

    def _singular(self, field: FieldDescriptor, *, sane: bool, depth: int) -> SearchStrategy[Any]:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                # A recursive message ends where its fields are left out.
                inner = field.message_type if depth < MAX_DEPTH else None
                return st.none() if inner is None else self._messages(inner, sane=sane, depth=depth + 1)
            case FieldDescriptor.CPPTYPE_STRING:
                return self._strings(field, sane=sane)
            case FieldDescriptor.CPPTYPE_ENUM:
                assert field.enum_type is not None
                known = [value.number for value in field.enum_type.values]
                return st.sampled_from(known if sane else [*known, 99, -1])
            case FieldDescriptor.CPPTYPE_BOOL:
                return st.booleans()
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return st.sampled_from(NUMBERS if sane else WILD_NUMBERS)
            case _:
                return st.sampled_from(INTEGERS if sane else INTEGERS + WILD_INTEGERS)

    def _strings(self, field: FieldDescriptor, *, sane: bool) -> SearchStrategy[Any]:
        if (confined := self._confined.get(field.full_name.removeprefix("memory_service.v1."))) is not None:
            return confined
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=64)
        named = self._named.get(field.name, texts)
        return named if sane else st.one_of(named, texts, wild_texts)


def _set(message: Any, field: FieldDescriptor, value: Any) -> None:
    if value is None:
        return
    with suppress(DecodeError):  # protobuf does not copy what nests too deep; mutations nest deeper still
        if field.is_repeated:
            getattr(message, field.name).extend([one for one in value if one is not None])
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)


def _vectors(dimensions: int) -> list[Any]:
    """Returns embeddings, the first six of them as they should be."""
    directions = np.random.default_rng(1).normal(size=(6, dimensions)).astype(np.float32)
    sane = [pb.Vector(f16_le=row.astype("<f2").tobytes()) for row in directions[:3]]
    sane += [pb.Vector(f32_le=row.tobytes()) for row in directions[3:5]]
    sane.append(pb.Vector(floats=pb.FloatArray(values=directions[5])))
    odd = []
    for value in (np.nan, np.inf, -np.inf, 0.0, 3e38, 1e-45, 65_504.0, 65_520.0):
        row = np.zeros(dimensions, np.float32)
        row[-1] = value
        odd += [pb.Vector(f32_le=row.tobytes()), pb.Vector(floats=pb.FloatArray(values=row))]
    with np.errstate(over="ignore"):
        odd += [pb.Vector(f16_le=np.full(dimensions, value, "<f2").tobytes()) for value in (0, 6e-8, np.inf)]
    odd += [pb.Vector(), pb.Vector(f32_le=b"\0" * 7), pb.Vector(f16_le=b"\0\x3c" * (dimensions + 1))]
    odd += [pb.Vector(floats=pb.FloatArray()), pb.Vector(f32_le=struct.pack("<f", 1.0))]
    return sane + odd


def _structs(*, sane: bool) -> SearchStrategy[Any]:
    numbers = st.sampled_from(NUMBERS if sane else WILD_NUMBERS)
    strings = texts if sane else st.one_of(texts, wild_texts)
    leaves = st.one_of(st.none(), st.booleans(), numbers, strings)
    keys = st.one_of(st.sampled_from(["a", "b", "c"]), strings)
    trees = st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
        max_leaves=5,
    )
    objects = st.dictionaries(keys, trees, max_size=3)
    if not sane:
        objects = st.one_of(
            objects, st.sampled_from(DEEP_LEVELS).map(_nested), st.just({f"k{n}": n for n in range(3_000)})
        )

    def to_struct(values: dict[str, Any]) -> Struct:
        message = Struct()
        message.update(values)
        return message

    return objects.map(to_struct)


def _nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"k": value}
    return value


def _times(descriptor: Descriptor, *, sane: bool) -> SearchStrategy[Any]:
    kind = message_factory.GetMessageClass(descriptor)
    seconds: Sequence[int] = SECONDS[:5] if sane else SECONDS + EXTREME_SECONDS
    nanos: Sequence[int] = (0, 1, 999_999_999) if sane else (0, -1, 10**9, 2**31 - 1, -(2**31))
    return st.builds(kind, seconds=st.sampled_from(seconds), nanos=st.sampled_from(nanos))
