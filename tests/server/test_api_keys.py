"""API keys against the whole service: two processes, TLS, a database; made, used, rotated and revoked from outside."""

import json
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from examples import client as example_client
from memory_service import config, keys_command
from memory_service.__main__ import main
from memory_service.access import api_key
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.certificates import Authority
from tests.command_line_clients import Grpcurl
from tests.fix_database import DIMENSIONS, MODEL, Databases
from tests.fix_server import COMMAND, ServerProcess, environment, running_servers

# What is promised, and a slow machine's share.
REVOKED_WITHIN_S = 5.0
SETTINGS = {"embedder": "none", "embedding_model": MODEL, "embedding_dimensions": DIMENSIONS}
BASICS = {**SETTINGS, "log_format": "json"}
VECTOR = pb.Vector(floats=pb.FloatArray(values=[1.0] * DIMENSIONS))


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who signs the server's certificate."""
    return Authority()


@pytest.fixture(scope="module")
def certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's certificate is, and ca.pem of who signs it."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.pem").write_bytes(authority.certificate)
    return folder


@pytest.fixture(scope="module")
def guarded(
    databases: Databases, module_database_url: str, authority: Authority, certificates: Path
) -> Iterator[ServerProcess]:
    """A service of two processes with TLS that asks for API keys, on an address that others can reach."""
    certificate, key = authority.sign("server").write(certificates, "server")
    with running_servers(databases) as start:
        yield start(
            database_url=module_database_url,
            listen="0.0.0.0:0",
            # Tests that wait for a refusal ask over and over.
            rate_limit_unauthenticated_per_peer=1_000,
            workers=2,
            auth="keys",
            reflection="authenticated",
            tls_certificate=certificate,
            tls_key=key,
            log_level="debug",
        )


@pytest.fixture
def stub(guarded: ServerProcess, authority: Authority) -> Iterator[MemoryServiceStub]:
    """The service, over a connection of the test's own."""
    with ExitStack() as closing:
        yield MemoryServiceStub(open_channel(guarded, authority, closing))


def open_channel(server: ServerProcess, authority: Authority, closing: ExitStack) -> grpc.Channel:
    port = server.address.rpartition(":")[2]
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    return closing.enter_context(grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options))


def keys(url: str, action: Any, **request: Any) -> tuple[str, str]:
    """Runs `memory-service keys` in this process; returns what it printed, and what it said beside."""
    said: list[str] = []
    noted: list[str] = []
    settings = config.load(**SETTINGS, database_url=url)
    keys_command.run(settings, keys_command.Request(action=action, **request), said.append, noted.append)
    return "\n".join(said), "\n".join(noted)


def new_key(url: str, **request: Any) -> str:
    everybody = not (request.get("users") or request.get("prefixes"))
    return keys(url, "create", **{"name": "test", "role": "writer", "all_users": everybody, **request})[0]


def bearer(key: str) -> tuple[tuple[str, str | bytes], ...]:
    return (("authorization", f"Bearer {key}"),)


def insert(stub: MemoryServiceStub, metadata: Any, user_id: str = "ada") -> str:
    """Stores a memory; returns how that ended: OK, or the reason."""
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content="tea", embedding=VECTOR))
    return outcome_of(stub.InsertVector, request, metadata)


def stats(stub: MemoryServiceStub, metadata: Any, user_id: str = "ada") -> str:
    return outcome_of(stub.GetStats, pb.GetStatsRequest(user_id=user_id), metadata)


CODES = {
    "CREDENTIALS_MISSING": grpc.StatusCode.UNAUTHENTICATED,
    "CREDENTIALS_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "ROLE_INSUFFICIENT": grpc.StatusCode.PERMISSION_DENIED,
    "USER_NOT_ALLOWED": grpc.StatusCode.PERMISSION_DENIED,
}


def outcome_of(call: Any, request: Any, metadata: Any) -> str:
    try:
        call(request, metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        failed: Any = error
        reason = info_of(failed).reason
        assert failed.code() is CODES.get(reason), failed
        return str(reason)
    return "OK"


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_a_key_lets_in_by_either_header(stub: MemoryServiceStub, module_database_url: str) -> None:
    key = new_key(module_database_url)
    assert insert(stub, bearer(key)) == "OK"
    assert insert(stub, [("api-key", key)]) == "OK"
    assert insert(stub, None) == "CREDENTIALS_MISSING"


@pytest.mark.parametrize(
    "metadata",
    [
        bearer("msk_0000000000000000_" + "0" * 64),
        bearer("x" * 14_000),
        bearer("msk_" + "9" * 14_000),
        bearer(""),
        bearer("a.b.c"),
        [("authorization", "Basic YWRhOmNlbGxv")],
        [("api-key", "")],
        [*bearer("a"), *bearer("b")],
        [*bearer("a"), ("api-key", "a")],
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_key_is_unauthenticated(stub: MemoryServiceStub, metadata: Any) -> None:
    assert stats(stub, metadata) == "CREDENTIALS_INVALID"


def test_grpcurl_sends_a_key_over_tls(
    guarded: ServerProcess, authority: Authority, module_database_url: str, tmp_path: Path
) -> None:
    (ca := tmp_path / "ca.pem").write_bytes(authority.certificate)
    address = f"127.0.0.1:{guarded.address.rpartition(':')[2]}"
    with_key = ("-cacert", str(ca), "-H", f"authorization: Bearer {new_key(module_database_url)}")
    # Reflection asks for the key as well.
    stored = Grpcurl(address, with_key).call("GetStats", {"user_id": "nobody"})
    assert stored == {}
    complaint = Grpcurl(address, ("-cacert", str(ca))).complaint("GetStats", {"user_id": "nobody"})
    assert "this server asks for an API key" in complaint


def test_roles_and_users_are_held_to(stub: MemoryServiceStub, module_database_url: str) -> None:
    reader = bearer(new_key(module_database_url, role="reader", prefixes=["acme"], users=["ada"]))
    assert stats(stub, reader) == "OK"
    assert stats(stub, reader, "acme/bob") == "OK"
    assert stats(stub, reader, "acme-corp") == "USER_NOT_ALLOWED"
    assert stats(stub, reader, "bob") == "USER_NOT_ALLOWED"
    assert insert(stub, reader) == "ROLE_INSUFFICIENT"
    across = pb.SearchAllUsersRequest(text="tea")
    assert outcome_of(stub.SearchAllUsers, across, reader) == "USER_NOT_ALLOWED"
    assert outcome_of(stub.GetServerInfo, pb.GetServerInfoRequest(), reader) == "OK"
    searches = [pb.SearchSimilarRequest(embedding=VECTOR), pb.SearchSimilarRequest(user_id="bob", embedding=VECTOR)]
    batch = pb.BatchSearchSimilarRequest(user_id="ada", searches=searches)
    assert outcome_of(stub.BatchSearchSimilar, batch, reader) == "USER_NOT_ALLOWED"


def test_each_chunk_of_an_import_is_checked(stub: MemoryServiceStub, module_database_url: str) -> None:
    writer = bearer(new_key(module_database_url, users=["ada"]))
    chunks = [
        pb.ImportVectorsRequest(
            user_id=user_id,
            import_id="0d9d1d4e-6e0f-4c9c-8d3c-0d6a3f3d7a11",
            chunk=number,
            memories=[pb.NewMemory(content="tea", embedding=VECTOR)],
        )
        for number, user_id in enumerate(["ada", "bob"])
    ]
    replies: Any = stub.ImportVectors(iter(chunks), metadata=writer, timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        list(replies)
    assert info_of(caught.value).reason == "USER_NOT_ALLOWED"
    everybody = bearer(new_key(module_database_url, role="reader"))
    got = stub.GetStats(pb.GetStatsRequest(user_id="bob"), metadata=everybody, timeout=10)
    assert got.live_count == 0


@pytest.mark.slow
def test_a_revoked_key_is_refused_by_every_process_within_seconds(
    guarded: ServerProcess, authority: Authority, module_database_url: str
) -> None:
    key = new_key(module_database_url)
    with ExitStack() as closing:
        stubs = [MemoryServiceStub(open_channel(guarded, authority, closing)) for _ in range(12)]
        assert {stats(stub, bearer(key)) for stub in stubs} == {"OK"}
        workers = {event["pid"] for event in guarded.log.events("worker_ready")}
        assert len(workers) == 2
        assert keys(module_database_url, "revoke", key_id=key[4:20])[0] == f"revoked key {key[4:20]}"
        revoked_at = time.monotonic()
        while outcomes := {stats(stub, bearer(key)) for stub in stubs} - {"CREDENTIALS_INVALID"}:
            assert outcomes == {"OK"}
            assert time.monotonic() - revoked_at < REVOKED_WITHIN_S
            time.sleep(0.05)


@pytest.mark.long
def test_every_process_takes_a_new_certificate(
    guarded: ServerProcess, stub: MemoryServiceStub, authority: Authority, certificates: Path, module_database_url: str
) -> None:
    key = bearer(new_key(module_database_url))
    assert stats(stub, key) == "OK"
    port = int(guarded.address.rpartition(":")[2])
    serials = set()
    for _ in range(2):
        new = authority.sign("server")
        new.write(certificates, "server")
        serial = x509.load_pem_x509_certificate(new.certificate).serial_number
        deadline = time.monotonic() + 10
        # Connections are spread over the processes: of twenty, all go to the same one in two of a million tries.
        while {served_serial(port) for _ in range(20)} != {serial}:
            assert time.monotonic() < deadline
        serials.add(serial)
    assert len(serials) == 2
    assert stats(stub, key) == "OK"  # over the connection it has
    assert len(guarded.log.events("tls_certificate_loaded")) >= 2 * 2


def served_serial(port: int) -> int:
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_a_rotated_key_has_both_secrets_for_a_while(stub: MemoryServiceStub, module_database_url: str) -> None:
    key = new_key(module_database_url)
    assert stats(stub, bearer(key)) == "OK"
    new, _ = keys(module_database_url, "rotate", key_id=key[4:20], overlap=timedelta(hours=1))
    assert new[:20] == key[:20]
    assert new != key
    assert stats(stub, bearer(new)) == stats(stub, bearer(key)) == "OK"
    newest, _ = keys(module_database_url, "rotate", key_id=key[4:20], overlap=timedelta())
    assert stats(stub, bearer(newest)) == "OK"
    assert stats(stub, bearer(key)) == "CREDENTIALS_INVALID"


def test_the_log_names_keys_and_holds_no_secret(
    guarded: ServerProcess, stub: MemoryServiceStub, module_database_url: str
) -> None:
    key = new_key(module_database_url)
    wrong = api_key.with_new_secret(key[4:20]).written()
    metadata = (("x-request-id", "of-this-test"),)
    assert stats(stub, [*bearer(key), *metadata]) == "OK"
    assert stats(stub, [*bearer(wrong), *metadata]) == "CREDENTIALS_INVALID"
    deadline = time.monotonic() + 5
    while len(calls := calls_in(guarded, "of-this-test")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert {call["subject"] for call in calls} == {f"key:{key[4:20]}"}
    [refused] = [call for call in calls if call["code"] == "UNAUTHENTICATED"]
    assert (refused["refusal"], refused["level"]) == ("wrong secret", "info")
    assert key[21:] not in guarded.log.text
    assert wrong[21:] not in guarded.log.text


def calls_in(server: ServerProcess, request_id: str) -> list[dict[str, Any]]:
    return [call for call in server.log.events("call") if call["request_id"] == request_id]


def test_health_stays_open_and_reflection_does_not(
    guarded: ServerProcess, authority: Authority, module_database_url: str
) -> None:
    assert guarded.health() == "SERVING"
    with ExitStack() as closing:
        channel = open_channel(guarded, authority, closing)
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        reflect: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter(asked), timeout=5))
        assert info_of(caught.value).reason == "CREDENTIALS_MISSING"
        [reply] = reflect(iter(asked), metadata=bearer(new_key(module_database_url, role="reader")), timeout=5)
        assert reply.list_services_response.service


def test_import_and_export_bring_a_key(
    guarded: ServerProcess,
    authority: Authority,
    module_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trusted, file = tmp_path / "ca.pem", tmp_path / "memories.jsonl"
    trusted.write_bytes(authority.certificate)
    file.write_text(json.dumps({"content": "tea", "embedding": [1.0] * DIMENSIONS}))
    key = new_key(module_database_url, users=["importer"])
    address = f"127.0.0.1:{guarded.address.rpartition(':')[2]}"
    target = ["--user", "importer", "--address", address, "--ca", str(trusted)]
    assert run_here("import", str(file), *target) == 1
    monkeypatch.setenv("MEMORY_API_KEY", key)
    assert run_here("import", str(file), *target) == 0
    monkeypatch.delenv("MEMORY_API_KEY")
    exported = tmp_path / "exported.jsonl"
    assert run_here("export", *target, "--api-key", key, "--output", str(exported)) == 0
    assert json.loads(exported.read_text())["content"] == "tea"
    other = ["--user", "another", *target[2:]]
    assert run_here("export", *other, "--api-key", key, "--output", str(exported)) == 1


def test_a_transfer_says_why_it_is_not_let_in(
    guarded: ServerProcess, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{guarded.address.rpartition(':')[2]}"
    export = ["export", "--user", "ada", "--address", address]
    assert run_here(*export, "--ca", str(certificates / "ca.pem")) == 1
    assert f"refused by the service at {address}: this server asks for an API key" in capsys.readouterr().err
    assert run_here(*export) == 1
    assert "does it ask for TLS (--tls, --ca)?" in capsys.readouterr().err


def test_the_example_client_brings_a_key_over_tls(
    guarded: ServerProcess,
    certificates: Path,
    module_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def recent(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["client.py", *arguments, "recent"])
        return example_client.main()

    address = f"127.0.0.1:{guarded.address.rpartition(':')[2]}"
    target = ("--address", address, "--ca", str(certificates / "ca.pem"), "--user")
    assert recent(*target, "example") == 1
    assert "CREDENTIALS_MISSING" in capsys.readouterr().err
    monkeypatch.setenv("MEMORY_API_KEY", new_key(module_database_url, users=["example"]))
    assert recent(*target, "example") == 0
    assert recent(*target, "another") == 1
    assert "USER_NOT_ALLOWED" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="unencrypted"):
        recent("--address", "memory.example.org:50051")
    with pytest.raises(SystemExit, match="need each other"):
        recent("--key", "client.key")


def run_here(*arguments: str) -> int:
    """Runs a command that is a client in this process; returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_line_makes_a_key_and_shows_it_once(database_url: str) -> None:
    command = [*COMMAND, "keys", "create", "--name", "chat", "--role", "reader", "--user-prefix", "acme"]
    settings = environment(**BASICS, database_url=database_url)
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"msk_[0-9a-f]{16}_[0-9a-f]{64}\n", result.stdout)
    key = result.stdout.strip()
    assert f"made key {key[4:20]} (reader, acme and below, expires never)" in result.stderr
    assert key[21:] not in result.stderr
    listed, _ = keys(database_url, "list")
    assert key[21:] not in listed
    head, row = listed.splitlines()
    assert head.split("  ")[0] == "ID"
    assert row.split()[0] == key[4:20]
    assert row.endswith("active")


def test_the_list_says_what_became_of_each(database_url: str) -> None:
    assert keys(database_url, "list") == ("", "no keys; `memory-service keys create --help` says how to make one")
    active, revoked = new_key(database_url, name="a"), new_key(database_url, name="b\n", users=["ada"])
    new_key(database_url, name="c", expires=datetime.now(UTC) + timedelta(milliseconds=1))
    assert keys(database_url, "revoke", key_id=revoked[4:20]) == (f"revoked key {revoked[4:20]}", "")
    assert keys(database_url, "revoke", key_id="nobody") == ("", "there is no key nobody")
    assert keys(database_url, "rotate", key_id=revoked[4:20])[1].startswith("there is no key")
    time.sleep(0.01)
    rows = keys(database_url, "list")[0].splitlines()[1:]
    assert [re.split(r"  +", row)[7].split()[0] for row in rows] == ["expired", "revoked", "active"]
    assert [re.split(r"  +", row)[1] for row in rows] == ["c", r"'b\n'", "a"]
    [only] = keys(database_url, "list", active=True)[0].splitlines()[1:]
    assert only.startswith(active[4:20])


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--name", "n", "--role", "reader"],
        ["create", "--name", "n", "--role", "reader", "--all-users", "--user", "ada"],
        ["create", "--name", "", "--role", "reader", "--all-users"],
        ["create", "--name", "n", "--role", "owner", "--all-users"],
        ["create", "--name", "n", "--role", "reader", "--user-prefix", ""],
        ["create", "--name", "n", "--role", "reader", "--all-users", "--expires", "soon"],
        ["create", "--name", "n", "--role", "reader", "--all-users", "--expires", "2020-01-01"],
        ["rotate", "x", "--overlap", "1 day"],
        ["revoke"],
        ["revoke", "\udcff"],
        ["create", "--name", "n", "--role", "reader", "--user", "\udcff"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_here("keys", *arguments) == 2
    assert "usage: memory-service keys" in capsys.readouterr().err


def test_help_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("keys", "--help") == 0
    help_ = capsys.readouterr().out
    for word in ("create", "rotate", "reader", "acme-corp", "authorization: Bearer", "examples:"):
        assert word in help_
