"""Who calls: a role, and the users that may be asked for."""

from dataclasses import dataclass, replace
from enum import IntEnum

# What ends a name within a user id: `acme` covers acme/ada and acme:ada, and never acme-corp.
SEPARATORS = ("/", ":")


class Role(IntEnum):
    """What a caller may do; each role includes those below it."""

    READER = 1
    WRITER = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class UserScope:
    """The users a caller may ask for."""

    users: frozenset[str] = frozenset()
    """User ids, as they are."""
    prefixes: tuple[str, ...] = ()
    """Names that cover themselves and what follows them after a separator."""
    everyone: bool = False

    def covers(self, user_id: str) -> bool:
        """Whether the caller may ask for this user."""
        return self.everyone or user_id in self.users or any(_is_within(user_id, prefix) for prefix in self.prefixes)


def _is_within(user_id: str, prefix: str) -> bool:
    if not prefix or not user_id.startswith(prefix):
        return False
    return user_id == prefix or prefix.endswith(SEPARATORS) or user_id[len(prefix)] in SEPARATORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller."""

    subject: str
    """Names the caller in logs: `key:` and the id of an API key, `jwt:` and the subject of a token."""
    role: Role
    scope: UserScope


EVERYONE = UserScope(everyone=True)
# Who calls a server that asks for no credentials.
ANONYMOUS = Principal(subject="anonymous", role=Role.WRITER, scope=EVERYONE)
# The same in MEMORY_ENVIRONMENT=development.
DEVELOPER = replace(ANONYMOUS, role=Role.ADMIN)
# Who has not been let in.
NOBODY = Principal(subject="unauthenticated", role=Role.READER, scope=UserScope())
