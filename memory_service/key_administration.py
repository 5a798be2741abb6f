"""API keys as operators handle them over gRPC: CreateApiKey, ListApiKeys, RevokeApiKey."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from db import api_keys
from db.api_keys import ApiKey, NewApiKey
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service import admin_page_token, admin_replies
from memory_service.access import api_key
from memory_service.fields import FieldReader
from memory_service.limits import Limits
from memory_service.page_token import InvalidPageToken
from memory_service.v1 import admin_pb2 as pb
from memory_service.violations import Violations

MAX_NAME_CHARACTERS = 100
MAX_USERS = 100

ROLES = {role: name for name, role in admin_replies.ROLES.items()}


class ApiKeyNotFound(Exception):
    """There is no API key of this id."""

    def __init__(self) -> None:
        super().__init__("there is no API key of this id")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAdministration:
    """The RPCs about API keys over one database."""

    database: Database
    limits: Limits
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""

    def _fields(self) -> FieldReader:
        return FieldReader(self.limits, 0, can_embed=False, violations=Violations())

    def create(self, request: pb.CreateApiKeyRequest, call: Call) -> pb.CreateApiKeyResponse:
        """Makes a key; its secret is in the reply and nowhere else."""
        now, fields = self.clock(), self._fields()
        written = api_key.new_key()
        key = self._new_key(fields, request, written.id, now)
        fields.violations.raise_if_any()
        digest = api_key.digest_of(written)

        def store(conn: Connection) -> ApiKey:
            with conn.transaction():
                api_keys.insert(conn, key, digest, now=now)
                return api_keys.read(conn, [key.id])[key.id]

        stored = self.database.write(call, store, user_id=ACROSS_USERS)
        return pb.CreateApiKeyResponse(key=admin_replies.api_key(stored), secret=written.written())

    def _new_key(self, fields: FieldReader, request: pb.CreateApiKeyRequest, key_id: str, now: datetime) -> NewApiKey:
        self._check_name(fields, request.name)
        names_some = bool(request.user_ids or request.user_prefixes)
        if request.all_users == names_some:
            description = "is true although users are named" if names_some else "is not true, and no user is named"
            fields.violations.add("all_users", description)
        expires_at = fields.time("expires_at", request.expires_at) if request.HasField("expires_at") else None
        if expires_at is not None and expires_at <= now:
            fields.violations.add("expires_at", "has passed already")
        return NewApiKey(
            id=key_id,
            name=request.name,
            role=fields.choice("role", request.role, ROLES),
            everyone=request.all_users,
            users=self._names(fields, "user_ids", request.user_ids),
            prefixes=self._names(fields, "user_prefixes", request.user_prefixes),
            expires_at=expires_at,
        )

    def _check_name(self, fields: FieldReader, name: str) -> None:
        if not name.strip():
            fields.violations.add("name", "is required")
        elif len(name) > MAX_NAME_CHARACTERS:
            fields.violations.add("name", f"has {len(name)} characters, at most {MAX_NAME_CHARACTERS} are allowed")
        elif not name.isprintable():
            fields.violations.add("name", "holds a character that cannot be printed")

    def _names(self, fields: FieldReader, path: str, values: Sequence[str]) -> tuple[str, ...]:
        if len(values) > MAX_USERS:
            fields.violations.add(path, f"has {len(values)} entries, at most {MAX_USERS} are allowed")
        names = [fields.name(f"{path}[{index}]", value) for index, value in enumerate(values[:MAX_USERS])]
        for index, name in enumerate(names):
            if not name:
                fields.violations.add(f"{path}[{index}]", "is empty")
        return tuple(name for name in names if name)

    def list_keys(self, request: pb.ListApiKeysRequest, call: Call) -> pb.ListApiKeysResponse:
        """Lists one page of keys."""
        fields = self._fields()
        page_size = fields.page_size(request.page_size)
        fields.violations.raise_if_any()
        scope = pb.ListApiKeysRequest()
        after = admin_page_token.decode(request.page_token, scope) if request.page_token else None

        def read(conn: Connection) -> list[ApiKey] | None:
            position = None if after is None else api_keys.read(conn, [after]).get(after)
            if after is not None and position is None:
                return None
            return api_keys.read_page(conn, limit=page_size + 1, after=position)

        keys = self.database.read(call, read, user_id=ACROSS_USERS)
        if keys is None:
            raise InvalidPageToken("is not a page token of this service")
        reply = pb.ListApiKeysResponse(keys=map(admin_replies.api_key, keys[:page_size]))
        if len(keys) > page_size:
            reply.next_page_token = admin_page_token.encode(keys[page_size - 1].id, scope)
        return reply

    def revoke(self, request: pb.RevokeApiKeyRequest, call: Call) -> pb.RevokeApiKeyResponse:
        """Revokes a key; one revoked before stays as it was."""
        fields = self._fields()
        key_id = fields.name("key_id", request.key_id) or ""
        if not key_id:
            fields.violations.add("key_id", "is required")
        fields.violations.raise_if_any()

        def change(conn: Connection) -> ApiKey | None:
            with conn.transaction():
                api_keys.revoke(conn, key_id, now=self.clock())
                return api_keys.read(conn, [key_id]).get(key_id)

        revoked = self.database.write(call, change, user_id=ACROSS_USERS)
        if revoked is None:
            raise ApiKeyNotFound
        return pb.RevokeApiKeyResponse(key=admin_replies.api_key(revoked))
