"""API keys as they are stored: who may call, as what, for which users, and the digests of their secrets."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from psycopg.rows import TupleRow

from db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDigest:
    """What a secret is recognized by."""

    salt: bytes
    digest: bytes
    valid_until: datetime | None = None
    """When the secret stops being valid, of one that has been replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiKey:
    """A key to store."""

    id: str
    name: str
    role: str
    """"reader", "writer" or "admin"."""
    everyone: bool
    """Whether it is for all users; `users` and `prefixes` are empty then, and only then."""
    users: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey(NewApiKey):
    """A stored key."""

    created_at: datetime
    rotated_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    secrets: tuple[SecretDigest, ...] = field(repr=False)
    """The one in force and, after a rotation, the one before it."""


INSERT = """/* api_keys.insert */
INSERT INTO api_keys (id, name, role, everyone, users, prefixes, salt, digest, created_at, expires_at)
VALUES (
    %(id)s, %(name)s, %(role)s, %(everyone)s, %(users)s, %(prefixes)s, %(salt)s, %(digest)s, %(now)s, %(expires_at)s
)
"""


def insert(conn: Connection, key: NewApiKey, secret: SecretDigest, *, now: datetime) -> None:
    """Stores a key."""
    conn.query(
        INSERT,
        {
            "id": key.id,
            "name": key.name,
            "role": key.role,
            "everyone": key.everyone,
            "users": list(key.users),
            "prefixes": list(key.prefixes),
            "salt": secret.salt,
            "digest": secret.digest,
            "now": now,
            "expires_at": key.expires_at,
        },
    )


# What the statements that read keys return first, before the secrets.
COLUMNS = (
    *("id", "name", "role", "everyone", "users", "prefixes", "expires_at", "created_at", "rotated_at", "revoked_at"),
    "last_used_at",
)

BY_ID = """/* api_keys.by_id */
SELECT id, name, role, everyone, users, prefixes, expires_at, created_at, rotated_at, revoked_at, last_used_at,
    salt, digest, previous_salt, previous_digest, previous_valid_until
FROM api_keys
WHERE id = ANY(%(ids)s)
"""


def read(conn: Connection, ids: Collection[str]) -> dict[str, ApiKey]:
    """Returns those of the keys that exist, by id."""
    return {key.id: key for key in map(_key, conn.query(BY_ID, {"ids": list(ids)}).fetchall())}


# Ids are random: they only make the order of keys of the same instant a definite one.
PAGE = """/* api_keys.page */
SELECT id, name, role, everyone, users, prefixes, expires_at, created_at, rotated_at, revoked_at, last_used_at,
    salt, digest, previous_salt, previous_digest, previous_valid_until
FROM api_keys
WHERE %(before)s::timestamptz IS NULL OR (created_at, id) < (%(before)s, %(before_id)s)
ORDER BY created_at DESC, id DESC
LIMIT %(limit)s
"""


def read_page(conn: Connection, *, limit: int, after: ApiKey | None = None) -> list[ApiKey]:
    """Returns up to `limit` keys, the newest first, from the one following `after` on."""
    position = {
        "before": None if after is None else after.created_at,
        "before_id": None if after is None else after.id,
        "limit": limit,
    }
    return [_key(row) for row in conn.query(PAGE, position).fetchall()]


REVOKE = """/* api_keys.revoke */
UPDATE api_keys SET revoked_at = coalesce(revoked_at, %(now)s) WHERE id = %(id)s
"""


def revoke(conn: Connection, key_id: str, *, now: datetime) -> bool:
    """Revokes a key, for good; a key revoked before stays as it was. Returns whether there is one of this id."""
    return bool(conn.query(REVOKE, {"id": key_id, "now": now}).rowcount)


ROTATE = """/* api_keys.rotate */
UPDATE api_keys
SET salt = %(salt)s, digest = %(digest)s, rotated_at = %(now)s,
    previous_salt = salt, previous_digest = digest, previous_valid_until = %(previous_valid_until)s
WHERE id = %(id)s AND revoked_at IS NULL
"""


def rotate(
    conn: Connection, key_id: str, secret: SecretDigest, *, previous_valid_until: datetime, now: datetime
) -> bool:
    """Gives a key a new secret; returns False when there is no such key, or it is revoked.

    The secret in force so far stays valid until `previous_valid_until`, one before that is valid no longer.
    """
    parameters = {
        "id": key_id,
        "salt": secret.salt,
        "digest": secret.digest,
        "previous_valid_until": previous_valid_until,
        "now": now,
    }
    return bool(conn.query(ROTATE, parameters).rowcount)


# In the order of ids, so that processes which note the same keys lock them in the same order.
NOTE_USED = """/* api_keys.note_used */
UPDATE api_keys
SET last_used_at = used.at
FROM (
    SELECT k.id, u.at
    FROM unnest(%(ids)s::text[], %(times)s::timestamptz[]) AS u (id, at)
    JOIN api_keys k ON k.id = u.id
    WHERE k.last_used_at IS NULL OR k.last_used_at < u.at
    ORDER BY k.id
    FOR NO KEY UPDATE OF k
) used
WHERE api_keys.id = used.id
"""


def note_used(conn: Connection, used: Mapping[str, datetime]) -> None:
    """Writes when keys were used last."""
    conn.query(NOTE_USED, {"ids": list(used), "times": list(used.values())})


def _key(row: TupleRow) -> ApiKey:
    *described, salt, digest, previous_salt, previous_digest, previous_valid_until = row
    secrets = [SecretDigest(salt=salt, digest=digest)]
    if previous_digest is not None:
        secrets.append(SecretDigest(salt=previous_salt, digest=previous_digest, valid_until=previous_valid_until))
    fields = dict(zip(COLUMNS, described, strict=True))
    fields |= {"users": tuple(fields["users"]), "prefixes": tuple(fields["prefixes"])}
    return ApiKey(**fields, secrets=tuple(secrets))
