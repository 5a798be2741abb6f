"""request_id of administrators' calls: a repeated call changes nothing and gets the first reply, but for secrets."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psycopg
import pytest

from memory_service.access import authorization
from memory_service.access.principal import Role
from memory_service.v1 import admin_pb2 as pb
from memory_service.v1 import memory_pb2
from memory_service.v1.admin_pb2_grpc import AdminServiceStub
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.admin import ask
from tests.api.calls import failure, send
from tests.api.messages import insert, new_memory, stats
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

SERVICES = (
    memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
    pb.DESCRIPTOR.services_by_name["AdminService"],
)
# Administrators' calls that change nothing.
READS = {"ListUsers", "GetUserQuota", "ListApiKeys", "QueryAuditLog"}
# Whose chunks have an id of their own: that of the import, and a number.
BY_CHUNK = {"ImportVectors"}


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A server that lets everybody administer it."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, environment="development")


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> AdminServiceStub:
    """Its AdminService."""
    return AdminServiceStub(server.channel)


def test_every_call_that_changes_something_takes_a_request_id() -> None:
    for service in SERVICES:
        for method in service.methods:
            rule = authorization.RULES.get(f"/{service.full_name}/{method.name}", authorization.ADMINISTRATION)
            changes = rule.role > Role.READER and method.name not in READS | BY_CHUNK
            assert ("request_id" in method.input_type.fields_by_name) == changes, method.name


def new_key(**fields: Any) -> pb.CreateApiKeyRequest:
    return pb.CreateApiKeyRequest(**{"name": "k", "role": pb.ROLE_READER, "all_users": True, **fields})


REQUESTS: dict[str, Callable[[str, str], Any]] = {
    "EraseUser": lambda user_id, _: pb.EraseUserRequest(user_id=user_id, confirm_user_id=user_id),
    "PurgeExpired": lambda _user_id, _: pb.PurgeExpiredRequest(),
    "SetUserQuota": lambda user_id, _: pb.SetUserQuotaRequest(user_id=user_id, quota=pb.UserQuota(max_memories=9)),
    "CreateApiKey": lambda _user_id, _: new_key(),
    "RotateApiKey": lambda _, key_id: pb.RotateApiKeyRequest(key_id=key_id),
    "RevokeApiKey": lambda _, key_id: pb.RevokeApiKeyRequest(key_id=key_id),
    "ClearDatabase": lambda _user_id, _: pb.ClearDatabaseRequest(confirm=True),
}


@pytest.mark.parametrize("method", REQUESTS)
def test_a_repetition_gets_the_first_reply(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str, method: str
) -> None:
    insert(stub, user_id)
    request = REQUESTS[method](user_id, ask(admin, new_key()).key.id)
    request.request_id = str(uuid.uuid4())
    first = ask(admin, request)
    insert(stub, user_id)
    again = ask(admin, request)
    if hasattr(first, "secret"):
        assert (bool(first.secret), again.secret) == (True, "")
        first.secret = ""
    assert again == first
    assert stats(stub, user_id).live_count >= 1, "what was stored since is not erased"


def test_a_key_is_made_once_and_rotated_once(admin: AdminServiceStub) -> None:
    request = new_key(name=f"once-{uuid.uuid4()}", request_id=str(uuid.uuid4()))
    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda _: ask(admin, request), range(6)))
    assert {reply.key.id for reply in replies} == {replies[0].key.id}
    assert [bool(reply.secret) for reply in replies].count(True) == 1
    listed = [key for key in ask(admin, pb.ListApiKeysRequest()).keys if key.name == request.name]
    assert len(listed) == 1

    rotation = pb.RotateApiKeyRequest(key_id=listed[0].id, request_id=str(uuid.uuid4()))
    first = ask(admin, rotation).key
    ask(admin, rotation)
    [listed_again] = [key for key in ask(admin, pb.ListApiKeysRequest()).keys if key.name == request.name]
    assert listed_again.rotated_at == first.rotated_at


def test_secrets_are_not_kept_for_repetitions(admin: AdminServiceStub, module_database_url: str) -> None:
    made = ask(admin, new_key(request_id=str(uuid.uuid4())))
    with psycopg.connect(module_database_url) as connection:
        responses = [row[0] for row in connection.execute("SELECT response FROM operator_requests")]
    assert any(made.key.id.encode() in response for response in responses)
    assert not [response for response in responses if made.secret.rpartition("_")[2].encode() in response]


def test_another_request_with_the_same_id_is_refused(admin: AdminServiceStub, user_id: str) -> None:
    request_id = str(uuid.uuid4())
    ask(admin, new_key(request_id=request_id))
    for other in (
        new_key(name="other", request_id=request_id),
        pb.EraseUserRequest(user_id=user_id, confirm_user_id=user_id, request_id=request_id),
    ):
        refused = failure(lambda other=other: ask(admin, other))  # type: ignore[misc]  # bound now
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


def test_an_administrators_id_is_none_of_a_users(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str
) -> None:
    request_id = str(uuid.uuid4())
    ask(admin, new_key(request_id=request_id))
    request = memory_pb2.InsertVectorRequest(user_id=user_id, memory=new_memory(), request_id=request_id)
    assert send(stub, request).memory.user_id == user_id


def test_a_call_that_failed_may_be_repeated_with_its_id(admin: AdminServiceStub) -> None:
    request = pb.RevokeApiKeyRequest(key_id="nobody", request_id=str(uuid.uuid4()))
    for _ in range(2):
        assert failure(lambda: ask(admin, request)).reason == "API_KEY_NOT_FOUND"


def test_an_id_is_forgotten_after_its_time(admin: AdminServiceStub, module_database_url: str) -> None:
    request = new_key(request_id=str(uuid.uuid4()))
    first = ask(admin, request)
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        connection.execute("UPDATE operator_requests SET expires_at = now() - interval '1 s'")
        assert ask(admin, request).key.id != first.key.id
        connection.execute("UPDATE operator_requests SET expires_at = now() - interval '1 s'")
        assert ask(admin, pb.PurgeExpiredRequest()).request_id_count >= 1
        assert connection.execute("SELECT FROM operator_requests").fetchall() == []


@pytest.mark.parametrize("request_", [new_key(request_id="x"), pb.PurgeExpiredRequest(request_id="x")])
def test_an_id_is_a_uuid(admin: AdminServiceStub, request_: Any) -> None:
    assert list(failure(lambda: ask(admin, request_)).violations) == ["request_id"]
