"""GetServerInfo: what a client learns before its first call."""

import psycopg

from db import revisions
from memory_service import __version__
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.fix_database import MODEL
from tests.fix_server import StartServer


def info_of(stub: MemoryServiceStub) -> pb.GetServerInfoResponse:
    reply: pb.GetServerInfoResponse = send(stub, pb.GetServerInfoRequest())
    return reply


def test_versions_are_those_in_use(stub: MemoryServiceStub, module_database_url: str) -> None:
    with psycopg.connect(module_database_url) as connection:
        versions = connection.execute(
            "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
    assert versions is not None

    info = info_of(stub)

    assert info.version == __version__
    assert info.schema_revision == revisions.head()
    assert versions[0].startswith(info.postgres_version)
    assert info.pgvector_version == versions[1]


def test_the_embedding_space_is_the_configured_one(stub: MemoryServiceStub) -> None:
    info = info_of(stub)

    assert (info.embedder, info.embedding_model, info.embedding_dimensions) == ("none", MODEL, 8)


def test_limits_follow_the_settings(start_server: StartServer) -> None:
    limits = info_of(
        start_server(deleted_retention_days=7, request_id_retention_hours=1.5, statement_timeout_s=2.5).stub
    ).limits

    assert limits.deleted_retention.ToTimedelta().days == 7
    assert limits.request_id_retention.ToSeconds() == 5_400
    assert limits.max_call_duration.ToMilliseconds() == 2_500


def test_a_reply_stays_below_what_grpc_clients_accept(stub: MemoryServiceStub) -> None:
    assert info_of(stub).limits.max_reply_bytes < 4 * 1_024 * 1_024
