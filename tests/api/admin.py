"""A server that lets everybody administer it, what it is asked, and keys of one that does not."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from db import api_keys
from db.api_keys import NewApiKey
from db.pool import Database, PoolOptions
from db.wall import ACROSS_USERS
from memory_service.access import api_key
from memory_service.v1 import admin_pb2 as pb
from memory_service.v1.admin_pb2_grpc import AdminServiceStub
from tests.api.calls import TIMEOUT_S
from tests.api.waiting import eventually


def ask(stub: AdminServiceStub, request: Any) -> Any:
    """Calls the RPC whose request type `request` is."""
    rpc = type(request).__name__.removesuffix("Request")
    return getattr(stub, rpc)(request, timeout=TIMEOUT_S)


def entries(stub: AdminServiceStub, **conditions: Any) -> list[pb.AuditEntry]:
    """Returns the entries of the audit log that meet conditions, oldest first, without those of asking for them."""
    found: list[pb.AuditEntry] = []
    request = pb.QueryAuditLogRequest(page_size=1_000, **conditions)
    while True:
        page = ask(stub, request)
        found.extend(page.entries)
        if not page.next_page_token:
            left_out = {"QueryAuditLog"} - {conditions.get("method")}
            return [entry for entry in found[::-1] if entry.method not in left_out]
        request.page_token = page.next_page_token


def entries_once_there(stub: AdminServiceStub, count: int, **conditions: Any) -> list[pb.AuditEntry]:
    """Returns the entries that meet conditions, once there are as many."""
    eventually(lambda: len(entries(stub, **conditions)) >= count)
    return entries(stub, **conditions)


def make_key(database_url: str, *, role: str, users: tuple[str, ...] = ()) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Stores an API key; returns its id, and the metadata of a call that brings it."""
    key = api_key.new_key()
    stored = NewApiKey(id=key.id, name="a test's", role=role, everyone=not users, users=users)
    database = Database(database_url, PoolOptions(min_size=1, max_size=1))
    database.open()
    database.write(
        database.call(),
        lambda conn: api_keys.insert(conn, stored, api_key.digest_of(key), now=datetime.now(UTC)),
        user_id=ACROSS_USERS,
    )
    database.close()
    return key.id, (("authorization", f"Bearer {key.written()}"),)


class Keyed:
    """A stub whose calls bring an API key."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, rpc: str) -> Any:
        return partial(getattr(self._stub, rpc), metadata=self._metadata)
