"""Credentials in the metadata of a call, and API keys as they are written: what counts, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.api_keys import SecretDigest
from memory_service.access import api_key
from memory_service.access.credentials import credential_of
from memory_service.access.errors import CredentialsInvalid, CredentialsMissing

METADATA = st.lists(
    st.tuples(
        st.sampled_from(["authorization", "api-key", "authorization-bin", "x-request-id"]),
        st.one_of(st.text(max_size=40), st.binary(max_size=40), st.sampled_from(["Bearer " + "x" * 16_000])),
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer abc")],
        [("authorization", "bearer abc")],
        [("authorization", " BEARER   abc ")],
        [("api-key", "abc")],
        [("x-request-id", "1"), ("api-key", " abc")],
    ],
)
def test_one_credential_is_found(metadata: list[tuple[str, str | bytes]]) -> None:
    assert credential_of(metadata) == "abc"


def test_none_is_missing() -> None:
    with pytest.raises(CredentialsMissing):
        credential_of([("x-request-id", "1"), ("authorization-bin", b"abc")])


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic YWRhOmNlbGxv")],
        [("authorization", "abc")],
        [("authorization", "Bearer\tabc")],
        [("authorization", "")],
        [("authorization", "Bearer \N{LATIN SMALL LETTER E WITH ACUTE}")],
        [("api-key", b"abc")],
        [("authorization", "Bearer abc"), ("authorization", "Bearer abc")],
        [("authorization", "Bearer abc"), ("api-key", "abc")],
    ],
)
def test_others_are_invalid(metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(CredentialsInvalid):
        credential_of(metadata)


@given(METADATA)
def test_no_metadata_is_a_defect(metadata: list[tuple[str, str | bytes]]) -> None:
    try:
        credential = credential_of(metadata)
    except (CredentialsInvalid, CredentialsMissing):
        return
    assert credential.isascii()
    assert api_key.parse(credential) is None


def test_errors_say_nothing_of_what_was_sent() -> None:
    with pytest.raises(CredentialsInvalid) as caught:
        credential_of([("authorization", "Basic aGVsbG8=")])
    assert "aGVsbG8" not in str(caught.value) + caught.value.refusal


def test_a_new_key_is_read_again() -> None:
    key = api_key.new_key()
    assert re.fullmatch(r"msk_[0-9a-f]{16}_[0-9a-f]{64}", key.written())
    assert api_key.parse(key.written()) == key
    assert key.secret not in repr(key)
    assert api_key.new_key().secret != key.secret


@pytest.mark.parametrize("change", [str.upper, lambda w: w + "\n", lambda w: w[:-1], lambda w: w + "0", lambda _: ""])
def test_what_is_written_otherwise_is_no_key(change: object) -> None:
    assert callable(change)
    assert api_key.parse(change(api_key.new_key().written())) is None


def test_a_secret_is_recognized_and_not_stored() -> None:
    key, other = api_key.new_key(), api_key.new_key()
    stored = api_key.digest_of(key)
    assert api_key.matches(key, stored)
    assert not api_key.matches(other, stored)
    assert key.secret.encode() not in stored.salt + stored.digest
    assert bytes.fromhex(key.secret) not in stored.salt + stored.digest
    # Under another salt it is another digest: equal keys in two databases do not show.
    assert api_key.digest_of(key) != stored
    assert not api_key.matches(key, SecretDigest(salt=b"other", digest=stored.digest))
    assert not api_key.matches(key, api_key.NO_SECRET)
