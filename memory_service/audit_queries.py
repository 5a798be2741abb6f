"""Reading the audit log back: QueryAuditLog."""

from dataclasses import dataclass

from db import audit
from db.audit import AuditFilter
from db.cancellation import Call
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service import admin_page_token, admin_replies
from memory_service.fields import FieldReader
from memory_service.limits import Limits
from memory_service.v1 import admin_pb2 as pb
from memory_service.violations import Violations

# An id takes 38 bytes of a reply; the rest of 1,000 entries at their largest takes another 1.5 MB.
MAX_MEMORY_IDS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQueries:
    """The RPC about the audit log over one database."""

    database: Database
    limits: Limits

    def query(self, request: pb.QueryAuditLogRequest, call: Call) -> pb.QueryAuditLogResponse:
        """Lists one page of entries."""
        fields = FieldReader(self.limits, 0, can_embed=False, violations=Violations())
        page_size = fields.page_size(request.page_size)
        which = AuditFilter(
            user_id=fields.name("user_id", request.user_id),
            subject=fields.name("subject", request.subject),
            method=fields.name("method", request.method),
            since=fields.time("since", request.since) if request.HasField("since") else None,
            until=fields.time("until", request.until) if request.HasField("until") else None,
        )
        fields.violations.raise_if_any()
        scope = pb.QueryAuditLogRequest()
        scope.CopyFrom(request)
        for paging in ("page_size", "page_token"):
            scope.ClearField(paging)
        after = admin_page_token.decode_audit(request.page_token, scope) if request.page_token else None
        page = self.database.read(
            call,
            lambda conn: audit.read_page(conn, which, after=after, page_size=page_size, max_memory_ids=MAX_MEMORY_IDS),
            user_id=ACROSS_USERS,
        )
        reply = pb.QueryAuditLogResponse(entries=map(admin_replies.audit_entry, page.entries))
        if page.end is not None:
            reply.next_page_token = admin_page_token.encode_audit(page.end, scope)
        return reply
