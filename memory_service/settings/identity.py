"""How callers and the service prove who they are to each other: TLS, API keys, tokens."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

AuthMethods = Literal["off", "keys", "jwt", "keys,jwt"]
Environment = Literal["production", "development"]

# Signatures only. With HS*, whoever can check a token can make one; "none" is no signature.
TOKEN_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)


class IdentitySettings(BaseSettings):
    """TLS, authentication, and what kind of installation this is."""

    environment: Environment = Field(
        "production",
        description="`development`: without authentication, callers may do what administrators may, up to clearing "
        "the database.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file of the server's certificate, followed by those of its authorities but the root. Read "
        "anew when it changes. Unset: no TLS.",
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key, without a password.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of the authorities whose client certificates are let in; others are not, then. Unset: "
        "clients need no certificate.",
    )
    ops_tls: bool = Field(
        default=False,
        description="Use TLS on `ops_listen`, too. Kubernetes' gRPC probes cannot.",
    )
    auth: AuthMethods = Field(
        "off", description="What calls have to bring: an API key, a token (JWT), or either. `off`: nothing."
    )
    jwt_issuer: str | None = Field(None, description="The `iss` of tokens, exactly. Required for tokens.")
    jwt_audience: str | None = Field(None, description="What the `aud` of tokens is or includes. Required for tokens.")
    jwt_jwks_url: str | None = Field(
        None,
        description="Where the issuer publishes its keys (JWKS). Unset: what its /.well-known/openid-configuration "
        "says.",
    )
    jwt_algorithms: str = Field(
        "RS256,ES256,EdDSA",
        description=f"Signatures that tokens may have, with commas: of {', '.join(TOKEN_ALGORITHMS)}.",
    )
    jwt_leeway_s: float = Field(
        30.0, ge=0, le=300, description="How far the issuer's clock may be from this one's when times are checked."
    )
    jwt_user_claim: str = Field(
        "sub",
        description="The claim that names the user, or a list of users, a token is for. `off`: none does.",
    )
    jwt_prefix_claim: str | None = Field(
        None, description="The claim that lists prefixes of users: acme is for acme, acme/ada and acme:ada."
    )
    jwt_all_users_claim: str | None = Field(
        None, description="The claim that is true in tokens for all users. Unset: none are."
    )
    jwt_role_claim: str = Field(
        "role",
        description="The claim with the role (reader, writer, admin), a list of which the highest counts, or words "
        "with spaces. A.b is b within A.",
    )
    jwt_role_prefix: str = Field(
        "", description="What precedes the role in that claim, such as `memory:` in memory:writer."
    )
    jwt_default_role: Literal["none", "reader", "writer"] = Field(
        "none", description="Role of tokens that name none. `none`: they are refused."
    )
    jwt_max_key_age_s: float = Field(
        3_600.0,
        ge=300,
        le=604_800,
        description="How long keys are trusted that cannot be fetched again; after that, tokens are UNAVAILABLE.",
    )

    @field_validator("jwt_algorithms")
    @classmethod
    def _algorithms_are_known(cls, value: str) -> str:
        names = split_list(value)
        unknown = [name for name in names if name not in TOKEN_ALGORITHMS]
        if unknown or not names:
            raise ValueError(f"has to be of {', '.join(TOKEN_ALGORITHMS)}")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _url_is_safe(cls, value: str | None) -> str | None:
        if value is not None and not is_safe_url(value):
            raise ValueError("is not an https:// address; http:// is for this machine only")
        return value

    def identity_problems(self) -> Iterator[str]:
        """Yields what of these settings does not go together."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "MEMORY_TLS_CERTIFICATE and MEMORY_TLS_KEY need each other"
        if self.tls_client_ca is not None and self.tls_certificate is None:
            yield "MEMORY_TLS_CLIENT_CA is set without MEMORY_TLS_CERTIFICATE"
        if self.ops_tls and self.tls_certificate is None:
            yield "MEMORY_OPS_TLS is set without MEMORY_TLS_CERTIFICATE"
        if self.accepts_tokens:
            yield from self._token_problems()

    def _token_problems(self) -> Iterator[str]:
        for name in ("jwt_issuer", "jwt_audience"):
            if getattr(self, name) is None:
                yield f"MEMORY_{name.upper()} is required with MEMORY_AUTH={self.auth}"
        if self.jwt_jwks_url is None and self.jwt_issuer is not None and not is_safe_url(self.jwt_issuer):
            yield "MEMORY_JWT_JWKS_URL is required where MEMORY_JWT_ISSUER is not an https:// address"

    @property
    def accepts_keys(self) -> bool:
        """Whether calls may bring an API key."""
        return "keys" in self.auth.split(",")

    @property
    def accepts_tokens(self) -> bool:
        """Whether calls may bring a JWT."""
        return "jwt" in self.auth.split(",")


def split_list(value: str) -> list[str]:
    """Returns the words of a list with commas."""
    return [word.strip() for word in value.split(",") if word.strip()]


def is_safe_url(url: str) -> bool:
    """Whether nobody on the way can change what is fetched from there."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is not one, a broken IPv6 address
        return False
    if not host or port == 0:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host, by name or number, is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
