"""AdminService, on a server that serves it to everybody (MEMORY_ENVIRONMENT=development)."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from memory_service.v1 import admin_pb2 as pb
from memory_service.v1 import memory_pb2
from memory_service.v1.admin_pb2_grpc import AdminServiceStub
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.admin import ask, entries, make_key
from tests.api.calls import failure, failure_of, send
from tests.api.messages import get, insert, insert_all, new_memory, stats, timestamp
from tests.api.waiting import eventually
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]

NO_TOKENS = ("!", "AAAA", "nonsense")


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A server that lets everybody administer it."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, environment="development")


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> AdminServiceStub:
    """Its AdminService."""
    return AdminServiceStub(server.channel)


@pytest.fixture(scope="module")
def guarded(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A server on the same database, for production, that asks for API keys."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, auth="keys")


def erase(user_id: str, **fields: Any) -> pb.EraseUserRequest:
    return pb.EraseUserRequest(user_id=user_id, **{"confirm_user_id": user_id, **fields})


def delete(stub: MemoryServiceStub, user_id: str, memory_id: str) -> None:
    send(stub, memory_pb2.DeleteVectorRequest(user_id=user_id, id=memory_id, request_id=str(uuid.uuid4())))


def test_erasing_a_user_leaves_nothing_and_says_how_much_it_was(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str, other_user_id: str
) -> None:
    mine, other = (insert_all(stub, each, [new_memory(conversation_id="c")] * 3) for each in (user_id, other_user_id))
    delete(stub, user_id, mine[0])
    expected = pb.UserContents(memory_count=3, conversation_count=1, request_id_count=1)

    counted = ask(admin, erase(user_id, dry_run=True, confirm_user_id=""))
    assert counted == pb.EraseUserResponse(contents=expected)
    assert stats(stub, user_id).live_count == 2

    assert ask(admin, erase(user_id)) == pb.EraseUserResponse(contents=expected, verified=True)
    assert stats(stub, user_id) == memory_pb2.GetStatsResponse()
    assert failure(lambda: get(stub, user_id, mine[1])).reason == "MEMORY_NOT_FOUND"
    assert ask(admin, erase(user_id)) == pb.EraseUserResponse(contents=pb.UserContents(), verified=True)

    assert stats(stub, other_user_id).live_count == 3
    assert get(stub, other_user_id, other[0]).conversation_id == "c"


def test_an_erased_user_may_begin_anew(admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str) -> None:
    memory_id = str(uuid.uuid4())
    insert(stub, user_id, "before", id=memory_id)
    ask(admin, erase(user_id))
    assert insert(stub, user_id, "after", id=memory_id).content == "after"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (erase(""), "user_id"),
        (erase("x" * 256), "user_id"),
        (erase("a\0b"), "user_id"),
        (erase("ada", confirm_user_id=""), "confirm_user_id"),
        (erase("ada", confirm_user_id="Ada"), "confirm_user_id"),
        (pb.ListUsersRequest(page_size=-1), "page_size"),
        (pb.ListUsersRequest(page_token=NO_TOKENS[0]), "page_token"),
        (pb.ListUsersRequest(page_token=NO_TOKENS[1]), "page_token"),
        (pb.ListApiKeysRequest(page_size=-1), "page_size"),
        (pb.ListApiKeysRequest(page_token=NO_TOKENS[2]), "page_token"),
        (pb.QueryAuditLogRequest(page_size=-1), "page_size"),
        (pb.QueryAuditLogRequest(page_token=NO_TOKENS[2]), "page_token"),
        (pb.QueryAuditLogRequest(user_id="a\0b"), "user_id"),
        (pb.QueryAuditLogRequest(subject="x" * 256), "subject"),
        (pb.QueryAuditLogRequest(method="a\0b"), "method"),
        (pb.ClearDatabaseRequest(), "confirm"),
        (pb.SetUserQuotaRequest(), "user_id"),
        (pb.SetUserQuotaRequest(user_id="u", quota=pb.UserQuota(max_memories=-1)), "quota.max_memories"),
        (pb.SetUserQuotaRequest(user_id="u", quota=pb.UserQuota(max_bytes=-1)), "quota.max_bytes"),
        (pb.GetUserQuotaRequest(user_id="x" * 256), "user_id"),
        (pb.CreateApiKeyRequest(role=pb.ROLE_READER, all_users=True), "name"),
        (pb.CreateApiKeyRequest(name="k" * 101, role=pb.ROLE_READER, all_users=True), "name"),
        (pb.CreateApiKeyRequest(name="a\nb", role=pb.ROLE_READER, all_users=True), "name"),
        (pb.CreateApiKeyRequest(name="k", all_users=True), "role"),
        (pb.CreateApiKeyRequest(name="k", role=pb.ROLE_READER), "all_users"),
        (pb.CreateApiKeyRequest(name="k", role=pb.ROLE_READER, all_users=True, user_ids=["a"]), "all_users"),
        (pb.CreateApiKeyRequest(name="k", role=pb.ROLE_READER, user_ids=["a", ""]), "user_ids[1]"),
        (pb.CreateApiKeyRequest(name="k", role=pb.ROLE_READER, user_prefixes=["a\0"]), "user_prefixes[0]"),
        (pb.CreateApiKeyRequest(name="k", role=pb.ROLE_READER, user_ids=["a"] * 101), "user_ids"),
        (
            pb.CreateApiKeyRequest(
                name="k", role=pb.ROLE_READER, all_users=True, expires_at=timestamp(datetime(2020, 1, 1, tzinfo=UTC))
            ),
            "expires_at",
        ),
        (pb.RotateApiKeyRequest(), "key_id"),
        (pb.RotateApiKeyRequest(key_id="k" * 256), "key_id"),
        (pb.RotateApiKeyRequest(key_id="k", overlap=Duration(seconds=-1)), "overlap"),
        (pb.RotateApiKeyRequest(key_id="k", overlap=Duration(nanos=-1)), "overlap"),
        (pb.RotateApiKeyRequest(key_id="k", overlap=Duration(seconds=365 * 86_400 + 1)), "overlap"),
        (pb.RotateApiKeyRequest(key_id="k", overlap=Duration(seconds=2**63 - 1, nanos=2**31 - 1)), "overlap"),
        (pb.RevokeApiKeyRequest(), "key_id"),
        (pb.RevokeApiKeyRequest(key_id="a\0b"), "key_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_input_is_refused_by_its_field(admin: AdminServiceStub, request_: Any, field: str) -> None:
    refused = failure(lambda: ask(admin, request_))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == [field]


def test_users_are_listed_with_their_sizes_in_pages(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str
) -> None:
    users = [f"{user_id}-{number}" for number in range(5)]
    newest = datetime(2026, 1, 2, tzinfo=UTC)
    for number, user in enumerate(users):
        memories = [new_memory("text", created_at=timestamp(newest - timedelta(days=n))) for n in range(number + 1)]
        ids = insert_all(stub, user, memories)
        if number:
            delete(stub, user, ids[0])

    listed: dict[str, pb.UserSummary] = {}
    request = pb.ListUsersRequest(page_size=2)
    while True:
        page = ask(admin, request)
        assert len(page.users) <= 2
        listed.update({user.user_id: user for user in page.users})
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert list(listed) == sorted(listed, key=str.encode)
    assert set(users) <= listed.keys()
    for number, user in enumerate(users):
        found, counted = listed[user], stats(stub, user)
        assert (found.live_count, found.deleted_count) == (counted.live_count, counted.deleted_count)
        assert (found.live_count, found.deleted_count) == (number + (number == 0), int(number > 0))
        assert found.stored_bytes == counted.stored_bytes > 0
        assert found.newest_created_at == timestamp(newest)
        assert found.HasField("created_at")


def test_a_page_token_is_of_its_own_call(admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str) -> None:
    for number in range(2):
        insert(stub, f"{user_id}-{number}")
    token = ask(admin, pb.ListUsersRequest(page_size=1)).next_page_token
    assert token
    for other in (pb.ListApiKeysRequest(page_token=token), pb.QueryAuditLogRequest(page_token=token)):
        assert failure(lambda other=other: ask(admin, other)).reason == "PAGE_TOKEN_INVALID"  # type: ignore[misc]
    token = ask(admin, pb.QueryAuditLogRequest(page_size=1)).next_page_token
    assert token
    changed = pb.QueryAuditLogRequest(page_token=token, method="EraseUser")
    assert failure(lambda: ask(admin, changed)).reason == "PAGE_TOKEN_INVALID"


def test_a_user_is_given_a_quota_of_its_own(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str, other_user_id: str
) -> None:
    get = pb.GetUserQuotaRequest(user_id=user_id)
    any_amount = pb.UserQuota(max_memories=0, max_bytes=0)
    assert ask(admin, get) == pb.GetUserQuotaResponse(quota=pb.UserQuota(), in_force=any_amount)

    quota = pb.UserQuota(max_memories=2)
    in_force = pb.UserQuota(max_memories=2, max_bytes=0)
    assert ask(admin, pb.SetUserQuotaRequest(user_id=user_id, quota=quota)).in_force == in_force
    assert ask(admin, get) == pb.GetUserQuotaResponse(quota=quota, in_force=in_force)

    def is_refused() -> bool:
        try:
            insert(stub, user_id)
        except grpc.RpcError as error:
            refused = failure_of(error)
            assert (refused.reason, refused.facts) == ("QUOTA_EXCEEDED", {"quota": "MEMORY_QUOTA_MEMORIES"})
            return True
        return False

    eventually(is_refused)
    assert stats(stub, user_id).live_count >= 2
    insert_all(stub, other_user_id, [new_memory()] * 3)

    ask(admin, erase(user_id))
    assert ask(admin, get).quota == pb.UserQuota()
    ask(admin, pb.SetUserQuotaRequest(user_id=user_id, quota=quota))
    ask(admin, pb.SetUserQuotaRequest(user_id=user_id))
    assert ask(admin, get).quota == pb.UserQuota()


def test_what_has_expired_is_purged_now(
    admin: AdminServiceStub, stub: MemoryServiceStub, user_id: str, module_database_url: str
) -> None:
    ids = insert_all(stub, user_id, [new_memory()] * 3)
    for memory_id in ids[:2]:
        delete(stub, user_id, memory_id)
    ask(admin, pb.PurgeExpiredRequest())
    assert stats(stub, user_id).deleted_count == 2
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        for table, column in (("memory_entries", "purge_at"), ("request_ids", "expires_at")):
            connection.execute(
                f"UPDATE {table} SET {column} = now() - interval '1 s' "  # noqa: S608 - ours
                f"WHERE user_id = %s AND {column} IS NOT NULL",
                [user_id],
            )

    purged = ask(admin, pb.PurgeExpiredRequest())

    assert purged == pb.PurgeExpiredResponse(memory_count=2, request_id_count=2)
    assert (stats(stub, user_id).live_count, stats(stub, user_id).deleted_count) == (1, 0)


def test_keys_are_made_listed_and_revoked(admin: AdminServiceStub, guarded: ServerProcess, user_id: str) -> None:
    request = pb.CreateApiKeyRequest(name="chat", role=pb.ROLE_WRITER, user_ids=[user_id], user_prefixes=["acme"])
    made = ask(admin, request)
    metadata = (("authorization", f"Bearer {made.secret}"),)
    insertion = memory_pb2.InsertVectorRequest(user_id=user_id, memory=new_memory())
    assert guarded.stub.InsertVector(insertion, metadata=metadata, timeout=10).memory.user_id == user_id

    listed = ask(admin, pb.ListApiKeysRequest()).keys
    found = next(key for key in listed if key.id == made.key.id)
    assert (found.name, found.role, found.all_users) == ("chat", pb.ROLE_WRITER, False)
    assert (list(found.user_ids), list(found.user_prefixes)) == ([user_id], ["acme"])
    assert made.secret.rpartition("_")[2] not in str(listed)

    revoked = ask(admin, pb.RevokeApiKeyRequest(key_id=made.key.id)).key
    assert revoked.HasField("revoked_at")
    assert ask(admin, pb.RevokeApiKeyRequest(key_id=made.key.id)).key == revoked
    unknown = failure(lambda: ask(admin, pb.RevokeApiKeyRequest(key_id="nobody")))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "API_KEY_NOT_FOUND")


def test_a_key_is_rotated_and_both_secrets_are_good_for_a_while(
    admin: AdminServiceStub, guarded: ServerProcess, user_id: str
) -> None:
    made = ask(admin, pb.CreateApiKeyRequest(name="chat", role=pb.ROLE_READER, user_ids=[user_id]))

    def outcome(secret: str) -> str:
        metadata = (("authorization", f"Bearer {secret}"),)
        request = memory_pb2.GetStatsRequest(user_id=user_id)
        try:
            guarded.stub.GetStats(request, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return failure_of(error).reason
        return "OK"

    assert outcome(made.secret) == "OK"
    rotated_at = datetime.now(UTC)
    rotated = ask(admin, pb.RotateApiKeyRequest(key_id=made.key.id))
    valid_for = rotated.previous_valid_until.ToDatetime(UTC) - rotated_at
    assert timedelta(0) <= valid_for - timedelta(hours=24) < timedelta(minutes=1)
    assert rotated.secret != made.secret
    kept = pb.ApiKey()
    kept.CopyFrom(rotated.key)
    assert kept.HasField("rotated_at")
    for field in ("rotated_at", "last_used_at"):
        kept.ClearField(field)
    assert kept == made.key
    assert outcome(rotated.secret) == outcome(made.secret) == "OK"

    newest = ask(admin, pb.RotateApiKeyRequest(key_id=made.key.id, overlap=Duration()))
    assert outcome(newest.secret) == "OK"
    eventually(lambda: outcome(rotated.secret) == outcome(made.secret) == "CREDENTIALS_INVALID")
    listed = str(ask(admin, pb.ListApiKeysRequest()))
    assert all(secret.rpartition("_")[2] not in listed for secret in (made.secret, rotated.secret, newest.secret))

    ask(admin, pb.RevokeApiKeyRequest(key_id=made.key.id))
    for key_id in (made.key.id, "nobody"):
        refused = failure(lambda key_id=key_id: ask(admin, pb.RotateApiKeyRequest(key_id=key_id)))  # type: ignore[misc]
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "API_KEY_NOT_FOUND")

    def audited() -> list[str]:
        found = entries(admin, method="RotateApiKey")
        # What is no key's id is not written down: it may be a whole key.
        assert {entry.key_id for entry in found} <= {made.key.id, ""}
        return [entry.code for entry in found if entry.key_id == made.key.id]

    eventually(lambda: len(audited()) == 6)
    assert audited() == ["", "OK", "", "OK", "", "NOT_FOUND"]


def test_keys_are_listed_in_pages_newest_first(admin: AdminServiceStub) -> None:
    made = [ask(admin, pb.CreateApiKeyRequest(name=f"k{n}", role=pb.ROLE_READER, all_users=True)).key for n in range(3)]
    found: list[str] = []
    request = pb.ListApiKeysRequest(page_size=2)
    while True:
        page = ask(admin, request)
        found.extend(key.id for key in page.keys)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found[:3] == [key.id for key in reversed(made)]
    assert len(set(found)) == len(found)


def test_a_page_of_keys_ends_before_it_is_too_large_for_a_client(admin: AdminServiceStub) -> None:
    made = [
        ask(
            admin,
            pb.CreateApiKeyRequest(
                name=f"large-{n}",
                role=pb.ROLE_READER,
                user_ids=[f"{i:03}" + "\N{OLD PERSIAN SIGN A}" * 252 for i in range(100)],
            ),
        ).key
        for n in range(40)
    ]
    request, pages, listed = pb.ListApiKeysRequest(page_size=1_000), 0, []
    while True:
        page = ask(admin, request)
        assert page.ByteSize() <= 3.5 * 2**20
        listed += [key.id for key in page.keys]
        pages += 1
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert pages > 1
    assert listed[:40] == [key.id for key in reversed(made)]


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_administering_takes_an_administrator(
    guarded: ServerProcess, module_database_url: str, method: str, user_id: str
) -> None:
    request = getattr(pb, f"{method}Request")()
    call = getattr(AdminServiceStub(guarded.channel), method)
    anonymous = failure(lambda: call(request, timeout=10))
    assert (anonymous.code, anonymous.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    _, writer = make_key(module_database_url, role="writer")
    refused = failure(lambda: call(request, metadata=writer, timeout=10))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT")
    _, confined = make_key(module_database_url, role="admin", users=(user_id,))
    refused = failure(lambda: call(request, metadata=confined, timeout=10))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "USER_NOT_ALLOWED")


def test_a_database_is_cleared_in_development_only(guarded: ServerProcess, module_database_url: str) -> None:
    _, metadata = make_key(module_database_url, role="admin")
    clear = AdminServiceStub(guarded.channel).ClearDatabase
    refused = failure(lambda: clear(pb.ClearDatabaseRequest(confirm=True), metadata=metadata, timeout=10))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DEVELOPMENT_ONLY")


def test_clearing_erases_every_user_and_keeps_keys_and_the_audit_log(
    admin: AdminServiceStub, stub: MemoryServiceStub
) -> None:
    clear = pb.ClearDatabaseRequest(confirm=True)
    ask(admin, clear)  # what other tests have left
    key = ask(admin, pb.CreateApiKeyRequest(name="k", role=pb.ROLE_READER, all_users=True)).key
    for number in range(3):
        insert_all(stub, f"user-{number}", [new_memory()] * 2)

    assert ask(admin, clear) == pb.ClearDatabaseResponse(user_count=3, memory_count=6)
    assert not ask(admin, pb.ListUsersRequest()).users
    assert key.id in {each.id for each in ask(admin, pb.ListApiKeysRequest()).keys}
    eventually(lambda: key.id in {entry.key_id for entry in entries(admin, method="CreateApiKey")})
    assert ask(admin, clear) == pb.ClearDatabaseResponse()


def test_health_reports_the_service(server: ServerProcess) -> None:
    assert server.health(SERVICE.full_name) == "SERVING"
