"""JSON Lines as `import` reads them: what a line may be, and how a bad one is named."""

import io
import json
from base64 import b64encode

import numpy as np
import pytest

from memory_service.bulk import jsonl
from memory_service.bulk.errors import BadRecord
from memory_service.bulk.records import Record
from memory_service.v1 import memory_pb2 as pb
from tests.api.messages import struct

ID = "0195d3c8-0000-7000-8000-000000000001"
NUMBERS = [0.5, -2.0, 3.25]


def read(*lines: str | bytes) -> list[Record]:
    """Returns what these lines hold."""
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    return list(jsonl.read(io.BytesIO(b"\n".join(encoded))))


def test_a_line_is_a_new_memory_in_protobufs_json() -> None:
    line = {
        "id": ID,
        "conversationId": "c",
        "content": "Zürich \N{SNOWMAN}",
        "summary": "s",
        "metadata": {"a": [1, None, True, {"b": "c"}]},
        "embedText": "e",
        "importance": 7,
        "createdAt": "0001-01-01T00:00:00.000001Z",
        "language": "german",
    }
    [record] = read(json.dumps(line))
    assert record.memory == pb.NewMemory(
        id=ID,
        conversation_id="c",
        content="Zürich \N{SNOWMAN}",
        summary="s",
        metadata=struct({"a": [1, None, True, {"b": "c"}]}),
        embed_text="e",
        importance=7,
        created_at=record.memory.created_at,
        language="german",
    )
    assert record.memory.created_at.ToJsonString() == "0001-01-01T00:00:00.000001Z"
    assert not record.deleted


def test_both_spellings_of_a_field_are_read() -> None:
    [one, other] = read('{"conversation_id": "c"}', '{"conversationId": "c"}')
    assert one.memory == other.memory == pb.NewMemory(conversation_id="c")


@pytest.mark.parametrize(
    "embedding",
    [
        NUMBERS,
        {"floats": {"values": NUMBERS}},
        {"f32Le": b64encode(np.array(NUMBERS, "<f4").tobytes()).decode()},
        {"f16_le": b64encode(np.array(NUMBERS, "<f2").tobytes()).decode()},
    ],
    ids=str,
)
def test_embeddings_are_lists_or_encoded(embedding: object) -> None:
    [record] = read(json.dumps({"embedding": embedding}))
    vector = record.memory.embedding
    match vector.WhichOneof("encoding"):
        case "floats":
            assert list(vector.floats.values) == NUMBERS
        case "f32_le":
            assert np.frombuffer(vector.f32_le, "<f4").tolist() == NUMBERS
        case _:
            assert np.frombuffer(vector.f16_le, "<f2").tolist() == NUMBERS


def test_places_are_lines_and_positions_bytes() -> None:
    records = read(b'\xef\xbb\xbf{"content": "a"}', "", "  ", '{"content": "b"}')
    assert [(record.place, record.memory.content) for record in records] == [("line 1", "a"), ("line 4", "b")]
    assert [record.position for record in records] == [20, 40]


def test_deleted_memories_are_marked() -> None:
    lines = ['{"deletedAt": "2026-01-01T00:00:00Z"}', '{"deleted_at": "2026-01-01T00:00:00Z"}', '{"deletedAt": null}']
    assert [record.deleted for record in read(*lines)] == [True, True, False]


@pytest.mark.parametrize(
    ("line", "description"),
    [
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{", "is not JSON: Expecting property name enclosed in double quotes at character 2"),
        ('{"content": "x"} {}', "is not JSON: Extra data at character 18"),
        (b"\xff\xff", "decode"),
        ("[" * 5_000, "recursion"),
        ('{"metadata": ' + '{"a": ' * 200 + "1" + "}" * 201, "too deep"),
        ('{"colour": "red"}', 'no field named "colour"'),
        ('{"content": 5}', "content"),
        ('{"content": "\\ud800"}', "content"),
        ('{"importance": 1.5}', "importance"),
        ('{"importance": 99999999999}', "importance"),
        ('{"metadata": [1]}', "metadata"),
        ('{"createdAt": "yesterday"}', "createdAt"),
        ('{"createdAt": "0000-01-01T00:00:00Z"}', "createdAt"),
        ('{"embedding": "x"}', "embedding"),
        ('{"embedding": [1, [2]]}', "embedding: is not a list of numbers"),
        ('{"embedding": ["1"]}', "embedding: is not a list of numbers"),
        ('{"embedding": [true]}', "embedding: is not a list of numbers"),
        ('{"embedding": [1, null]}', "embedding: is not a list of numbers"),
        ('{"embedding": [[1]]}', "embedding: is not a list of numbers"),
        ('{"embedding": [1' + "0" * 400 + "]}", "embedding: is not a list of numbers"),
        ('{"embedding": {"floats": {"values": ["x"]}}}', "embedding"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_line_is_named(line: str | bytes, description: str) -> None:
    with pytest.raises(BadRecord, match=r"^line 2: ") as caught:
        read("{}", line, "{}")
    assert description in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_beyond_float32_are_left_to_the_server_to_refuse() -> None:
    [record] = read('{"embedding": [1e39, -1e400, NaN]}')
    assert str(np.frombuffer(record.memory.embedding.f32_le, "<f4").tolist()) == "[inf, -inf, nan]"


def test_a_line_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    stream = io.BytesIO(b'{"content": "' + b"x" * 100_000)
    with pytest.raises(BadRecord, match="line 1: is longer than 100 bytes"):
        list(jsonl.read(stream))
    assert stream.tell() == 101


def test_what_is_written_is_read_again() -> None:
    memory = pb.Memory(
        id=ID,
        user_id="left out",
        conversation_id="c",
        content="line\nbreak \N{SNOWMAN}",
        metadata=struct({"whole": 3, "half": 0.5, "large": 1e300, "nested": [{"n": 7}]}),
        embedding=pb.Vector(f32_le=np.array(NUMBERS, "<f4").tobytes()),
        importance=3,
        language="german",
        access_count=9,
        etag="left out",
    )
    memory.created_at.FromMicroseconds(-1)
    gone = pb.Memory(id=memory.id, deleted_at=memory.created_at)
    stream = io.BytesIO()
    writer = jsonl.Writer(stream)
    writer.write(memory)
    writer.write(gone)
    writer.close()

    one, other = stream.getvalue().splitlines()
    assert b'"whole":3,' in one or b'"whole":3}' in one
    [record, deleted] = read(one, other)
    assert record.memory == pb.NewMemory(
        id=memory.id,
        conversation_id="c",
        content=memory.content,
        metadata=memory.metadata,
        embedding=memory.embedding,
        importance=3,
        created_at=memory.created_at,
        language="german",
    )
    assert deleted.deleted
    assert not record.deleted
