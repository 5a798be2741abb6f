"""Rate limits: what a request is charged, to whom, and what a caller is told when it is too much."""

from collections.abc import Callable
from contextvars import Context
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from memory_service import config
from memory_service.access import late_charges
from memory_service.access.admission import Admission
from memory_service.access.errors import LimitExceeded, RoleInsufficient, UserNotAllowed
from memory_service.access.principal import EVERYONE, Principal, Role, UserScope
from memory_service.access.rate_limit import RateLimiter, create_limiter
from memory_service.access.request_cost import tokens_of
from memory_service.errors import to_failure
from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb
from tests.clock import SecondsClock

ALICE, BOB = (Principal(subject=f"key:{name}", role=Role.WRITER, scope=EVERYONE) for name in ("alice", "bob"))

EMBEDDED = pb.NewMemory(content="x" * 400, embedding=pb.Vector(f32_le=b"\0" * 32))
VECTOR = pb.Vector(f32_le=b"\0" * 32)


def update(*paths: str, **fields: Any) -> pb.UpdateVectorRequest:
    """Returns an update with a mask."""
    return pb.UpdateVectorRequest(user_id="u", memory=pb.Memory(**fields), update_mask=FieldMask(paths=paths))


OF_TEN_TOKENS = pb.NewMemory(content="x" * 37)


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (pb.SearchSimilarRequest(text="12345"), 2),
        (pb.SearchSimilarRequest(text="12345", mode=pb.SEARCH_MODE_LEXICAL), 0),
        (pb.SearchSimilarRequest(text="12345", embedding=pb.Vector(f32_le=b"\0" * 32)), 0),
        (pb.SearchSimilarRequest(memory_id="a"), 0),
        (pb.BatchSearchSimilarRequest(searches=[pb.SearchSimilarRequest(text="1234")] * 3), 3),
        (pb.SearchAllUsersRequest(text="1234"), 1),
        (pb.InsertVectorRequest(memory=OF_TEN_TOKENS), 10),
        (pb.InsertVectorRequest(memory=pb.NewMemory(content="x" * 400, embed_text="1234")), 1),
        (pb.BatchInsertVectorsRequest(memories=[OF_TEN_TOKENS, EMBEDDED, OF_TEN_TOKENS]), 20),
        (pb.ImportVectorsRequest(memories=[OF_TEN_TOKENS] * 5), 50),
        (pb.UpdateVectorRequest(memory=pb.Memory(content="12345")), 2),
        (pb.UpdateVectorRequest(memory=pb.Memory(summary="12345")), 0),
        (update("content", content="12345", embedding=VECTOR), 2),
        (update("content", "embedding", content="12345", embedding=VECTOR), 0),
        (update("*", content="12345", embedding=VECTOR), 0),
        (update("summary", content="12345", summary="12345"), 0),
        (update("embedding"), 0),
        (pb.GetStatsRequest(user_id="u"), 0),
        (pb.InsertVectorRequest(memory=pb.NewMemory(content="記憶記憶")), 3),
    ],
    ids=lambda value: value.DESCRIPTOR.name if hasattr(value, "DESCRIPTOR") else str(value),
)
def test_tokens_are_those_of_texts_to_embed(request_: Any, tokens: int) -> None:
    assert tokens_of(request_) == tokens


def refused(call: Callable[[], None]) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        call()
    return caught.value


def limiter(clock: SecondsClock, **rates: float) -> RateLimiter:
    limits = {f"rate_limit_{name}": rate for name, rate in rates.items()}
    return RateLimiter(config.load(rate_limit_burst_s=1, **limits), clock=clock)


def test_without_settings_nothing_is_limited() -> None:
    assert create_limiter(config.load()) is None
    assert create_limiter(config.load(rate_limit_tokens_per_user=1)) is not None


def test_a_key_is_limited_whichever_users_it_asks_for() -> None:
    clock = SecondsClock()
    limits = limiter(clock, requests_per_key=2)
    for user in ("u", "v"):
        limits.spend(ALICE, pb.GetStatsRequest(user_id=user))
    error = refused(lambda: limits.spend(ALICE, pb.GetStatsRequest(user_id="w")))
    assert error.limit == "MEMORY_RATE_LIMIT_REQUESTS_PER_KEY"
    assert error.retry_after_s == pytest.approx(0.5)
    limits.spend(BOB, pb.GetStatsRequest(user_id="w"))
    clock.now += 0.5
    limits.spend(ALICE, pb.GetStatsRequest(user_id="w"))


def test_a_user_is_limited_whoever_asks_and_a_batch_counts_once() -> None:
    limits = limiter(SecondsClock(), requests_per_user=2)
    own_search = pb.SearchSimilarRequest(user_id="u")
    limits.spend(ALICE, pb.BatchSearchSimilarRequest(user_id="u", searches=[own_search, pb.SearchSimilarRequest()]))
    limits.spend(BOB, pb.GetStatsRequest(user_id="u"))
    error = refused(lambda: limits.spend(BOB, pb.GetStatsRequest(user_id="u")))
    assert error.limit == "MEMORY_RATE_LIMIT_REQUESTS_PER_USER"
    limits.spend(BOB, pb.GetStatsRequest(user_id="v"))
    limits.spend(BOB, pb.GetServerInfoRequest())


def test_a_user_that_asks_for_too_much_keeps_no_administrator_away() -> None:
    limits = limiter(SecondsClock(), requests_per_user=1, requests_per_key=3)
    limits.spend(ALICE, pb.GetStatsRequest(user_id="u"))
    refused(lambda: limits.spend(ALICE, pb.GetStatsRequest(user_id="u")))
    limits.spend(BOB, admin_pb2.EraseUserRequest(user_id="u"))
    # Nor is a user charged for what they ask about it.
    limits.spend(BOB, admin_pb2.QueryAuditLogRequest(user_id="v"))
    limits.spend(ALICE, pb.GetStatsRequest(user_id="v"))
    # They have their key's limit, as everybody.
    limits.spend(BOB, admin_pb2.ListUsersRequest())
    error = refused(lambda: limits.spend(BOB, admin_pb2.ListUsersRequest()))
    assert error.limit == "MEMORY_RATE_LIMIT_REQUESTS_PER_KEY"


def test_what_a_key_may_not_do_costs_it_requests_and_users_nothing() -> None:
    limits = limiter(SecondsClock(), requests_per_key=4, requests_per_user=1)
    confined = replace(ALICE, role=Role.READER, scope=UserScope(users=frozenset({"ada"})))

    def call(method: str, request: Any) -> None:
        admitted = Admission(limiter=limits, anonymous=confined).of(f"/memory_service.v1.{method}", None)  # type: ignore[arg-type]  # not asked
        admitted.begin()
        admitted.check(request)

    for _ in range(2):
        with pytest.raises(UserNotAllowed):
            call("MemoryService/GetStats", pb.GetStatsRequest(user_id="bob"))
        with pytest.raises(RoleInsufficient):
            call("MemoryService/InsertVector", pb.InsertVectorRequest(user_id="ada"))
    for method in ("MemoryService/GetStats", "MemoryService/InsertVector"):
        error = refused(lambda method=method: call(method, pb.GetStatsRequest(user_id="bob")))  # type: ignore[misc]
        assert error.limit == "MEMORY_RATE_LIMIT_REQUESTS_PER_KEY"
    limits.spend(BOB, pb.GetStatsRequest(user_id="bob"))
    limits.spend(BOB, pb.GetStatsRequest(user_id="ada"))


def test_tokens_are_limited_by_the_minute() -> None:
    clock = SecondsClock()
    limits = limiter(clock, tokens_per_user=600)
    limits.spend(ALICE, pb.InsertVectorRequest(user_id="u", memory=OF_TEN_TOKENS))
    limits.spend(ALICE, pb.InsertVectorRequest(user_id="u", memory=EMBEDDED))
    error = refused(lambda: limits.spend(ALICE, pb.InsertVectorRequest(user_id="u", memory=OF_TEN_TOKENS)))
    assert error.limit == "MEMORY_RATE_LIMIT_TOKENS_PER_USER"
    assert error.retry_after_s == pytest.approx(1.0)
    clock.now += 1.0
    limits.spend(ALICE, pb.ImportVectorsRequest(user_id="u", memories=[OF_TEN_TOKENS] * 30))
    clock.now += 29.0
    refused(lambda: limits.spend(ALICE, pb.ImportVectorsRequest(user_id="u", memories=[OF_TEN_TOKENS])))


def test_tokens_that_only_show_later_are_charged_to_the_same() -> None:
    clock = SecondsClock()
    limits = limiter(clock, tokens_per_user=600, tokens_per_key=6_000, requests_per_user=1)
    call = Admission(limiter=limits, anonymous=ALICE).of("/memory_service.v1.MemoryService/UpdateVector", None)  # type: ignore[arg-type]  # not asked

    def update_twice() -> None:
        call.check(update("embedding"))
        late_charges.charge("x" * 37)
        with pytest.raises(LimitExceeded) as caught:
            late_charges.charge("x")
        assert caught.value.limit == "MEMORY_RATE_LIMIT_TOKENS_PER_USER"
        # The request itself was counted once.
        clock.now += 1.0
        call.check(update("embedding"))
        late_charges.charge("x" * 37)

    Context().run(update_twice)  # as gRPC does, so that nobody is charged for later calls


def test_a_call_that_nobody_limits_is_charged_nothing_later() -> None:
    Context().run(late_charges.charge, "x" * 1_000_000)


def test_what_is_refused_by_one_limit_is_charged_to_none() -> None:
    limits = limiter(SecondsClock(), requests_per_key=3, requests_per_user=1)
    limits.spend(ALICE, pb.GetStatsRequest(user_id="u"))
    for _ in range(10):
        refused(lambda: limits.spend(ALICE, pb.GetStatsRequest(user_id="u")))
    limits.spend(ALICE, pb.GetStatsRequest(user_id="v"))
    limits.spend(ALICE, pb.GetStatsRequest(user_id="w"))


def test_processes_share_the_rate() -> None:
    clock = SecondsClock()
    settings = config.load(rate_limit_requests_per_key=8, rate_limit_burst_s=1, workers=4)
    limits = RateLimiter(settings, clock=clock)
    for _ in range(2):
        limits.spend(ALICE, pb.GetServerInfoRequest())
    refused(lambda: limits.spend(ALICE, pb.GetServerInfoRequest()))


def test_a_caller_is_told_which_limit_and_when_to_come_back() -> None:
    error = LimitExceeded("too much", limit="MEMORY_RATE_LIMIT_REQUESTS_PER_KEY", retry_after_s=2.0)
    failures = [to_failure(error) for _ in range(20)]
    assert {failure.code for failure in failures} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert failures[0].facts == {"limit": "MEMORY_RATE_LIMIT_REQUESTS_PER_KEY"}
    delays = {failure.retry_after_s for failure in failures}
    assert len(delays) > 1
    assert all(delay is not None and 2.0 <= delay <= 3.0 for delay in delays)
