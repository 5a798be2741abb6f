"""Failures to authenticate: counted by address, limited, and nobody's business whose credentials are good."""

from typing import Any

import pytest

from memory_service import config
from memory_service.access import failed_attempts
from memory_service.access.authenticator import CredentialAuthenticator
from memory_service.access.errors import CredentialsInvalid, CredentialsMissing, LimitExceeded
from memory_service.access.failed_attempts import LIMIT, FailedAttempts, address_of, create_failed_attempts
from memory_service.access.principal import DEVELOPER, Principal
from tests.clock import SecondsClock

GOOD, WRONG = ("msk_good", "msk_wrong")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:52110", "192.0.2.7"),
        ("ipv6:%5B2001:db8:0:1::7%5D:52110", "2001:db8:0:1::/64"),
        ("ipv6:[2001:db8:0:1:9:9:9:9]:1", "2001:db8:0:1::/64"),
        ("ipv6:%5B2001:db8:0:2::7%5D:52110", "2001:db8:0:2::/64"),
        ("ipv6:%5B::1%5D:1", "::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        # What a socket for both calls an address of IPv4: all of them are in one /64.
        ("ipv6:%5B::ffff:192.0.2.7%5D:52110", "192.0.2.7"),
        ("unix:/run/memory.sock", "unix"),
        ("unix:", "unix"),
        ("ipv4:odd", ""),
        ("", ""),
    ],
)
def test_a_peer_is_its_address_without_the_port(peer: str, address: str) -> None:
    assert address_of(peer) == address


def peer(number: int, port: int = 1) -> str:
    return f"ipv4:192.0.2.{number}:{port}"


def test_failures_are_limited_by_address_whatever_the_port() -> None:
    clock = SecondsClock()
    failures = FailedAttempts(rate_per_s=2, burst_s=1, clock=clock)
    for port in range(2):
        assert not failures.used_up(peer(1, port))
        failures.count(peer(1, port))
    assert failures.used_up(peer(1, 9))
    with pytest.raises(LimitExceeded) as caught:
        failures.count(peer(1, 9))
    assert caught.value.limit == LIMIT
    assert caught.value.retry_after_s == pytest.approx(0.5)
    failures.count(peer(2))
    clock.now += 0.5
    assert not failures.used_up(peer(1))
    failures.count(peer(1))


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_attempts, "MAX_ADDRESSES", 3)
    failures = FailedAttempts(rate_per_s=1, burst_s=1, clock=SecondsClock())
    for number in range(10):
        failures.count(peer(number))
    assert [number for number in range(10) if failures.used_up(peer(number))] == [7, 8, 9]


def test_processes_share_the_rate_and_0_sets_none() -> None:
    failures = create_failed_attempts(
        config.load(rate_limit_unauthenticated_per_peer=8, rate_limit_burst_s=1, workers=4)
    )
    assert failures is not None
    failures.count(peer(1))
    failures.count(peer(1))
    assert failures.used_up(peer(1))
    assert create_failed_attempts(config.load()) is not None
    assert create_failed_attempts(config.load(rate_limit_unauthenticated_per_peer=0)) is None


class Call:
    """What an authenticator sees of a call."""

    def __init__(self, credential: str | None, peer: str) -> None:
        self._credential = credential
        self._peer = peer

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Returns the credential, if there is one."""
        return [] if self._credential is None else [("api-key", self._credential)]

    def peer(self) -> str:
        """Returns where it comes from."""
        return self._peer


class Asked:
    """Lets the good key in, and notes whether others were suspect."""

    def __init__(self) -> None:
        self.suspect: list[bool] = []

    def __call__(self, credential: str, *, is_suspect: Any) -> Principal:
        """Returns somebody for the good key."""
        if credential == GOOD:
            return DEVELOPER
        self.suspect.append(is_suspect())
        raise CredentialsInvalid("unknown")


def test_good_credentials_are_let_in_whatever_their_neighbours_do() -> None:
    keys = Asked()
    failures = FailedAttempts(rate_per_s=1, burst_s=2, clock=SecondsClock())
    authenticate: Any = CredentialAuthenticator(keys=keys, tokens=None, failures=failures)
    for credential, expected in (
        (WRONG, CredentialsInvalid),
        (None, CredentialsMissing),
        (WRONG, LimitExceeded),
        (None, LimitExceeded),
        ("a.b.c", LimitExceeded),
    ):
        with pytest.raises(expected):
            authenticate(Call(credential, peer(1)))
        assert authenticate(Call(GOOD, peer(1))) is DEVELOPER
    with pytest.raises(CredentialsInvalid):
        authenticate(Call(WRONG, peer(2)))
    assert keys.suspect == [False, True, False]
    assert authenticate(Call(GOOD, peer(1))) is DEVELOPER


def test_without_a_limit_each_failure_is_told_as_it_is() -> None:
    authenticate: Any = CredentialAuthenticator(keys=Asked(), tokens=None)
    for _ in range(1_000):
        with pytest.raises(CredentialsInvalid):
            authenticate(Call(WRONG, peer(1)))
