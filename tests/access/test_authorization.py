"""Authorization: every method and every field of the contract is thought of, now and when it grows."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from memory_service.access import authorization
from memory_service.access.authorization import ADMINISTRATION, RULES, USER_FIELDS, About, Rule
from memory_service.access.errors import RoleInsufficient, UserNotAllowed
from memory_service.access.principal import EVERYONE, Principal, Role, UserScope
from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb

SERVICES = [service for file in (pb.DESCRIPTOR, admin_pb2.DESCRIPTOR) for service in file.services_by_name.values()]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
# Fields whose names suggest a user, and which hold none.
NO_USERS = frozenset[str]()


def principal(role: Role = Role.READER, scope: UserScope = EVERYONE) -> Principal:
    return Principal(subject="test", role=role, scope=scope)


def fields_of(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[FieldDescriptor]:
    """Yields the fields of a message and of all that it may contain."""
    for field in descriptor.fields:
        yield field
        if field.message_type is not None and field.message_type.full_name not in seen:
            yield from fields_of(field.message_type, seen | {descriptor.full_name, field.message_type.full_name})


def rule_of(method: str) -> Rule:
    return RULES.get(method, ADMINISTRATION)


@pytest.mark.parametrize("method", sorted(name for name in METHODS if "/memory_service.v1.MemoryService/" in name))
def test_every_method_of_the_memory_service_has_a_rule(method: str) -> None:
    assert method in RULES, "say which role it needs and whom it is about"


def test_rules_are_for_methods_there_are() -> None:
    assert RULES.keys() <= METHODS.keys()


@pytest.mark.parametrize("method", sorted(name for name in METHODS if "AdminService" in name))
def test_administration_is_for_administrators(method: str) -> None:
    assert rule_of(method).role is Role.ADMIN


def test_a_method_nobody_has_thought_of_is_for_administrators_of_all_users() -> None:
    with pytest.raises(RoleInsufficient):
        authorization.require_role(principal(Role.WRITER), "/memory_service.v1.MemoryService/New")
    with pytest.raises(UserNotAllowed):
        authorization.require_role(
            principal(Role.ADMIN, UserScope(prefixes=("acme",))), "/memory_service.v1.MemoryService/New"
        )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_fields_that_name_users_are_known(method: str) -> None:
    """A new field for a user, wherever in a request, fails this until USER_FIELDS or NO_USERS has it."""
    if rule_of(method).about is About.EVERYONE:  # whoever may call it may ask for all users
        return
    fields = {field.full_name: field for field in fields_of(METHODS[method].input_type)}
    suspected = {
        name
        for name, field in fields.items()
        if any(word in field.name for word in ("user", "owner", "tenant", "account", "principal"))
    }
    assert {name for name in suspected if fields[name].name not in USER_FIELDS} <= NO_USERS


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_about_named_users_name_one(method: str) -> None:
    named = bool(authorization.user_fields(METHODS[method].input_type))
    about = rule_of(method).about
    assert named or about is not About.NAMED_USERS, "it would be open to all users"
    assert not named or about is not About.NOBODY, "its users would go unchecked"


def with_user(message: Any, path: tuple[FieldDescriptor, ...], user_id: str) -> None:
    """Puts a user id where a path of fields leads."""
    field, *rest = path
    if not rest and field.message_type is None:
        if field.is_repeated:
            getattr(message, field.name).append(user_id)
        else:
            setattr(message, field.name, user_id)
        return
    part = getattr(message, field.name)
    with_user(part.add() if field.is_repeated else part, tuple(rest), user_id)


def paths(descriptor: Descriptor, seen: tuple[Descriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yields every way to a field for users, without going round in circles."""
    for field in descriptor.fields:
        if field.name in USER_FIELDS:
            yield (field,)
        elif field.message_type is not None and field.message_type not in seen:
            yield from ((field, *path) for path in paths(field.message_type, (*seen, descriptor)))


PLACES = [
    (method, path)
    for method in METHODS
    if rule_of(method).about is About.NAMED_USERS
    for path in paths(METHODS[method].input_type)
]


@pytest.mark.parametrize(
    ("method", "path"), PLACES, ids=lambda value: value if isinstance(value, str) else ".".join(f.name for f in value)
)
def test_a_foreign_user_is_found_wherever_it_stands(method: str, path: tuple[FieldDescriptor, ...]) -> None:
    request = message_factory.GetMessageClass(METHODS[method].input_type)()
    with_user(request, path, "bob")
    assert list(authorization.users_of(request)).count("bob") == 1
    with pytest.raises(UserNotAllowed):
        authorization.require_users(principal(scope=UserScope(users=frozenset({"ada"}))), request)
    authorization.require_users(principal(scope=UserScope(users=frozenset({"bob"}))), request)


def test_places_in_parts_are_among_those_tested() -> None:
    names = {(method.rpartition("/")[2], ".".join(field.name for field in path)) for method, path in PLACES}
    assert {
        ("ImportVectors", "user_id"),
        ("BatchSearchSimilar", "user_id"),
        ("BatchSearchSimilar", "searches.user_id"),
        ("UpdateVector", "memory.user_id"),
    } <= names


def test_one_foreign_user_among_many_is_enough() -> None:
    searches = [pb.SearchSimilarRequest(user_id="ada"), pb.SearchSimilarRequest(), pb.SearchSimilarRequest(user_id="b")]
    request = pb.BatchSearchSimilarRequest(user_id="ada", searches=searches)
    assert sorted(authorization.users_of(request)) == ["", "ada", "ada", "b"]
    with pytest.raises(UserNotAllowed):
        authorization.require_users(principal(scope=UserScope(users=frozenset({"ada"}))), request)
    del request.searches[2]
    authorization.require_users(principal(scope=UserScope(users=frozenset({"ada"}))), request)


def test_lists_of_users_and_messages_that_contain_themselves_are_read() -> None:
    request = tree_class()(user_id=["a", "b"])
    request.children.add(user_id=["c"]).children.add(user_id=["d"])
    assert sorted(authorization.users_of(request)) == ["a", "b", "c", "d"]


def tree_class() -> type[Any]:
    """Returns a message as the contract has none yet: Tree { repeated string user_id; repeated Tree children }."""
    file = descriptor_pb2.FileDescriptorProto(name="tree.proto", package="test", syntax="proto3")
    message = file.message_type.add(name="Tree")
    kinds = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="user_id", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_REPEATED)
    message.field.add(
        name="children", number=2, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED, type_name=".test.Tree"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Tree"))
    return found


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("role", Role)
def test_each_role_may_call_what_its_rule_says(method: str, role: Role) -> None:
    if role >= rule_of(method).role:
        authorization.require_role(principal(role), method)
        return
    with pytest.raises(RoleInsufficient) as caught:
        authorization.require_role(principal(role), method)
    assert caught.value.needed == rule_of(method).role.name.lower()


def test_what_changes_memories_needs_a_writer() -> None:
    changing = {name for name, method in METHODS.items() if changes(method)}
    assert len(changing) == 6
    assert all(rule_of(name).role is Role.WRITER for name in changing)


def changes(method: MethodDescriptor) -> bool:
    words = ("Insert", "Import", "Update", "Delete", "Restore")
    return method.containing_service.name == "MemoryService" and any(word in method.name for word in words)
