"""Reading the audit log back: QueryAuditLog."""

from dataclasses import dataclass

from db import audit
from db.audit import AuditFilter, AuditPosition
from db.cancellation import Call
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service import admin_page_token, admin_replies
from memory_service.limits import Limits
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from memory_service.v1 import admin_pb2 as pb

# An id takes 38 bytes of a reply.
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
        messages = [admin_replies.audit_entry(entry) for entry in page.entries]
        shown = admin_replies.fitting(messages, max_bytes=self.limits.max_reply_bytes)
        reply = pb.QueryAuditLogResponse(entries=messages[:shown])
        end = page.end
        if shown < len(messages):
            end = AuditPosition(page.entries[shown - 1].at, page.entries[shown - 1].id)
        if end is not None:
            reply.next_page_token = admin_page_token.encode_audit(end, scope)
        return reply
