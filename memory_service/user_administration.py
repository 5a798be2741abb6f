"""Users as operators see them: EraseUser, PurgeExpired, ListUsers, ClearDatabase."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from db import delete, embedding_cache, erase, requests, user_list
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service import admin_page_token, admin_replies
from memory_service.fields import FieldReader
from memory_service.limits import Limits
from memory_service.v1 import admin_pb2 as pb
from memory_service.violations import Violations

log = structlog.get_logger(__name__)

# Small transactions: nobody should wait for one.
BATCH = 500


class DevelopmentOnly(Exception):
    """The call is for development, and the server is not."""

    def __init__(self) -> None:
        super().__init__("ClearDatabase is served with MEMORY_ENVIRONMENT=development only")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserAdministration:
    """The RPCs about users over one database."""

    database: Database
    limits: Limits
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""
    development: bool
    """Whether the whole database may be cleared."""

    def _fields(self) -> FieldReader:
        return FieldReader(self.limits, 0, can_embed=False, violations=Violations())

    def erase(self, request: pb.EraseUserRequest, call: Call) -> pb.EraseUserResponse:
        """Erases a user, or counts what there is to erase."""
        fields = self._fields()
        user_id = fields.user_id(request.user_id)
        if not request.dry_run and request.confirm_user_id != request.user_id:
            fields.violations.add("confirm_user_id", "is not the same as user_id; erasing cannot be undone")
        fields.violations.raise_if_any()
        if request.dry_run:
            counted = self.database.read(call, lambda conn: erase.count(conn, user_id), user_id=user_id)
            return pb.EraseUserResponse(contents=admin_replies.contents(counted))
        erased = erase.erase(self.database, call, user_id, now=self.clock())
        log.info("user_erased", memories=erased.memories, conversations=erased.conversations)
        return pb.EraseUserResponse(contents=admin_replies.contents(erased), verified=True)

    def purge(self, call: Call) -> pb.PurgeExpiredResponse:
        """Erases what has expired."""
        now = self.clock()
        return pb.PurgeExpiredResponse(
            memory_count=self._in_batches(call, lambda conn: delete.purge(conn, now=now, limit=BATCH)),
            request_id_count=self._in_batches(call, lambda conn: requests.purge(conn, now=now, limit=BATCH)),
        )

    def _in_batches(self, call: Call, erase_batch: Callable[[Connection], int]) -> int:
        total = 0
        while erased := self.database.write(call, erase_batch, user_id=ACROSS_USERS):
            total += erased
        return total

    def list_users(self, request: pb.ListUsersRequest, call: Call) -> pb.ListUsersResponse:
        """Lists one page of users."""
        fields = self._fields()
        page_size = fields.page_size(request.page_size)
        fields.violations.raise_if_any()
        scope = pb.ListUsersRequest()
        after = admin_page_token.decode(request.page_token, scope) if request.page_token else ""
        users = self.database.read(
            call, lambda conn: user_list.read_page(conn, after=after, limit=page_size + 1), user_id=ACROSS_USERS
        )
        reply = pb.ListUsersResponse(users=map(admin_replies.user, users[:page_size]))
        if len(users) > page_size:
            reply.next_page_token = admin_page_token.encode(users[page_size - 1].user_id, scope)
        return reply

    def clear(self, request: pb.ClearDatabaseRequest, call: Call) -> pb.ClearDatabaseResponse:
        """Erases every user and all cached embeddings."""
        if not self.development:
            raise DevelopmentOnly
        fields = self._fields()
        if not request.confirm:
            fields.violations.add("confirm", "has to be true; clearing the database cannot be undone")
        fields.violations.raise_if_any()
        reply = pb.ClearDatabaseResponse()
        while users := self.database.read(
            call, lambda conn: user_list.read_ids(conn, limit=BATCH), user_id=ACROSS_USERS
        ):
            for user_id in users:
                reply.memory_count += erase.erase(self.database, call, user_id, now=self.clock()).memories
            reply.user_count += len(users)
        self._in_batches(call, lambda conn: embedding_cache.evict(conn, used_until=self.clock(), limit=BATCH))
        log.warning("database_cleared", users=reply.user_count, memories=reply.memory_count)
        return reply
