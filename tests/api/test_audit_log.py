"""The audit log of a real server: who did what to whom, for every write and every admin call, and nothing of it."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import grpc
import psycopg
import pytest

from memory_service.access import authorization
from memory_service.access.principal import Role
from memory_service.v1 import admin_pb2, memory_pb2
from memory_service.v1.admin_pb2_grpc import AdminServiceStub
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.admin import Keyed, ask, entries, entries_once_there, make_key
from tests.api.calls import failure, raised_by, send
from tests.api.import_stream import ImportStream
from tests.api.messages import get, insert, insert_all, new_memory
from tests.api.waiting import eventually
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

SECRET = "xyzzy"  # noqa: S105 - what must not be found
# A component whose digits appear nowhere else.
NUMBER = 0.7071067
SERVICES = (
    memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
)


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A server that asks for API keys."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, auth="keys")


@pytest.fixture(scope="module")
def admin_key(module_database_url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """An administrator's key: its id, and the metadata of a call that brings it."""
    return make_key(module_database_url, role="admin")


@pytest.fixture(scope="module")
def admin(server: ServerProcess, admin_key: tuple[str, Any]) -> AdminServiceStub:
    """AdminService, asked by an administrator."""
    return cast("AdminServiceStub", Keyed(AdminServiceStub(server.channel), admin_key[1]))


@pytest.fixture(scope="module")
def writer(module_database_url: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A writer's key likewise."""
    return make_key(module_database_url, role="writer")


@pytest.fixture(scope="module")
def stub(server: ServerProcess, writer: tuple[str, Any]) -> MemoryServiceStub:
    """MemoryService, asked by the writer."""
    return cast("MemoryServiceStub", Keyed(server.stub, writer[1]))


def secret_memory(**fields: Any) -> memory_pb2.NewMemory:
    embedding = memory_pb2.Vector(floats=memory_pb2.FloatArray(values=[NUMBER] * 8))
    content = f"{SECRET} content"
    return new_memory(content, summary=f"{SECRET} summary", metadata={SECRET: [SECRET]}, embedding=embedding, **fields)


Write = Callable[[MemoryServiceStub, str, str], list[str]]
"""Calls an RPC for a user about a memory of it, and returns the ids that it stored or changed."""


def insert_one(stub: MemoryServiceStub, user_id: str, _: str) -> list[str]:
    return [send(stub, memory_pb2.InsertVectorRequest(user_id=user_id, memory=secret_memory())).memory.id]


def insert_some(stub: MemoryServiceStub, user_id: str, _: str) -> list[str]:
    return insert_all(stub, user_id, [secret_memory() for _ in range(3)])


def import_some(stub: MemoryServiceStub, user_id: str, _: str) -> list[str]:
    with ImportStream(stub, user_id) as stream:
        return [*stream.store([secret_memory()] * 2).ids, *stream.store([secret_memory()]).ids]


def update(stub: MemoryServiceStub, user_id: str, memory_id: str) -> list[str]:
    memory = memory_pb2.Memory(content=SECRET, embedding=secret_memory().embedding)
    send(stub, memory_pb2.UpdateVectorRequest(user_id=user_id, id=memory_id, memory=memory))
    return [memory_id]


def delete(stub: MemoryServiceStub, user_id: str, memory_id: str) -> list[str]:
    send(stub, memory_pb2.DeleteVectorRequest(user_id=user_id, id=memory_id))
    return [memory_id]


def restore(stub: MemoryServiceStub, user_id: str, memory_id: str) -> list[str]:
    delete(stub, user_id, memory_id)
    send(stub, memory_pb2.RestoreVectorRequest(user_id=user_id, id=memory_id))
    return [memory_id]


WRITES: dict[str, Write] = {
    "InsertVector": insert_one,
    "BatchInsertVectors": insert_some,
    "ImportVectors": import_some,
    "UpdateVector": update,
    "DeleteVector": delete,
    "RestoreVector": restore,
}

ADMINISTRATION: dict[str, Callable[[str], Any]] = {
    "EraseUser": lambda user_id: admin_pb2.EraseUserRequest(user_id=user_id, confirm_user_id=user_id),
    "PurgeExpired": lambda _: admin_pb2.PurgeExpiredRequest(),
    "ListUsers": lambda _: admin_pb2.ListUsersRequest(),
    "SetUserQuota": lambda user_id: admin_pb2.SetUserQuotaRequest(user_id=user_id),
    "GetUserQuota": lambda user_id: admin_pb2.GetUserQuotaRequest(user_id=user_id),
    "CreateApiKey": lambda _: admin_pb2.CreateApiKeyRequest(name="k", role=admin_pb2.ROLE_READER, all_users=True),
    "ListApiKeys": lambda _: admin_pb2.ListApiKeysRequest(),
    "RotateApiKey": lambda _: admin_pb2.RotateApiKeyRequest(key_id="nobody"),
    "RevokeApiKey": lambda _: admin_pb2.RevokeApiKeyRequest(key_id="nobody"),
    "QueryAuditLog": lambda user_id: admin_pb2.QueryAuditLogRequest(user_id=user_id),
    "ClearDatabase": lambda _: admin_pb2.ClearDatabaseRequest(confirm=True),
}


def test_all_rpcs_that_do_not_only_read_are_tried() -> None:
    needing = {f"/{service.full_name}/{method.name}": method.name for service in SERVICES for method in service.methods}
    changing = {
        name
        for path, name in needing.items()
        if authorization.RULES.get(path, authorization.ADMINISTRATION).role > Role.READER
    }
    assert changing == WRITES.keys() | ADMINISTRATION.keys()


@dataclass(frozen=True, slots=True)
class Done:
    """A call that was made, and what the log says of it."""

    user_id: str
    changed: list[str]
    error: Any
    entries: list[admin_pb2.AuditEntry]


@pytest.fixture(scope="module")
def writes(admin: AdminServiceStub, stub: MemoryServiceStub) -> dict[str, Done]:
    """One call of each writing RPC, each for a user of its own."""
    done = {}
    for method, write in WRITES.items():
        user_id = f"user-of-{method}-{uuid.uuid4().hex[:8]}"
        memory_id = insert(stub, user_id, SECRET).id
        done[method] = user_id, write(stub, user_id, memory_id)
    return {
        method: Done(user_id, changed, None, _of_write(admin, method, user_id, changed))
        for method, (user_id, changed) in done.items()
    }


def _of_write(admin: AdminServiceStub, method: str, user_id: str, changed: list[str]) -> list[admin_pb2.AuditEntry]:
    def found() -> list[admin_pb2.AuditEntry]:
        return [entry for entry in entries(admin, user_id=user_id, method=method) if set(changed) & {*entry.memory_ids}]

    eventually(lambda: len([each for entry in found() for each in entry.memory_ids]) >= len(changed))
    return found()


@pytest.mark.parametrize("method", WRITES)
def test_a_write_leaves_who_did_what_to_which_memories(
    writes: dict[str, Done], writer: tuple[str, Any], method: str
) -> None:
    done = writes[method]
    assert [each for entry in done.entries for each in entry.memory_ids] == done.changed
    assert sum(entry.memory_count for entry in done.entries) == len(done.changed)
    assert len(done.entries) == (2 if method == "ImportVectors" else 1)
    for entry in done.entries:
        assert (entry.subject, entry.user_id, entry.method) == (f"key:{writer[0]}", done.user_id, method)
        assert (entry.code, entry.reason, entry.key_id) == ("OK", "", "")
        assert entry.peer.startswith("ipv4:127.0.0.1:")
        assert len(entry.request_id) == 32


@pytest.fixture(scope="module")
def administration(admin: AdminServiceStub, admin_key: tuple[str, Any]) -> dict[str, Done]:
    """One call of each RPC of AdminService."""
    made: dict[str, tuple[str, str, Any]] = {}
    for method, make_request in ADMINISTRATION.items():
        user_id, request_id, error = f"user-of-{method}", uuid.uuid4().hex, None
        metadata = (*admin_key[1], ("x-request-id", request_id))
        try:
            getattr(admin, method)(make_request(user_id), metadata=metadata, timeout=10)
        except grpc.RpcError as refused:
            error = refused
        [begun] = _of_call(admin, method, request_id)[:1]
        assert begun.code == "", "the log has the beginning at once"
        made[method] = user_id, request_id, error
    done = {}
    for method, (user_id, request_id, error) in made.items():
        eventually(lambda method=method, request_id=request_id: len(_of_call(admin, method, request_id)) == 2)  # type: ignore[misc]
        done[method] = Done(user_id, [], error, _of_call(admin, method, request_id))
    return done


def _of_call(admin: AdminServiceStub, method: str, request_id: str) -> list[admin_pb2.AuditEntry]:
    return [entry for entry in entries(admin, method=method) if entry.request_id == request_id]


@pytest.mark.parametrize("method", ADMINISTRATION)
def test_an_admin_call_is_written_down_before_and_after(
    administration: dict[str, Done], admin_key: tuple[str, Any], method: str
) -> None:
    done = administration[method]
    begun, ended = done.entries
    assert {begun.subject, ended.subject} == {f"key:{admin_key[0]}"}
    assert (begun.code, ended.code) == ("", "OK" if done.error is None else done.error.code().name)
    assert bool(ended.reason) == (done.error is not None)
    about = done.user_id if method in {"EraseUser", "SetUserQuota", "GetUserQuota", "QueryAuditLog"} else ""
    assert {begun.user_id, ended.user_id} == {about}


def test_erasing_keeps_the_entries_and_says_how_many_memories_it_was(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str
) -> None:
    ids = insert_all(stub, user_id, [secret_memory()] * 3)
    request = admin_pb2.EraseUserRequest(user_id=user_id, confirm_user_id=user_id)
    ask(admin, admin_pb2.EraseUserRequest(user_id=user_id, dry_run=True))
    ask(admin, request)

    found = entries_once_there(admin, 5, user_id=user_id)

    assert [(entry.method, entry.code, entry.memory_count) for entry in found] == [
        ("BatchInsertVectors", "OK", 3),
        ("EraseUser", "", 0),
        ("EraseUser", "OK", 0),  # the dry run
        ("EraseUser", "", 0),
        ("EraseUser", "OK", 3),
    ]
    assert list(found[0].memory_ids) == ids


def test_a_key_that_was_made_or_revoked_is_named(admin: AdminServiceStub) -> None:
    made = ask(admin, admin_pb2.CreateApiKeyRequest(name=SECRET, role=admin_pb2.ROLE_READER, all_users=True))
    ask(admin, admin_pb2.RevokeApiKeyRequest(key_id=made.key.id))
    for method in ("CreateApiKey", "RevokeApiKey"):
        eventually(
            lambda method=method: (
                (made.key.id, "OK")  # type: ignore[misc]  # bound now
                in {(entry.key_id, entry.code) for entry in entries(admin, method=method)}
            )
        )


def test_a_whole_key_given_for_its_id_is_not_written_down(admin: AdminServiceStub, module_database_url: str) -> None:
    made = ask(admin, admin_pb2.CreateApiKeyRequest(name="k", role=admin_pb2.ROLE_READER, all_users=True))
    failure(lambda: ask(admin, admin_pb2.RevokeApiKeyRequest(key_id=made.secret)))
    eventually(lambda: made.key.id in {entry.key_id for entry in entries(admin, method="CreateApiKey")})
    with psycopg.connect(module_database_url) as connection:
        texts = [text for (text,) in connection.execute("SELECT l::text FROM audit_log l")]
    assert any(made.key.id in text for text in texts)
    assert not [text for text in texts if made.secret.rpartition("_")[2] in text]


def test_failures_say_why_and_what_was_meant(admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str) -> None:
    unknown = str(uuid.uuid4())
    failure(lambda: delete(stub, user_id, unknown))
    failure(lambda: delete(stub, user_id, SECRET))
    found = entries_once_there(admin, 2, user_id=user_id)
    assert [(entry.code, entry.reason, list(entry.memory_ids)) for entry in found] == [
        ("NOT_FOUND", "MEMORY_NOT_FOUND", [unknown]),
        ("INVALID_ARGUMENT", "INVALID_FIELD", []),
    ]


def test_a_chunk_is_written_down_for_its_own_user_whomever_the_next_one_names(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str
) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.send([secret_memory()])
        stream.send([secret_memory()], user_id=f"{user_id}-other")
        stored = list(stream.acknowledgement().ids)
        assert stream.failure().reason == "INVALID_FIELD"
    found = entries_once_there(admin, 2, user_id=user_id)
    assert [(entry.code, list(entry.memory_ids)) for entry in found] == [("OK", stored), ("INVALID_ARGUMENT", [])]


def test_reads_leave_nothing_unless_they_were_denied(
    admin: AdminServiceStub, stub: MemoryServiceStub, server: ServerProcess, module_database_url: str, user_id: str
) -> None:
    memory = insert(stub, user_id)
    get(stub, user_id, memory.id)
    key_id, confined = make_key(module_database_url, role="reader", users=("somebody-else",))
    request = memory_pb2.GetVectorRequest(user_id=user_id, id=memory.id)
    assert failure(lambda: server.stub.GetVector(request, metadata=confined)).reason == "USER_NOT_ALLOWED"
    with pytest.raises(grpc.RpcError):
        server.stub.InsertVector(memory_pb2.InsertVectorRequest(user_id=user_id))  # by nobody

    found = entries_once_there(admin, 2, user_id=user_id)

    assert [(entry.method, entry.code) for entry in found] == [
        ("InsertVector", "OK"),
        ("GetVector", "PERMISSION_DENIED"),
    ]
    assert (found[1].subject, found[1].reason) == (f"key:{key_id}", "USER_NOT_ALLOWED")


@pytest.mark.usefixtures("administration")
def test_nothing_that_was_stored_is_in_the_log(writes: dict[str, Done], module_database_url: str) -> None:
    with psycopg.connect(module_database_url) as connection:
        texts = [text for (text,) in connection.execute("SELECT l::text FROM audit_log l")]
    for done in writes.values():
        assert any(done.user_id in text for text in texts)
    assert not [text for text in texts if SECRET in text or str(NUMBER)[:5] in text]


def test_a_server_that_is_told_to_remembers_reads_and_forgets_nothing_when_it_stops(
    databases: Databases, module_database_url: str
) -> None:
    user_id = f"user-{uuid.uuid4().hex}"
    with running_servers(databases) as start:
        leaving = start(database_url=module_database_url, audit="all")
        ids = [insert(leaving.stub, user_id).id for _ in range(20)]
        found = leaving.stub.SearchSimilar(
            memory_pb2.SearchSimilarRequest(user_id=user_id, embedding=new_memory().embedding, limit=3), timeout=10
        )
        assert leaving.stop() == 0
    with psycopg.connect(module_database_url) as connection:
        rows = connection.execute(
            "SELECT method, subject, memory_ids::text[] FROM audit_log WHERE user_id = %s ORDER BY at", [user_id]
        ).fetchall()
    assert rows[:20] == [("InsertVector", "anonymous", [each]) for each in ids]
    assert rows[20:] == [("SearchSimilar", "anonymous", [result.memory.id for result in found.results])]


def test_an_admin_call_that_cannot_be_written_down_does_nothing(
    admin: AdminServiceStub, stub: MemoryServiceStub, module_database_url: str, user_id: str
) -> None:
    memory = insert(stub, user_id)
    entries_once_there(admin, 1, user_id=user_id)
    request = admin_pb2.EraseUserRequest(user_id=user_id, confirm_user_id=user_id)
    with psycopg.connect(module_database_url) as locking:
        locking.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE")
        refused: Any = raised_by(lambda: admin.EraseUser(request, timeout=0.3))
        # The write's entry waits for the log; the write does not.
        assert insert(stub, user_id).id
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert get(stub, user_id, memory.id) == memory
