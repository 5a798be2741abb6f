"""What each method asks of its caller: the role it needs, and whom its requests are about."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from memory_service.access.errors import RoleInsufficient, UserNotAllowed
from memory_service.access.principal import Principal, Role


class About(Enum):
    """Whom the requests of a method are about."""

    NAMED_USERS = auto()
    """The users they name."""
    EVERYONE = auto()
    """All users: for callers who may ask for any of them."""
    NOBODY = auto()
    """Nothing that belongs to users."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method asks of its caller."""

    role: Role
    about: About


RULES = {
    "/memory_service.v1.MemoryService/SearchSimilar": Rule(Role.READER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/BatchSearchSimilar": Rule(Role.READER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/GetVector": Rule(Role.READER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/GetRecent": Rule(Role.READER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/GetStats": Rule(Role.READER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/SearchAllUsers": Rule(Role.READER, About.EVERYONE),
    "/memory_service.v1.MemoryService/GetServerInfo": Rule(Role.READER, About.NOBODY),
    "/memory_service.v1.MemoryService/InsertVector": Rule(Role.WRITER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/BatchInsertVectors": Rule(Role.WRITER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/ImportVectors": Rule(Role.WRITER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/UpdateVector": Rule(Role.WRITER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/DeleteVector": Rule(Role.WRITER, About.NAMED_USERS),
    "/memory_service.v1.MemoryService/RestoreVector": Rule(Role.WRITER, About.NAMED_USERS),
}
# Of all other methods, those of AdminService and those that nobody has thought of here.
ADMINISTRATION = Rule(Role.ADMIN, About.EVERYONE)

# The fields of requests that hold a user id, wherever in a message they are.
USER_FIELDS = frozenset({"user_id"})


def require_role(principal: Principal, method: str) -> None:
    """Refuses a caller who may not call the method, whatever the request says.

    Raises:
        RoleInsufficient: When it takes a higher role.
        UserNotAllowed: When it reads or changes what belongs to all users, and the caller is confined to some.
    """
    rule = RULES.get(method, ADMINISTRATION)
    if principal.role < rule.role:
        raise RoleInsufficient(method=method.rpartition("/")[2], needed=rule.role.name.lower())
    if rule.about is About.EVERYONE and not principal.scope.everyone:
        raise UserNotAllowed


def require_users(principal: Principal, request: Message) -> None:
    """Raises UserNotAllowed when the request is about a user the caller may not ask for."""
    if principal.scope.everyone:
        return
    for user_id in users_of(request):
        # An empty one is refused by whoever reads the request, with the field's name.
        if user_id and not principal.scope.covers(user_id):
            raise UserNotAllowed


def users_of(message: Message) -> Iterator[str]:
    """Returns every user id that a message names, its parts included."""
    for field in user_fields(message.DESCRIPTOR):
        value = getattr(message, field.name)
        if field.message_type is None:
            yield from value if field.is_repeated else (value,)
        elif field.is_repeated:
            for part in value:
                yield from users_of(part)
        elif message.HasField(field.name):
            yield from users_of(value)


@cache
def user_fields(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Returns the fields of a message that hold user ids, and those whose messages do."""
    return tuple(field for field in descriptor.fields if _names_users(field, set()))


def _names_users(field: FieldDescriptor, seen: set[Descriptor]) -> bool:
    if field.name in USER_FIELDS:
        return True
    kind = field.message_type
    if kind is None or kind in seen:  # conditions, for one, contain conditions
        return False
    seen.add(kind)
    return any(_names_users(part, seen) for part in kind.fields)
