"""Quotas of single users as operators set them: SetUserQuota, GetUserQuota."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from db import user_quotas
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.usage import Usage
from db.user_quotas import MAX_AMOUNT, UserQuota
from db.wall import ACROSS_USERS
from memory_service import mutations
from memory_service.limits import Limits
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from memory_service.v1 import admin_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaAdministration:
    """The RPCs about quotas over one database."""

    database: Database
    limits: Limits
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""
    of_all: Usage
    """What users without a quota of their own may store, 0 standing for any amount."""

    def _fields(self) -> FieldReader:
        return FieldReader(self.limits, 0, can_embed=False, violations=Violations())

    def set_quota(self, request: pb.SetUserQuotaRequest, call: Call) -> pb.SetUserQuotaResponse:
        """Gives a user a quota of its own, or takes it away."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        quota = UserQuota(
            memories=self._amount(fields, request.quota, "max_memories"),
            bytes=self._amount(fields, request.quota, "max_bytes"),
        )
        key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def write(conn: Connection) -> pb.SetUserQuotaResponse:
            user_quotas.write(conn, user_id, quota, now=now)
            return pb.SetUserQuotaResponse(in_force=self._in_force(quota))

        return mutations.run(
            self.database,
            call,
            key,
            user_id=ACROSS_USERS,
            prepare=lambda: write,
            reply=pb.SetUserQuotaResponse,
            now=now,
        )

    def _amount(self, fields: FieldReader, quota: pb.UserQuota, name: str) -> int | None:
        if not quota.HasField(name):  # type: ignore[arg-type]  # the stub wants a literal; both names are fields
            return None
        return fields.integer(f"quota.{name}", getattr(quota, name), minimum=0, maximum=MAX_AMOUNT)

    def get_quota(self, request: pb.GetUserQuotaRequest, call: Call) -> pb.GetUserQuotaResponse:
        """Reads what a user may store."""
        fields = self._fields()
        user_id = fields.user_id(request.user_id)
        fields.violations.raise_if_any()
        own = self.database.read(call, lambda conn: user_quotas.read(conn, user_id), user_id=user_id)
        return pb.GetUserQuotaResponse(
            quota=pb.UserQuota(max_memories=own.memories, max_bytes=own.bytes), in_force=self._in_force(own)
        )

    def _in_force(self, own: UserQuota) -> pb.UserQuota:
        return pb.UserQuota(
            max_memories=self.of_all.memories if own.memories is None else own.memories,
            max_bytes=self.of_all.bytes if own.bytes is None else own.bytes,
        )
