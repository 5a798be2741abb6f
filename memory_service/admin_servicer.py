"""AdminService itself: hands each RPC to what administers users, their quotas, keys or the audit log."""

import grpc

from memory_service.audit_queries import AuditQueries
from memory_service.key_administration import KeyAdministration
from memory_service.quota_administration import QuotaAdministration
from memory_service.rpc_call import NewCall, call_of
from memory_service.user_administration import UserAdministration
from memory_service.v1 import admin_pb2 as pb
from memory_service.v1.admin_pb2_grpc import AdminServiceServicer


class AdminServicer(AdminServiceServicer):
    """Serves the RPCs. Behaviours raise; the interceptor makes statuses of what they raise, and lets in who may."""

    def __init__(
        self,
        *,
        users: UserAdministration,
        quotas: QuotaAdministration,
        keys: KeyAdministration,
        audit: AuditQueries,
        new_call: NewCall,
    ) -> None:
        self._users = users
        self._quotas = quotas
        self._keys = keys
        self._audit = audit
        self._new_call = new_call

    def EraseUser(self, request: pb.EraseUserRequest, context: grpc.ServicerContext) -> pb.EraseUserResponse:  # noqa: N802
        """See the contract."""
        return self._users.erase(request, call_of(context, self._new_call))

    def PurgeExpired(self, request: pb.PurgeExpiredRequest, context: grpc.ServicerContext) -> pb.PurgeExpiredResponse:  # noqa: N802
        """See the contract."""
        return self._users.purge(request, call_of(context, self._new_call))

    def ListUsers(self, request: pb.ListUsersRequest, context: grpc.ServicerContext) -> pb.ListUsersResponse:  # noqa: N802
        """See the contract."""
        return self._users.list_users(request, call_of(context, self._new_call))

    def SetUserQuota(self, request: pb.SetUserQuotaRequest, context: grpc.ServicerContext) -> pb.SetUserQuotaResponse:  # noqa: N802
        """See the contract."""
        return self._quotas.set_quota(request, call_of(context, self._new_call))

    def GetUserQuota(self, request: pb.GetUserQuotaRequest, context: grpc.ServicerContext) -> pb.GetUserQuotaResponse:  # noqa: N802
        """See the contract."""
        return self._quotas.get_quota(request, call_of(context, self._new_call))

    def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: grpc.ServicerContext) -> pb.CreateApiKeyResponse:  # noqa: N802
        """See the contract."""
        return self._keys.create(request, call_of(context, self._new_call))

    def ListApiKeys(self, request: pb.ListApiKeysRequest, context: grpc.ServicerContext) -> pb.ListApiKeysResponse:  # noqa: N802
        """See the contract."""
        return self._keys.list_keys(request, call_of(context, self._new_call))

    def RotateApiKey(self, request: pb.RotateApiKeyRequest, context: grpc.ServicerContext) -> pb.RotateApiKeyResponse:  # noqa: N802
        """See the contract."""
        return self._keys.rotate(request, call_of(context, self._new_call))

    def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: grpc.ServicerContext) -> pb.RevokeApiKeyResponse:  # noqa: N802
        """See the contract."""
        return self._keys.revoke(request, call_of(context, self._new_call))

    def QueryAuditLog(  # noqa: N802
        self, request: pb.QueryAuditLogRequest, context: grpc.ServicerContext
    ) -> pb.QueryAuditLogResponse:
        """See the contract."""
        return self._audit.query(request, call_of(context, self._new_call))

    def ClearDatabase(  # noqa: N802
        self, request: pb.ClearDatabaseRequest, context: grpc.ServicerContext
    ) -> pb.ClearDatabaseResponse:
        """See the contract."""
        return self._users.clear(request, call_of(context, self._new_call))
