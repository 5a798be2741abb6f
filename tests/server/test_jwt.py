"""Tokens against listeners on real sockets, with an issuer that answers over HTTP, changes its keys and goes away."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2

from db.pool import Database, PoolOptions
from memory_service import check_command, config
from memory_service.access import jwks_source, token_keys
from memory_service.access.admission import Admission
from memory_service.access.assembly import open_authenticator
from memory_service.access.principal import DEVELOPER, Principal
from memory_service.service import utc_now
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.access.jwks_server import AUDIENCE, Issuer, running_issuer
from tests.fix_database import DIMENSIONS, MODEL
from tests.server.conftest import StartListener, servicer_of

Metadata = list[tuple[str, str]]
Serve = Callable[..., MemoryServiceStub]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer of the test's own."""
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def serve(start_listener: StartListener, issuer: Issuer, module_database_url: str) -> Iterator[Serve]:
    """A function that starts a listener asking for this issuer's tokens: `serve(jwt_role_claim="scope")`."""
    with ExitStack() as ending:

        def start(**settings: Any) -> MemoryServiceStub:
            named = {"auth": "jwt", "jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, **settings}
            configured = config.load(embedder="none", embedding_dimensions=8, **named)
            database = ending.enter_context(closing(Database(module_database_url, PoolOptions(min_size=1, max_size=1))))
            database.open()
            authenticator = open_authenticator(configured, database, clock=utc_now, closing=ending)
            answering = servicer_of(
                GetStats=lambda _request, _context: pb.GetStatsResponse(),
                DeleteVector=lambda _request, _context: pb.DeleteVectorResponse(),
            )
            return start_listener(answering, admission=Admission(authenticator=authenticator), **named).stub

        yield start


def outcome(stub: MemoryServiceStub, token: str, user_id: str = "ada", rpc: str = "GetStats") -> str:
    """Returns how a call ends: OK, or the code and the reason."""
    request = pb.GetStatsRequest(user_id=user_id) if rpc == "GetStats" else pb.DeleteVectorRequest(user_id=user_id)
    try:
        getattr(stub, rpc)(request, metadata=[("authorization", f"Bearer {token}")], timeout=10)
    except grpc.RpcError as error:
        failed: Any = error
        status = status_pb2.Status.FromString(dict(failed.trailing_metadata())["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        return f"{failed.code().name} {info.reason}"
    return "OK"


INVALID = "UNAUTHENTICATED CREDENTIALS_INVALID"
UNAVAILABLE = "UNAVAILABLE TOKEN_KEYS_UNAVAILABLE"


def test_a_token_lets_its_user_in_and_no_other(serve: Serve, issuer: Issuer) -> None:
    stub = serve(jwt_prefix_claim="tenants", jwt_all_users_claim="everybody")
    assert outcome(stub, issuer.sign()) == "OK"
    assert outcome(stub, issuer.sign(), "bob") == "PERMISSION_DENIED USER_NOT_ALLOWED"
    assert outcome(stub, issuer.sign(tenants=["acme"]), "acme/bob") == "OK"
    assert outcome(stub, issuer.sign(tenants=["acme"]), "acme-corp") == "PERMISSION_DENIED USER_NOT_ALLOWED"
    assert outcome(stub, issuer.sign(everybody=True), "bob") == "OK"
    assert outcome(stub, issuer.sign(role="reader"), rpc="DeleteVector") == "PERMISSION_DENIED ROLE_INSUFFICIENT"
    assert outcome(stub, issuer.sign(), rpc="DeleteVector") == "OK"
    for bad in (issuer.sign(exp=1), issuer.sign(aud="x"), issuer.sign(iss="x"), issuer.sign(role="owner"), "x.y.z"):
        assert outcome(stub, bad) == INVALID
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_keys_change_without_a_restart_and_without_a_flood_of_requests(
    serve: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = serve(jwt_jwks_url=issuer.jwks_url)
    old = issuer.sign()
    assert outcome(stub, old) == "OK"
    before = len(issuer.requests)
    issuer.add("second", "RS256")
    monkeypatch.setattr(token_keys, "MIN_INTERVAL_S", 0.0)
    assert outcome(stub, issuer.sign(key_id="second")) == "OK"
    monkeypatch.setattr(token_keys, "MIN_INTERVAL_S", 60.0)
    assert outcome(stub, old) == "OK"
    foreign = Issuer(issuer.url.removeprefix("http://"))
    for number in range(50):
        foreign.add(f"unknown {number}", "EdDSA")
        assert outcome(stub, foreign.sign(key_id=f"unknown {number}")) == INVALID
    assert len(issuer.requests) == before + 1


def test_an_issuer_that_hangs_keeps_nobody_else_waiting(
    serve: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = serve(jwt_jwks_url=issuer.jwks_url, threads=4)
    known = issuer.sign()
    assert outcome(stub, known) == "OK"
    monkeypatch.setattr(token_keys, "MIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(jwks_source, "FETCH_TIMEOUT_S", 1.0)
    asked, released = threading.Event(), threading.Event()

    def hang(_handler: Any) -> None:
        asked.set()
        released.wait(5)

    issuer.reply = hang
    issuer.add("second", "ES256")
    unknown = issuer.sign(key_id="second")
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(outcome(stub, unknown))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert asked.wait(5)
    monkeypatch.setattr(token_keys, "MIN_INTERVAL_S", 60.0)
    started_at = time.monotonic()
    assert outcome(stub, known) == "OK"
    assert time.monotonic() - started_at < 0.9
    for thread in threads:
        thread.join()
    released.set()
    assert set(outcomes) == {UNAVAILABLE}


def test_tokens_and_keys_may_both_be_accepted(serve: Serve, issuer: Issuer) -> None:
    stub = serve(auth="keys,jwt")
    assert outcome(stub, issuer.sign()) == "OK"
    assert outcome(stub, "msk_0000000000000000_" + "0" * 64) == INVALID
    only_keys = serve(auth="keys")
    assert outcome(only_keys, issuer.sign()) == INVALID
    only_tokens = serve()
    assert outcome(only_tokens, "msk_0000000000000000_" + "0" * 64) == INVALID


def test_nobody_is_kept_waiting_by_another_ones_authentication(start_listener: StartListener) -> None:
    entered, released = threading.Event(), threading.Event()
    threads: list[str] = []

    def authenticate(context: grpc.ServicerContext) -> Principal:
        threads.append(threading.current_thread().name)
        if ("api-key", "slow") in context.invocation_metadata():
            entered.set()
            released.wait(10)
        return DEVELOPER

    listener = start_listener(
        servicer_of(GetStats=lambda _request, _context: pb.GetStatsResponse()),
        admission=Admission(authenticator=authenticate),
        reflection="authenticated",
        auth="keys",
    )
    slow: Any = listener.stub.GetStats.future(
        pb.GetStatsRequest(user_id="ada"), metadata=(("api-key", "slow"),), timeout=20
    )
    assert entered.wait(5)
    listener.stub.GetStats(pb.GetStatsRequest(user_id="ada"), timeout=5)
    reflect: Any = listener.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    assert list(reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5))
    released.set()
    slow.result()
    # gRPC's own thread, which takes in the calls of everybody, is called _serve.
    assert {name.rstrip("_0123456789") for name in threads} == {"read", "reflection"}


def test_check_tries_the_issuer(issuer: Issuer, module_database_url: str) -> None:
    settings: dict[str, Any] = {"auth": "jwt", "jwt_issuer": issuer.url, "jwt_audience": AUDIENCE}
    basics = {"embedder": "none", "embedding_model": MODEL, "embedding_dimensions": DIMENSIONS}
    said: list[str] = []
    configured = config.load(**basics, **settings, database_url=module_database_url)
    assert check_command.run(configured, said.append) == 0
    assert "ok    keys of the token issuer: 1 usable" in said
    said.clear()
    away = config.load(**basics, **settings, database_url=module_database_url, jwt_jwks_url="http://127.0.0.1:1/keys")
    assert check_command.run(away, said.append) == 1
    assert [line for line in said if line.startswith("FAIL  keys of the token issuer: http://127.0.0.1:1/keys")]
