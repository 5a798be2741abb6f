"""Users as operators see them: EraseUser, PurgeExpired, ListUsers, ClearDatabase."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from db import delete, embedding_cache, erase, requests, user_list
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.requests import OperatorRequestKey
from db.wall import ACROSS_USERS
from memory_service import admin_page_token, admin_replies, mutations
from memory_service.limits import Limits
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from memory_service.mutations import Reply
from memory_service.v1 import admin_pb2 as pb

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
        now = self.clock()
        key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()
        if request.dry_run:
            counted = self.database.read(call, lambda conn: erase.count(conn, user_id), user_id=user_id)
            return pb.EraseUserResponse(contents=admin_replies.contents(counted))

        def prepare() -> Callable[[Connection], pb.EraseUserResponse]:
            swept = erase.sweep(self.database, call, user_id)

            def finish(conn: Connection) -> pb.EraseUserResponse:
                erased = swept + erase.finish(conn, user_id, now)
                log.info("user_erased", memories=erased.memories, conversations=erased.conversations)
                return pb.EraseUserResponse(contents=admin_replies.contents(erased), verified=True)

            return finish

        return self._run(call, key, prepare, reply=pb.EraseUserResponse, now=now)

    def purge(self, request: pb.PurgeExpiredRequest, call: Call) -> pb.PurgeExpiredResponse:
        """Erases what has expired."""
        now, fields = self.clock(), self._fields()
        key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.PurgeExpiredResponse]:
            reply = pb.PurgeExpiredResponse(
                memory_count=self._in_batches(call, lambda conn: delete.purge(conn, now=now, limit=BATCH)),
                request_id_count=self._in_batches(call, lambda conn: requests.purge(conn, now=now, limit=BATCH)),
            )
            return lambda _: reply

        return self._run(call, key, prepare, reply=pb.PurgeExpiredResponse, now=now)

    def _run(
        self,
        call: Call,
        key: OperatorRequestKey | None,
        prepare: Callable[[], Callable[[Connection], Reply]],
        *,
        reply: type[Reply],
        now: datetime,
    ) -> Reply:
        return mutations.run(self.database, call, key, user_id=ACROSS_USERS, prepare=prepare, reply=reply, now=now)

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
        now, fields = self.clock(), self._fields()
        if not request.confirm:
            fields.violations.add("confirm", "has to be true; clearing the database cannot be undone")
        key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.ClearDatabaseResponse]:
            reply = self._clear(call)
            return lambda _: reply

        return self._run(call, key, prepare, reply=pb.ClearDatabaseResponse, now=now)

    def _clear(self, call: Call) -> pb.ClearDatabaseResponse:
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
