"""Scopes: which users a caller may ask for, and that a prefix never covers a sibling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.access.principal import EVERYONE, SEPARATORS, Role, UserScope

# Few characters, so that names which begin alike come up all the time.
NAMES = st.text("ab-/:_é\0", max_size=6)


@pytest.mark.parametrize(
    ("user_id", "covered"),
    [
        ("acme", True),
        ("acme/ada", True),
        ("acme:ada", True),
        ("acme/", True),
        ("acme/ada/cello", True),
        ("acme-corp", False),
        ("acme2", False),
        ("acme.ada", False),
        ("acm", False),
        ("Acme/ada", False),
        ("x/acme/ada", False),
        ("", False),
        ("acme\N{COMBINING ACUTE ACCENT}/ada", False),
        ("acme\N{DIVISION SLASH}ada", False),
    ],
)
def test_a_prefix_covers_itself_and_what_is_below(user_id: str, covered: bool) -> None:  # noqa: FBT001 - a parameter
    assert UserScope(prefixes=("acme",)).covers(user_id) is covered


@given(prefix=NAMES, user_id=NAMES)
def test_a_prefix_never_covers_a_sibling(prefix: str, user_id: str) -> None:
    covered = UserScope(prefixes=(prefix,)).covers(user_id)
    # Said another way than the code does: up to where the prefix ends, both are made of the same parts.
    ends_there = prefix.endswith(SEPARATORS) or user_id[len(prefix) :][:1] in {"", *SEPARATORS}
    assert covered == (prefix != "" and user_id[: len(prefix)] == prefix and ends_there)


@given(users=st.frozensets(NAMES, max_size=4), user_id=NAMES)
def test_users_are_taken_literally(users: frozenset[str], user_id: str) -> None:
    assert UserScope(users=users).covers(user_id) == (user_id in users)


@given(prefixes=st.lists(NAMES, max_size=4), users=st.frozensets(NAMES, max_size=4), user_id=NAMES)
def test_a_scope_is_the_union_of_its_parts(prefixes: list[str], users: frozenset[str], user_id: str) -> None:
    whole = UserScope(users=users, prefixes=tuple(prefixes))
    parts = [UserScope(users=users), *(UserScope(prefixes=(prefix,)) for prefix in prefixes)]
    assert whole.covers(user_id) == any(part.covers(user_id) for part in parts)


@given(user_id=NAMES)
def test_everyone_is_everyone_and_nobody_is_nobody(user_id: str) -> None:
    assert EVERYONE.covers(user_id)
    assert not UserScope().covers(user_id)


def test_roles_include_those_below() -> None:
    assert Role.READER < Role.WRITER < Role.ADMIN
