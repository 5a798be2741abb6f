"""API keys as operators handle them over gRPC: CreateApiKey, ListApiKeys, RotateApiKey, RevokeApiKey."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from db import api_keys
from db.api_keys import ApiKey, NewApiKey
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.requests import OperatorRequestKey
from db.wall import ACROSS_USERS
from memory_service import admin_page_token, admin_replies, mutations
from memory_service.access import api_key
from memory_service.access.api_key import WrittenKey
from memory_service.limits import Limits
from memory_service.messages.fields import FieldReader
from memory_service.messages.page_token import InvalidPageToken
from memory_service.messages.violations import Violations
from memory_service.v1 import admin_pb2 as pb

MAX_NAME_CHARACTERS = 100
MAX_USERS = 100
MAX_OVERLAP = timedelta(days=365)

ReplyWithSecret = TypeVar("ReplyWithSecret", pb.CreateApiKeyResponse, pb.RotateApiKeyResponse)

ROLES = {role: name for name, role in admin_replies.ROLES.items()}


class ApiKeyNotFound(Exception):
    """There is no API key of this id, or none that could still be used."""

    def __init__(self, message: str = "there is no API key of this id") -> None:
        super().__init__(message)


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
        request_key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()
        digest = api_key.digest_of(written)

        def store(conn: Connection) -> pb.CreateApiKeyResponse:
            with conn.transaction():
                api_keys.insert(conn, key, digest, now=now)
                stored = api_keys.read(conn, [key.id])[key.id]
            return pb.CreateApiKeyResponse(key=admin_replies.api_key(stored))

        return self._with_secret(written, call, request_key, store, reply=pb.CreateApiKeyResponse, now=now)

    def _with_secret(
        self,
        written: WrittenKey,
        call: Call,
        request_key: OperatorRequestKey | None,
        change: Callable[[Connection], ReplyWithSecret],
        *,
        reply: type[ReplyWithSecret],
        now: datetime,
    ) -> ReplyWithSecret:
        """Runs a change and adds the secret to its own reply; one that was remembered has none, and gets none."""
        mine: ReplyWithSecret | None = None

        def change_once(conn: Connection) -> ReplyWithSecret:
            nonlocal mine
            mine = change(conn)
            return mine

        answer = mutations.run(
            self.database,
            call,
            request_key,
            user_id=ACROSS_USERS,
            prepare=lambda: change_once,
            reply=reply,
            now=now,
        )
        if answer == mine:
            answer.secret = written.written()
        return answer

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
        messages = [admin_replies.api_key(key) for key in keys[:page_size]]
        shown = admin_replies.fitting(messages, max_bytes=self.limits.max_reply_bytes)
        reply = pb.ListApiKeysResponse(keys=messages[:shown])
        if len(keys) > shown:
            reply.next_page_token = admin_page_token.encode(keys[shown - 1].id, scope)
        return reply

    def rotate(self, request: pb.RotateApiKeyRequest, call: Call) -> pb.RotateApiKeyResponse:
        """Gives a key a new secret, which is in the reply and nowhere else."""
        now, fields = self.clock(), self._fields()
        written = api_key.with_new_secret(self._key_id(fields, request.key_id))
        overlap = api_key.OVERLAP
        if request.HasField("overlap"):
            overlap = fields.duration("overlap", request.overlap, minimum=timedelta(), maximum=MAX_OVERLAP)
        request_key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()
        digest, until = api_key.digest_of(written), now + overlap

        def change(conn: Connection) -> pb.RotateApiKeyResponse:
            with conn.transaction():
                if not api_keys.rotate(conn, written.id, digest, previous_valid_until=until, now=now):
                    raise ApiKeyNotFound("there is no API key of this id, or it is revoked")
                rotated = api_keys.read(conn, [written.id])[written.id]
            reply = pb.RotateApiKeyResponse(key=admin_replies.api_key(rotated))
            reply.previous_valid_until.FromDatetime(until)
            return reply

        return self._with_secret(written, call, request_key, change, reply=pb.RotateApiKeyResponse, now=now)

    def _key_id(self, fields: FieldReader, value: str) -> str:
        if not value:
            fields.violations.add("key_id", "is required")
        return fields.name("key_id", value) or ""

    def revoke(self, request: pb.RevokeApiKeyRequest, call: Call) -> pb.RevokeApiKeyResponse:
        """Revokes a key; one revoked before stays as it was."""
        now, fields = self.clock(), self._fields()
        key_id = self._key_id(fields, request.key_id)
        request_key = mutations.read_operator_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def change(conn: Connection) -> pb.RevokeApiKeyResponse:
            with conn.transaction():
                if not api_keys.revoke(conn, key_id, now=now):
                    raise ApiKeyNotFound
                revoked = api_keys.read(conn, [key_id])[key_id]
            return pb.RevokeApiKeyResponse(key=admin_replies.api_key(revoked))

        return mutations.run(
            self.database,
            call,
            request_key,
            user_id=ACROSS_USERS,
            prepare=lambda: change,
            reply=pb.RevokeApiKeyResponse,
            now=now,
        )
