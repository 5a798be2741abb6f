"""TLS on real sockets: versions, client certificates, rotation without a restart, and what start-up refuses."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from memory_service import certificates, config
from memory_service.access.admission import Admission
from memory_service.access.authenticator import CertificateAuthenticator
from memory_service.addresses import AddressError, require_protection
from memory_service.certificates import CertificateError, CertificateFiles, Certificates
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.certificates import DAY, Authority, Pair
from tests.server.conftest import Listener, StartListener, servicer_of

STATS = pb.GetStatsRequest(user_id="ada")


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who signs the certificates of this module."""
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> CertificateFiles:
    """A good certificate for a server."""
    certificate, key = authority.sign("server").write(tmp_path, "server")
    return CertificateFiles(certificate=certificate, key=key, client_ca=None)


def answering() -> Any:
    return servicer_of(GetStats=lambda _request, _context: pb.GetStatsResponse(live_count=7))


@contextmanager
def channel_to(listener: Listener, authority: Authority, client: Pair | None = None) -> Iterator[grpc.Channel]:
    """Yields a channel that trusts the authority and shows the client's certificate."""
    credentials = grpc.ssl_channel_credentials(
        authority.certificate,
        client.key if client is not None else None,
        client.certificate if client is not None else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(listener.addresses.listen, credentials, options=options) as channel:
        yield channel


def count_of(channel: grpc.Channel) -> int:
    return MemoryServiceStub(channel).GetStats(STATS, timeout=5).live_count


def code_of(channel: grpc.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        MemoryServiceStub(channel).GetStats(STATS, timeout=5)
    code: grpc.StatusCode = caught.value.code()
    return code


def handshake(address: str, authority: Authority, version: ssl.TLSVersion | None = None) -> ssl.SSLSocket:
    """Returns a connection made by Python's own TLS, with this version and no other."""
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.set_alpn_protocols(["h2"])
    if version is not None:
        limit(context, version)
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        return context.wrap_socket(plain, server_hostname="localhost")


def limit(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    # Without this, OpenSSL itself would refuse the old ones.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version


@contextmanager
def lax_server(files: CertificateFiles, version: ssl.TLSVersion) -> Iterator[str]:
    """Yields the address of a server that speaks this version and no other, to one client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    limit(context, version)
    context.load_cert_chain(files.certificate, files.key)

    def serve() -> None:
        connection, _ = listening.accept()
        context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(5)


def serial_of(listener: Listener, authority: Authority) -> int:
    """Returns the serial number of the certificate that new connections get."""
    with handshake(listener.addresses.listen, authority) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return x509.load_der_x509_certificate(certificate).serial_number


def serial_in(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.certificate).serial_number


def test_calls_are_encrypted(start_listener: StartListener, files: CertificateFiles, authority: Authority) -> None:
    listener = start_listener(answering(), certificates=Certificates(files))
    with channel_to(listener, authority) as channel:
        assert count_of(channel) == 7
    assert code_of(listener.channel) is grpc.StatusCode.UNAVAILABLE
    with channel_to(listener, Authority("another")) as channel:
        assert code_of(channel) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_in_use_are_spoken(
    start_listener: StartListener, files: CertificateFiles, authority: Authority, version: ssl.TLSVersion
) -> None:
    listener = start_listener(certificates=Certificates(files))
    with handshake(listener.addresses.listen, authority, version) as connection:
        assert connection.version() == version.name.replace("_", ".")
        assert connection.selected_alpn_protocol() == "h2"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_older_versions_are_refused_by_the_server(
    start_listener: StartListener, files: CertificateFiles, authority: Authority, version: ssl.TLSVersion
) -> None:
    with lax_server(files, version) as address, handshake(address, authority, version) as connection:
        assert connection.version() in {"TLSv1", "TLSv1.1"}  # the client does offer it
    listener = start_listener(certificates=Certificates(files))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(listener.addresses.listen, authority, version)


def test_the_ops_address_speaks_tls_only_when_asked_to(
    start_listener: StartListener, files: CertificateFiles, authority: Authority
) -> None:
    check = health_pb2.HealthCheckRequest(service="liveness")
    plain = start_listener(certificates=Certificates(files))
    assert health_pb2_grpc.HealthStub(plain.ops_channel()).Check(check, timeout=5).status == 1
    certificate, key = str(files.certificate), str(files.key)
    listener = start_listener(certificates=Certificates(files), ops_tls=True, tls_certificate=certificate, tls_key=key)
    with pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(listener.ops_channel()).Check(check, timeout=5)
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    assert listener.addresses.ops_listen is not None
    with grpc.secure_channel(listener.addresses.ops_listen, credentials) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(check, timeout=5).status == 1


def test_client_certificates_are_asked_for_and_name_the_caller(
    start_listener: StartListener, files: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    clients, seen = Authority("clients"), []

    def note_caller(_request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        seen.append(structlog.contextvars.get_contextvars()["subject"])
        return pb.GetStatsResponse()

    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(clients.certificate)
    listener = start_listener(
        servicer_of(GetStats=note_caller),
        certificates=Certificates(CertificateFiles(certificate=files.certificate, key=files.key, client_ca=client_ca)),
        admission=Admission(authenticator=CertificateAuthenticator()),
    )
    with channel_to(listener, authority) as channel:
        assert code_of(channel) is grpc.StatusCode.UNAVAILABLE
    with channel_to(listener, authority, Authority("strangers").sign("ada")) as channel:
        assert code_of(channel) is grpc.StatusCode.UNAVAILABLE
    for client in (clients.sign("agent 7"), clients.sign(None)):
        with channel_to(listener, authority, client) as channel:
            count_of(channel)
    assert seen == ["certificate:agent 7", "certificate:localhost"]


def test_authorities_of_clients_are_replaced_without_a_restart(
    start_listener: StartListener, files: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    before, after = Authority("clients"), Authority("clients")
    (client_ca := tmp_path / "clients.pem").write_bytes(before.certificate)
    in_force = Certificates(CertificateFiles(certificate=files.certificate, key=files.key, client_ca=client_ca))
    listener = start_listener(answering(), certificates=in_force)
    old, new = before.sign("ada"), after.sign("ada")
    with channel_to(listener, authority, old) as channel:
        assert count_of(channel) == 7
    client_ca.write_bytes(after.certificate)
    for _ in range(2):
        in_force.check()
    with channel_to(listener, authority, old) as channel:
        assert code_of(channel) is grpc.StatusCode.UNAVAILABLE
    with channel_to(listener, authority, new) as channel:
        assert count_of(channel) == 7


def test_a_new_certificate_is_taken_without_a_restart(
    start_listener: StartListener, files: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "CHECK_S", 0.05)
        in_force = Certificates(files)
    listener = start_listener(answering(), certificates=in_force)
    in_force.start()
    with channel_to(listener, authority) as channel:
        assert count_of(channel) == 7
        new = authority.sign("server")
        new.write(tmp_path, "server")
        deadline = time.monotonic() + 5
        while serial_of(listener, authority) != serial_in(new):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert count_of(channel) == 7  # over the connection it has
    with channel_to(listener, authority) as channel:
        assert count_of(channel) == 7
    in_force.close()


def test_files_are_taken_when_both_have_been_written(
    files: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    in_force = Certificates(files)
    new = authority.sign("server")
    with capture_logs() as events:
        files.certificate.write_bytes(new.certificate)
        in_force.check()
        files.key.write_bytes(new.key)
        in_force.check()
        assert not events
        in_force.check()
        in_force.check()
    assert [event["event"] for event in events] == ["tls_certificate_loaded"]
    assert tmp_path in files.key.parents


@pytest.mark.parametrize("broken", ["garbage", "other key", "expired", "gone"])
def test_a_broken_certificate_leaves_the_one_before_in_force(
    start_listener: StartListener, files: CertificateFiles, authority: Authority, tmp_path: Path, broken: str
) -> None:
    in_force = Certificates(files)
    listener = start_listener(answering(), certificates=in_force)
    serial = serial_of(listener, authority)
    match broken:
        case "garbage":
            files.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nhalf")
        case "other key":
            files.key.write_bytes(authority.sign("server").key)
        case "expired":
            authority.sign("server", ends_in=-DAY).write(tmp_path, "server")
        case _:
            files.certificate.unlink()
    with capture_logs() as events:
        for _ in range(3):
            in_force.check()
    assert {event["event"] for event in events} == {"tls_certificate_not_replaced"}
    assert len(events) == 1
    assert {event["log_level"] for event in events} == {"error"}
    assert serial_of(listener, authority) == serial
    mended = authority.sign("server")
    mended.write(tmp_path, "server")
    for _ in range(2):
        in_force.check()
    assert serial_of(listener, authority) == serial_in(mended)


def test_start_refuses_what_cannot_work(files: CertificateFiles, authority: Authority, tmp_path: Path) -> None:
    def refusal(**changed: Path) -> str:
        named: dict[str, Any] = {"certificate": files.certificate, "key": files.key, "client_ca": None, **changed}
        with pytest.raises(CertificateError) as caught:
            Certificates(CertificateFiles(**named))
        return str(caught.value)

    def written(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    missing = tmp_path / "missing.pem"
    assert refusal(certificate=missing) == f"cannot read {missing}: No such file or directory"
    assert "is not the key of the certificate" in refusal(key=written("other.key", authority.sign("s").key))
    assert "junk.pem holds no certificate in PEM" in refusal(certificate=written("junk.pem", b"junk"))
    assert "junk.key holds no private key in PEM" in refusal(key=written("junk.key", b"junk"))
    assert refusal(certificate=files.key, key=files.certificate) == f"{files.key} holds no certificate in PEM"
    half = written("half.pem", b"-----BEGIN CERTIFICATE-----\nhalf")
    assert f"{half} or {files.key} is damaged: " in refusal(certificate=half)
    for name, pair, said in (
        ("expired", authority.sign("server", ends_in=-DAY), "has expired"),
        ("locked", authority.sign("server", password=b"secret"), "is protected by a password"),
        ("early", not_yet_valid(), "is not valid yet"),
    ):
        certificate, key = pair.write(tmp_path, name)
        assert said in refusal(certificate=certificate, key=key)
    assert "holds no certificates in PEM" in refusal(client_ca=written("junk.ca", b"junk"))
    old = written("old.ca", Authority(ends_in=-DAY).certificate)
    assert refusal(client_ca=old) == f"the authorities in {old} have expired"


def not_yet_valid() -> Pair:
    """Returns a certificate that is valid from tomorrow on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.certificates.DAY", -DAY)
        return Authority().sign("server")


def test_what_is_wrong_but_works_is_a_warning(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("server", ends_in=timedelta(days=3)).write(tmp_path, "soon")
    key.chmod(0o644)
    with capture_logs() as events:
        Certificates(CertificateFiles(certificate=certificate, key=key, client_ca=None))
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("tls_key_readable_by_others", "warning"),
        ("tls_certificate_expires_soon", "warning"),
    ]


def test_a_certificate_that_nobody_renews_is_a_warning_every_day(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.sign("server", ends_in=timedelta(days=15)).write(tmp_path, "server")
    with capture_logs() as events:
        in_force = Certificates(CertificateFiles(certificate=certificate, key=key, client_ca=None))
        in_force.check()
        monkeypatch.setattr(certificates, "WARN_EVERY_S", 0.0)
        in_force.check()
        monkeypatch.setattr(certificates, "EXPIRES_SOON", timedelta(days=16))
        in_force.check()
        monkeypatch.setattr(certificates, "WARN_EVERY_S", DAY.total_seconds())
        in_force.check()
    assert [event["event"] for event in events] == ["tls_certificate_loaded", "tls_certificate_expires_soon"]


PUBLIC = {"listen": "0.0.0.0:0", "embedder": "none", "embedding_dimensions": 8}
TLS = {"tls_certificate": "c.pem", "tls_key": "c.key"}


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, ["TLS (MEMORY_TLS_CERTIFICATE and MEMORY_TLS_KEY)", "authentication (MEMORY_AUTH"]),
        (TLS, ["authentication (MEMORY_AUTH"]),
        ({"auth": "keys"}, ["TLS (MEMORY_TLS_CERTIFICATE and MEMORY_TLS_KEY)"]),
        ({**TLS, "auth": "keys"}, []),
        ({**TLS, "tls_client_ca": "ca.pem"}, []),
    ],
    ids=str,
)
def test_an_address_for_others_needs_tls_and_authentication(settings: dict[str, Any], missing: list[str]) -> None:
    configured = config.load(**PUBLIC, **settings)
    require_protection(config.load(**{**PUBLIC, "listen": "127.0.0.1:0"}, **settings))
    if not missing:
        require_protection(configured)
        return
    with pytest.raises(AddressError) as caught:
        require_protection(configured)
    for each in ("TLS (", "authentication ("):
        assert (each in str(caught.value)) == any(each in what for what in missing)
    assert "--insecure" in str(caught.value)
