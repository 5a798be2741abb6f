"""Credentials in headers as no proper client writes them, byte by byte over a socket; and failures without end."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from db import api_keys
from db.api_keys import NewApiKey
from db.pool import Database, PoolOptions
from db.wall import ACROSS_USERS
from memory_service import config, logs, reflection
from memory_service.access import admission as of_admission
from memory_service.access import api_key
from memory_service.access.admission import Admission
from memory_service.access.api_key import WrittenKey
from memory_service.access.assembly import open_authenticator
from memory_service.service import utc_now
from memory_service.v1 import memory_pb2 as pb
from tests.server import http2_frames
from tests.server.conftest import Listener, StartListener, servicer_of

GET_STATS = "/memory_service.v1.MemoryService/GetStats"
STATS = pb.GetStatsRequest(user_id="ada")
LIMIT = "MEMORY_RATE_LIMIT_UNAUTHENTICATED_PER_PEER"
UNAUTHENTICATED, RESOURCE_EXHAUSTED, INTERNAL = 16, 8, 13

Headers = list[tuple[bytes, bytes]]
Serve = Callable[..., Listener]


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    """Where the keys are."""
    with closing(Database(module_database_url, PoolOptions(min_size=1, max_size=2))) as database:
        database.open()
        yield database


@pytest.fixture
def refusals() -> list[str]:
    """The limits that calls ran into."""
    return []


@pytest.fixture
def serve(start_listener: StartListener, database: Database, refusals: list[str]) -> Iterator[Serve]:
    """A function that starts a listener in this process that asks for keys."""
    with ExitStack() as ending:

        def start(**settings: Any) -> Listener:
            named = {"auth": "keys", "reflection": "authenticated", **settings}
            configured = config.load(embedder="none", embedding_dimensions=8, **named)
            authenticator = open_authenticator(configured, database, clock=utc_now, closing=ending)
            answering = servicer_of(
                GetStats=lambda _request, _context: pb.GetStatsResponse(live_count=7),
                ImportVectors=lambda requests, _context: (pb.ImportVectorsResponse(chunk=it.chunk) for it in requests),
            )
            admission = Admission(authenticator=authenticator)
            return start_listener(answering, admission=admission, count_refusal=refusals.append, **named)

        yield start


@pytest.fixture
def key(database: Database) -> WrittenKey:
    """A good key."""
    return make_key(database)


def make_key(database: Database) -> WrittenKey:
    made = api_key.new_key()
    stored = NewApiKey(id=made.id, name="test", role="writer", everyone=True)
    digest, now = api_key.digest_of(made), datetime.now(UTC)
    database.write(database.call(), lambda conn: api_keys.insert(conn, stored, digest, now=now), user_id=ACROSS_USERS)
    return made


def call_by_hand(listener: Listener, headers: Headers) -> http2_frames.Answer:
    return http2_frames.call(listener.addresses.listen, GET_STATS, STATS.SerializeToString(), headers)


def bearer(key: WrittenKey) -> bytes:
    return f"Bearer {key.written()}".encode()


def test_headers_by_hand_let_in_as_others_do(serve: Serve, key: WrittenKey) -> None:
    listener = serve()
    for headers in ([(b"authorization", bearer(key))], [(b"api-key", key.written().encode())]):
        assert call_by_hand(listener, headers).status == 0
    assert call_by_hand(listener, []).status == UNAUTHENTICATED


LOOK_ALIKE = "m\N{LATIN SMALL LETTER LONG S}k".encode()

ODD: dict[str, Callable[[bytes], Headers]] = {
    "bytes that are no UTF-8": lambda good: [(b"authorization", good + b"\xff\xfe")],
    "UTF-8 beyond ASCII": lambda good: [(b"authorization", good.replace(b"msk", LOOK_ALIKE))],
    "a non-breaking space": lambda good: [(b"authorization", good.replace(b" ", "\xa0".encode()))],
    "bytes in api-key": lambda good: [(b"api-key", b"\x80" + good)],
    "a NUL": lambda good: [(b"authorization", good + b"\0")],
    "a line break": lambda good: [(b"authorization", good + b"\r\nx-other: 1")],
    "a tab": lambda good: [(b"authorization", good.replace(b" ", b"\t"))],
    "nothing": lambda _: [(b"authorization", b"")],
    "a space": lambda _: [(b"authorization", b" ")],
    "two of them": lambda good: [(b"authorization", good), (b"authorization", good)],
    "two, the first empty": lambda good: [(b"authorization", b""), (b"authorization", good)],
    "one each": lambda good: [(b"authorization", good), (b"api-key", good[7:])],
    "two with a comma": lambda good: [(b"authorization", good + b"," + good)],
    "capitals": lambda good: [(b"Authorization", good)],
    "half capitals": lambda good: [(b"api-Key", good[7:])],
    "binary": lambda good: [(b"authorization-bin", good)],
    "a name with a space": lambda good: [(b"authorization ", good)],
    "no name": lambda good: [(b"", good)],
    "a megabyte": lambda good: [(b"authorization", good + b"0" * (1 << 20))],
    "a megabyte of names": lambda good: [(b"authorization", good), *[(b"x" * 1_000, b"y")] * 1_000],
    "ten thousand": lambda good: [(b"api-key", good[7:])] * 10_000,
}


@pytest.mark.parametrize("odd", ODD)
def test_no_odd_header_lets_in_or_shows_in_a_log(
    serve: Serve, key: WrittenKey, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, odd: str
) -> None:
    listener = serve()
    logs.keep_headers_out()
    answer = call_by_hand(listener, ODD[odd](bearer(key)))
    if b"x-request-id" in answer.received:
        assert answer.status == UNAUTHENTICATED
    else:  # refused by gRPC: HTTP/2 forbids it, or it is too long
        assert answer.status in {None, RESOURCE_EXHAUSTED, INTERNAL}, answer
    assert key.secret.encode() not in answer.received
    assert call_by_hand(listener, [(b"authorization", bearer(key))]).status == 0
    captured = capfd.readouterr()
    assert key.secret not in captured.out + captured.err + caplog.text
    assert "Traceback" not in captured.err + caplog.text


def reason_of(error: Any) -> tuple[str, dict[str, str], float]:
    """Returns the reason, its facts and the delay that an error asks for."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(retry)
    return info.reason, dict(info.metadata), retry.retry_delay.ToTimedelta().total_seconds()


def ask(listener: Listener, credential: str | None) -> Any:
    metadata = None if credential is None else (("authorization", f"Bearer {credential}"),)
    return listener.stub.GetStats(STATS, metadata=metadata, timeout=10)


def refusal(listener: Listener, credential: str | None) -> tuple[grpc.StatusCode, str, dict[str, str], float]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(listener, credential)
    return caught.value.code(), *reason_of(caught.value)


def test_failures_without_end_are_limited_and_good_keys_are_not(
    serve: Serve, database: Database, refusals: list[str]
) -> None:
    listener = serve(rate_limit_unauthenticated_per_peer=0.05, rate_limit_burst_s=100)  # 5, and one in 20 s
    known = make_key(database).written()
    assert ask(listener, known).live_count == 7
    for credential in (None, "x.y.z", *(api_key.new_key().written() for _ in range(3))):
        assert refusal(listener, credential)[0] is grpc.StatusCode.UNAUTHENTICATED
    for credential in (None, "x.y.z", api_key.new_key().written()):
        code, reason, facts, delay_s = refusal(listener, credential)
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert facts == {"limit": LIMIT}
        assert 0 < delay_s <= 30  # half as long again at most, so that not all come back at once
    assert refusals == [LIMIT] * 3
    for good in (known, make_key(database).written()):  # one that has to be looked up as well
        assert ask(listener, good).live_count == 7
    with pytest.raises(grpc.RpcError) as caught:
        list(reflect(listener, iter([SERVICES]), "msk_wrong"))
    assert reason_of(caught.value)[0] == "RATE_LIMITED"
    assert refusals == [LIMIT] * 4


SERVICES = reflection_pb2.ServerReflectionRequest(list_services="")


def reflect(listener: Listener, requests: Iterator[Any], credential: str) -> Iterator[Any]:
    method = listener.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    replies: Iterator[Any] = method(requests, metadata=(("api-key", credential),), timeout=20)
    return replies


def test_open_streams_end_soon_after_their_key(
    serve: Serve, database: Database, key: WrittenKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (of_admission, reflection):
        monkeypatch.setattr(module, "IDENTIFY_EVERY_S", 0.0)
    listener = serve()
    metadata = (("api-key", key.written()),)

    def slowly(request: Any) -> Iterator[Any]:
        for _ in range(500):
            yield request
            time.sleep(0.02)

    streams: list[Any] = [
        listener.stub.ImportVectors(slowly(pb.ImportVectorsRequest(user_id="ada")), metadata=metadata, timeout=20),
        reflect(listener, slowly(SERVICES), key.written()),
    ]
    for stream in streams:
        next(stream)
    database.write(
        database.call(), lambda conn: api_keys.revoke(conn, key.id, now=datetime.now(UTC)), user_id=ACROSS_USERS
    )
    revoked_at = time.monotonic()
    for stream in streams:
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert reason_of(caught.value)[0] == "CREDENTIALS_INVALID"
    assert time.monotonic() - revoked_at < 5
