"""SearchSimilar's filter: which memories are considered, before the limit is applied."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.api.messages import axis, insert_all, new_memory, struct, timestamp

START = datetime(2024, 1, 1, tzinfo=UTC)


def day(number: int) -> Any:
    return timestamp(START + timedelta(number))


MEMORIES = [
    new_memory("a", created_at=day(0), embedding=axis(1)),
    new_memory(
        "b", created_at=day(1), embedding=axis(1), conversation_id="chat", importance=9, metadata={"lang": "en"}
    ),
    new_memory(
        "c",
        created_at=day(2),
        embedding=axis(1),
        conversation_id="chat",
        importance=2,
        metadata={"lang": "de", "gone": None},
    ),
    new_memory(
        "d",
        created_at=day(3),
        embedding=axis(1),
        conversation_id="work",
        importance=9,
        metadata={"lang": "en", "deep": {"tags": ["x", "y"]}},
    ),
]
"""All equally far from the first axis."""


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param({}, {"a", "b", "c", "d"}, id="none"),
        pytest.param({"conversation_id": "chat"}, {"b", "c"}, id="conversation"),
        pytest.param({"min_importance": 9}, {"b", "d"}, id="min_importance"),
        pytest.param({"max_importance": 5}, {"a", "c"}, id="max_importance"),
        pytest.param({"metadata_contains": struct({"lang": "en"})}, {"b", "d"}, id="metadata"),
        pytest.param({"metadata_contains": struct({"deep": {"tags": ["y"]}})}, {"d"}, id="nested metadata"),
        pytest.param({"metadata_contains": struct({"gone": None})}, {"c"}, id="null is a value"),
        pytest.param({"created_after": day(1)}, {"b", "c", "d"}, id="created_after is inclusive"),
        pytest.param({"created_before": day(1)}, {"a"}, id="created_before is exclusive"),
        pytest.param(
            {
                "conversation_id": "chat",
                "min_importance": 1,
                "max_importance": 2,
                "metadata_contains": struct({"lang": "de"}),
                "created_after": day(0),
                "created_before": day(9),
            },
            {"c"},
            id="all at once",
        ),
    ],
)
def test_conditions_select(
    stub: MemoryServiceStub, user_id: str, conditions: dict[str, Any], expected: set[str]
) -> None:
    insert_all(stub, user_id, MEMORIES)
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=axis(0), filter=pb.MemoryFilter(**conditions))

    assert {result.memory.content for result in send(stub, request).results} == expected


def test_conditions_apply_before_the_limit(stub: MemoryServiceStub, user_id: str) -> None:
    nearer = [new_memory("nearer", conversation_id="other")] * 30
    insert_all(stub, user_id, [*nearer, *MEMORIES])
    condition = pb.MemoryFilter(conversation_id="chat")
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=axis(0), limit=2, filter=condition)

    assert {result.memory.content for result in send(stub, request).results} == {"b", "c"}
