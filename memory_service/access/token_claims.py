"""What the claims of a token say about its bearer: a role, and the users it is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory_service.access.errors import CredentialsInvalid
from memory_service.access.principal import EVERYONE, Principal, Role, UserScope
from memory_service.settings.identity import IdentitySettings

MAX_SUBJECT_CHARACTERS = 255
MAX_LISTED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMapping:
    """Which claim says what; None: none does."""

    user: str | None
    prefix: str | None
    all_users: str | None
    role: str
    role_prefix: str
    default_role: Role | None

    def principal_of(self, claims: Mapping[str, Any]) -> Principal:
        """Returns the bearer of a token whose signature and times have been checked.

        Raises:
            CredentialsInvalid: When a claim is not what it is configured to be, or there is no role.
        """
        return Principal(subject=f"jwt:{_subject(claims)}", role=self._role(claims), scope=self._scope(claims))

    def _role(self, claims: Mapping[str, Any]) -> Role:
        value = _claim(claims, self.role)
        words = value.split() if isinstance(value, str) else value
        if words is None:
            words = []
        if not isinstance(words, list):
            raise CredentialsInvalid("the claim of the role is neither a text nor a list")
        roles = [role for role in Role if f"{self.role_prefix}{role.name.lower()}" in words]
        if roles:
            return max(roles)
        if self.default_role is None:
            raise CredentialsInvalid("no role")
        return self.default_role

    def _scope(self, claims: Mapping[str, Any]) -> UserScope:
        if self.all_users is not None and _claim(claims, self.all_users) is True:
            return EVERYONE
        return UserScope(
            users=frozenset(_texts(claims, self.user)), prefixes=tuple(filter(None, _texts(claims, self.prefix)))
        )


def claim_mapping(settings: IdentitySettings) -> ClaimMapping:
    """Returns which claim says what, as configured."""
    default = settings.jwt_default_role
    return ClaimMapping(
        user=None if settings.jwt_user_claim == "off" else settings.jwt_user_claim,
        prefix=settings.jwt_prefix_claim,
        all_users=settings.jwt_all_users_claim,
        role=settings.jwt_role_claim,
        role_prefix=settings.jwt_role_prefix,
        default_role=None if default == "none" else Role[default.upper()],
    )


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARACTERS or not subject.isprintable():
        raise CredentialsInvalid("the subject is empty, too long or not printable")
    return subject


def _texts(claims: Mapping[str, Any], name: str | None) -> list[str]:
    value = None if name is None else _claim(claims, name)
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > MAX_LISTED or not all(isinstance(text, str) for text in values):
        raise CredentialsInvalid("a claim of users is neither a text nor a list of texts")
    return values


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Returns a claim by its name, or by the path to it: A.b is b within A. None where there is none."""
    if name in claims:  # first, for names such as https://example.org/role
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
