"""Tokens: which are let in and as whom, and all the ways in which one is not good enough."""

import base64
import itertools
import json
import threading
import time
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from memory_service.access import token_keys
from memory_service.access.errors import CredentialsInvalid, TokenKeysUnavailable
from memory_service.access.jwks_source import FetchFailed
from memory_service.access.principal import EVERYONE, Principal, Role, UserScope
from memory_service.access.token_authenticator import TokenAuthenticator, TokenRules
from memory_service.access.token_claims import ClaimMapping
from memory_service.access.token_keys import TokenKeys
from memory_service.settings.identity import TOKEN_ALGORITHMS
from tests.access.jwks_server import AUDIENCE, Issuer

HOUR = 3_600
CLAIMS = ClaimMapping(
    user="sub", prefix="tenants", all_users="everybody", role="role", role_prefix="", default_role=None
)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """An issuer whose keys are had without asking for them over the network."""
    issuer = Issuer("issuer.invalid")
    for algorithm in ("RS256", "PS256", "ES384", "EdDSA"):
        issuer.add(algorithm, algorithm)
    return issuer


@pytest.fixture
def tokens(issuer: Issuer) -> TokenAuthenticator:
    """Checks tokens of that issuer."""
    return authenticator(issuer)


def authenticator(issuer: Issuer, claims: ClaimMapping = CLAIMS) -> TokenAuthenticator:
    rules = TokenRules(issuer=issuer.url, audience=AUDIENCE, algorithms=TOKEN_ALGORITHMS, leeway_s=30.0)
    return TokenAuthenticator(keys_of(issuer.published), rules, claims)


def keys_of(fetch: Any, **options: Any) -> TokenKeys:
    return TokenKeys(fetch, **{"algorithms": TOKEN_ALGORITHMS, "max_age_s": 3_600.0, **options})


def refusal_of(tokens: TokenAuthenticator, token: str) -> str:
    with pytest.raises(CredentialsInvalid) as caught:
        tokens.principal_of(token)
    assert str(caught.value) == "the API key or token is not valid"
    return caught.value.refusal


@pytest.mark.parametrize("key_id", ["first", "RS256", "PS256", "ES384", "EdDSA"])
def test_a_good_token_tells_who_calls(issuer: Issuer, tokens: TokenAuthenticator, key_id: str) -> None:
    principal = tokens.principal_of(issuer.sign(key_id=key_id))
    assert principal == Principal(subject="jwt:ada", role=Role.WRITER, scope=UserScope(users=frozenset({"ada"})))


NOW = int(time.time())


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW - 60},
        {"exp": None},
        {"exp": "soon"},
        {"exp": []},
        {"exp": {}},
        {"exp": True},
        {"exp": float("nan")},
        {"nbf": NOW + HOUR},
        {"nbf": float("inf")},
        {"nbf": []},
        {"iat": NOW + HOUR},
        {"iat": {}},
        {"iss": None},
        {"iss": "https://another.example"},
        {"iss": "http://issuer.invalid/"},
        {"iss": ["http://issuer.invalid"]},
        {"aud": None},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": {"memory-service": 1}},
        {"aud": []},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 256},
        {"sub": "line\nbreak"},
        {"role": None},
        {"role": "owner"},
        {"role": 3},
        {"role": {"writer": True}},
        {"tenants": 7},
        {"tenants": [7]},
        {"tenants": ["x"] * 1_001},
    ],
    ids=itertools.count(),  # the times among them differ from process to process
)
def test_a_token_that_says_otherwise_is_refused(
    issuer: Issuer, tokens: TokenAuthenticator, claims: dict[str, Any]
) -> None:
    assert refusal_of(tokens, raw(issuer, issuer.claims(**claims)))


def raw(issuer: Issuer, claims: Any, **header: Any) -> str:
    """Returns a signed token of claims that the library would not encode."""
    algorithm, key = issuer.keys["first"]
    return jwt.api_jws.encode(json.dumps(claims).encode(), key, algorithm=algorithm, headers={"kid": "first", **header})


@pytest.mark.parametrize(("claim", "offset_s"), [("exp", -20), ("nbf", 20), ("iat", 20)])
def test_clocks_may_differ_a_little(issuer: Issuer, tokens: TokenAuthenticator, claim: str, offset_s: int) -> None:
    token = issuer.sign({claim: int(time.time()) + offset_s})
    assert tokens.principal_of(token).subject == "jwt:ada"


@pytest.mark.parametrize("exp", [10**400, NOW + 1e300, str(NOW + HOUR)], ids=["no float holds it", "far", "text"])
def test_a_time_may_be_written_in_any_way(issuer: Issuer, tokens: TokenAuthenticator, exp: Any) -> None:
    token = raw(issuer, issuer.claims(exp=exp))
    assert tokens.principal_of(token).subject == tokens.principal_of(token).subject == "jwt:ada"


def test_audiences_may_be_many(issuer: Issuer, tokens: TokenAuthenticator) -> None:
    assert tokens.principal_of(issuer.sign(aud=["another", AUDIENCE])).subject == "jwt:ada"


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def unsigned(issuer: Issuer, algorithm: str) -> str:
    return f"{encoded({'alg': algorithm, 'kid': 'first'})}.{encoded(issuer.claims())}."


def symmetric(issuer: Issuer) -> str:
    """Returns a token signed with what everybody knows: the public key, as if it were a shared secret."""
    _, key = issuer.keys["RS256"]
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    header, payload = encoded({"alg": "HS256", "kid": "RS256"}), encoded(issuer.claims())
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        f"{header}.{payload}".encode(), public
    )
    return f"{header}.{payload}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def foreign(issuer: Issuer) -> str:
    """Returns a token of somebody else who uses the same key id."""
    other = Issuer("issuer.invalid")
    return other.sign(issuer.claims())


def test_signatures_are_what_counts(issuer: Issuer, tokens: TokenAuthenticator) -> None:
    good = issuer.sign()
    header, payload, signature = good.split(".")
    claims = {**issuer.claims(), "role": "admin"}
    forgeries = [
        unsigned(issuer, "none"),
        unsigned(issuer, "None"),
        unsigned(issuer, "ES256"),
        symmetric(issuer),
        foreign(issuer),
        f"{header}.{encoded(claims)}.{signature}",
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload}.",
        # The right key, for another algorithm than its own.
        raw(issuer, issuer.claims(), kid="RS256"),
        f"{encoded({'alg': 'ES384', 'kid': 'first'})}.{payload}.{signature}",
        raw(issuer, issuer.claims(), crit=["exp"]),
        raw(issuer, issuer.claims(), crit=["b64"], b64=False),
    ]
    for forgery in forgeries:
        refusal_of(tokens, forgery)
    # Whatever the header says of where its key is to be found.
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    for where in ({"jwk": own}, {"jku": "https://evil.example/keys"}, {"x5u": "https://evil.example/cert"}):
        refusal_of(tokens, jwt.encode(issuer.claims(), key, algorithm="RS256", headers={"kid": "mine", **where}))
    assert tokens.principal_of(good).role is Role.WRITER


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "e30.e30.",
        "x" * 16_000,
        "." * 16_000,
        f"{encoded([])}.e30.AA",
        f"{encoded({'alg': 7})}.e30.AA",
        f"{encoded({'alg': 'ES256', 'kid': 7})}.e30.AA",
        f"{encoded({'alg': 'ES256', 'kid': []})}.e30.AA",
        f"{base64.urlsafe_b64encode(b'[' * 9_000).decode()}.e30.AA",
        f"{base64.urlsafe_b64encode(b'{' + b'1' * 9_000).decode()}.e30.AA",
    ],
    ids=lambda token: token[:20],
)
def test_junk_is_refused(tokens: TokenAuthenticator, token: str) -> None:
    assert refusal_of(tokens, token)


@cache
def any_authenticator() -> TokenAuthenticator:
    """Returns one for all examples: making keys takes longer than refusing tokens."""
    return authenticator(Issuer("issuer.invalid"))


@given(st.text(st.characters(max_codepoint=127), max_size=60), st.binary(max_size=40), st.binary(max_size=40))
def test_no_text_is_a_defect(text: str, header: bytes, payload: bytes) -> None:
    tokens = any_authenticator()
    parts = [base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (header, payload)]
    for token in (text, ".".join([*parts, "AA"])):
        with pytest.raises(CredentialsInvalid):
            tokens.principal_of(token)


def test_a_checked_token_is_recognized_until_it_expires(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, token = authenticator(issuer), issuer.sign()
    first = tokens.principal_of(token)
    with monkeypatch.context() as patch:
        patch.setattr(jwt, "decode", None)
        assert tokens.principal_of(token) is first
        assert refusal_of(tokens, issuer.sign(jti="2")) == "token refused: TypeError"  # one that has to be checked
    monkeypatch.setattr(time, "time", lambda: NOW + 2 * HOUR)
    monkeypatch.setattr("jwt.api_jwt.datetime", _Later)
    assert refusal_of(tokens, token) == "token refused: ExpiredSignatureError"


class _Later(datetime):
    """datetime for the library, two hours later."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Later":
        """Returns the time."""
        return cls.fromtimestamp(NOW + 2 * HOUR, tz or UTC)


@pytest.mark.parametrize(
    ("mapping", "claims", "expected"),
    [
        ({}, {"role": "reader"}, Role.READER),
        ({}, {"role": ["reader", "admin", "x"]}, Role.ADMIN),
        ({}, {"role": "openid writer reader"}, Role.WRITER),
        ({"default_role": Role.READER}, {}, Role.READER),
        ({"role": "scope", "role_prefix": "memory:"}, {"scope": "openid memory:writer"}, Role.WRITER),
        ({"role": "realm_access.roles"}, {"realm_access": {"roles": ["admin"]}}, Role.ADMIN),
        ({"role": "https://a.example/role"}, {"https://a.example/role": "reader"}, Role.READER),
        ({"role": "scope", "role_prefix": "memory:"}, {"scope": "writer"}, None),
        ({"role": "realm_access.roles"}, {"realm_access": "admin"}, None),
        ({}, {"role": "Admin"}, None),
    ],
    ids=itertools.count(),  # what stands in them differs from process to process
)
def test_roles_are_read_as_configured(mapping: Any, claims: Any, expected: Role | None) -> None:
    claims = {"sub": "ada", **claims}
    configured = ClaimMapping(**{**fields_of(CLAIMS), **mapping})
    if expected is None:
        with pytest.raises(CredentialsInvalid):
            configured.principal_of(claims)
        return
    assert configured.principal_of(claims).role is expected


def fields_of(mapping: ClaimMapping) -> dict[str, Any]:
    return {name: getattr(mapping, name) for name in ClaimMapping.__dataclass_fields__}


@pytest.mark.parametrize(
    ("mapping", "claims", "expected"),
    [
        ({}, {}, UserScope(users=frozenset({"ada"}))),
        ({"user": None}, {}, UserScope()),
        ({"user": "users"}, {"users": ["a", "b"]}, UserScope(users=frozenset({"a", "b"}))),
        ({}, {"tenants": ["acme", ""]}, UserScope(users=frozenset({"ada"}), prefixes=("acme",))),
        ({}, {"everybody": True}, EVERYONE),
        ({}, {"everybody": "true"}, UserScope(users=frozenset({"ada"}))),
        ({}, {"everybody": 1}, UserScope(users=frozenset({"ada"}))),
        ({"all_users": None}, {"everybody": True}, UserScope(users=frozenset({"ada"}))),
    ],
    ids=itertools.count(),  # what stands in them differs from process to process
)
def test_users_are_read_as_configured(mapping: Any, claims: Any, expected: UserScope) -> None:
    configured = ClaimMapping(**{**fields_of(CLAIMS), **mapping})
    assert configured.principal_of({"sub": "ada", "role": "reader", **claims}).scope == expected


class Fetching:
    """Returns keys, or fails, and counts."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.count = 0
        self.fails = False

    def __call__(self) -> list[Any]:
        """Returns the issuer's keys."""
        self.count += 1
        if self.fails:
            raise FetchFailed("away")
        return list(self.issuer.published())


@pytest.fixture
def fetching() -> Fetching:
    """Fetches the keys of an issuer of the test's own."""
    return Fetching(Issuer("issuer.invalid"))


@pytest.fixture
def without_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets keys be fetched again at once."""
    monkeypatch.setattr(token_keys, "MIN_INTERVAL_S", 0.0)


def test_a_new_key_is_fetched_when_a_token_names_it(fetching: Fetching, without_interval: None) -> None:
    del without_interval
    keys = keys_of(fetching)
    keys.find("first", "ES256")
    fetching.issuer.add("second", "ES256")
    keys.find("second", "ES256")
    keys.find("first", "ES256")
    assert fetching.count == 2


def test_unknown_keys_are_not_asked_for_again_and_again(fetching: Fetching) -> None:
    keys = keys_of(fetching)
    keys.find("first", "ES256")
    for number in range(100):
        with pytest.raises(CredentialsInvalid):
            keys.find(f"unknown {number}", "ES256")
    assert fetching.count == 1


def test_a_withdrawn_key_ends_the_tokens_signed_with_it(
    fetching: Fetching, without_interval: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del without_interval
    issuer = fetching.issuer
    keys = keys_of(fetching)
    rules = TokenRules(issuer=issuer.url, audience=AUDIENCE, algorithms=TOKEN_ALGORITHMS, leeway_s=30.0)
    tokens = TokenAuthenticator(keys, rules, CLAIMS)
    token = issuer.sign()
    tokens.principal_of(token)
    del issuer.keys["first"]
    issuer.add("second", "ES256")
    tokens.principal_of(token)
    monkeypatch.setattr(token_keys, "REFRESH_S", 0.0)
    keys.refresh()
    assert refusal_of(tokens, token) == "unknown signing key"
    tokens.principal_of(issuer.sign(key_id="second"))


def test_an_issuer_that_is_away_does_not_end_what_is_known(
    fetching: Fetching, without_interval: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del without_interval
    keys = keys_of(fetching, max_age_s=100.0)
    keys.find("first", "ES256")
    fetching.fails = True
    monkeypatch.setattr(token_keys, "REFRESH_S", 0.0)
    keys.refresh()
    keys.find("first", "ES256")
    # It may be a new one.
    with pytest.raises(TokenKeysUnavailable):
        keys.find("second", "ES256")
    monkeypatch.setattr(keys, "_max_age_s", -1.0)
    assert keys.trusted() is None
    with pytest.raises(TokenKeysUnavailable):
        keys.find("first", "ES256")
    fetching.fails = False
    monkeypatch.setattr(keys, "_max_age_s", 100.0)
    keys.refresh()
    keys.find("first", "ES256")


def test_calls_wait_for_another_ones_fetch_only_for_a_while(
    fetching: Fetching, without_interval: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del without_interval
    monkeypatch.setattr(token_keys, "MAX_WAIT_S", 0.05)
    entered, released = threading.Event(), threading.Event()

    def hang() -> list[Any]:
        entered.set()
        released.wait(10)
        return fetching()

    keys = keys_of(hang)
    refreshing = threading.Thread(target=keys.refresh)
    refreshing.start()
    assert entered.wait(5)
    with pytest.raises(TokenKeysUnavailable):
        keys.find("first", "ES256")
    released.set()
    refreshing.join()
    keys.find("first", "ES256")


def test_one_that_was_never_there_is_unavailable(fetching: Fetching) -> None:
    fetching.fails = True
    keys = keys_of(fetching)
    for _ in range(3):
        with pytest.raises(TokenKeysUnavailable):
            keys.find("first", "ES256")
        keys.refresh()  # as its own thread does, which shares the interval with calls
    assert fetching.count == 1


def test_keys_are_taken_for_what_they_are_for() -> None:
    short = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)  # noqa: S505 - to be refused
    issuer = Issuer("issuer.invalid")
    issuer.add("rsa", "RS256")
    good, of_rsa = issuer.published()
    published = [
        "no key",
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"},
        {**good, "kid": "encrypting", "use": "enc"},
        {**good, "kid": "claims to be RSA", "alg": "RS256"},
        {**good, "kid": 7},
        {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(short.public_key())), "kid": "short"},
        {name: value for name, value in of_rsa.items() if name != "alg"},
        good,
    ]
    found = keys_of(lambda: published).fetched().keys
    assert {key_id for key_id, _ in found} == {"first", "rsa"}
    assert {algorithm for key_id, algorithm in found if key_id == "rsa"} == {
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
    }
    assert keys_of(lambda: published, algorithms=["ES256"]).fetched().keys.keys() == {("first", "ES256")}
    with pytest.raises(FetchFailed):
        keys_of(lambda: published[:5]).fetched()


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256", "EdDSA"])
def test_a_private_key_that_is_published_is_not_trusted(algorithm: str) -> None:
    kinds: dict[str, Any] = {"ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    issuer = Issuer("issuer.invalid")
    issuer.add("leaked", algorithm)
    _, key = issuer.keys["leaked"]
    described = json.loads(kinds.get(algorithm, RSAAlgorithm).to_jwk(key))
    assert "d" in described
    keys = keys_of(lambda: [{**described, "kid": "leaked"}, *issuer.published()[:1]]).fetched().keys
    assert {key_id for key_id, _ in keys} == {"first"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = ("kty", "crv", "x", "y", "n", "e", "d", "k", "kid", "alg", "use", "p", "q", "oth")


@given(
    st.sampled_from(["ES256", "RS256", "EdDSA"]),
    st.dictionaries(st.sampled_from(MEMBERS), JSON | st.sampled_from(["RSA", "EC", "OKP", "AQAB", "sig"]), max_size=4),
    JSON,
)
def test_no_published_key_is_a_defect(algorithm: str, changed: dict[str, Any], beside: Any) -> None:
    [good] = published_with(algorithm)
    usable = keys_of(lambda: [{**good, **changed}, beside, {**good, "kid": "good"}]).fetched().keys
    assert ("good", algorithm) in usable


@cache
def published_with(algorithm: str) -> list[dict[str, Any]]:
    """Returns what an issuer of one key publishes."""
    issuer = Issuer("issuer.invalid")
    issuer.keys.clear()
    issuer.add("only", algorithm)
    return issuer.published()


def test_a_token_without_a_key_id_is_of_the_only_key() -> None:
    issuer = Issuer("issuer.invalid")
    token = jwt.encode(issuer.claims(), issuer.keys["first"][1], algorithm="ES256")
    assert authenticator(issuer).principal_of(token).subject == "jwt:ada"
    issuer.add("second", "ES256")
    refusal_of(authenticator(issuer), token)
