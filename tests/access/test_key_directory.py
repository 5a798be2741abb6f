"""API keys in a database: found, cached, revoked, expired, rotated, noted as used; and nothing of it in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from unittest.mock import patch

import pytest

from db import api_keys
from db.api_keys import ApiKey, NewApiKey
from db.connection import Connection
from db.errors import DatabaseUnavailable, InvalidValue, PoolExhausted
from db.pool import Database, PoolOptions
from db.wall import ACROSS_USERS
from memory_service.access import api_key, key_directory
from memory_service.access.api_key import WrittenKey
from memory_service.access.errors import CredentialsInvalid
from memory_service.access.key_authenticator import KeyAuthenticator
from memory_service.access.key_directory import KeyDirectory
from memory_service.access.principal import EVERYONE, Role, UserScope

HOUR = timedelta(hours=1)
T = TypeVar("T")


class Clock:
    """Tells a time of the test's choice."""

    def __init__(self) -> None:
        self.now = datetime(2026, 6, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Returns it."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the test."""
    return Clock()


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    """A pool over a migrated database."""
    with closing(Database(module_database_url, PoolOptions(min_size=1, max_size=2))) as database:
        database.open()
        yield database


@pytest.fixture
def directory(database: Database) -> KeyDirectory:
    """A directory whose thread does not run: `refresh` is called by the test."""
    return KeyDirectory(database)


@pytest.fixture
def keys(directory: KeyDirectory, clock: Clock) -> KeyAuthenticator:
    """Checks keys."""
    return KeyAuthenticator(directory, clock=clock)


def read(database: Database, query: Callable[[Connection], T]) -> T:
    return database.read(database.call(), query, user_id=ACROSS_USERS)


def write(database: Database, change: Callable[[Connection], T]) -> T:
    return database.write(database.call(), change, user_id=ACROSS_USERS)


def make(database: Database, clock: Clock, **fields: Any) -> WrittenKey:
    key = api_key.new_key()
    new = NewApiKey(**{"id": key.id, "name": "test", "role": "reader", "everyone": True, **fields})
    write(database, lambda conn: api_keys.insert(conn, new, api_key.digest_of(key), now=clock()))
    return key


def stored(database: Database, key: WrittenKey) -> ApiKey:
    return read(database, lambda conn: api_keys.read(conn, [key.id]))[key.id]


def revoke(database: Database, key: WrittenKey, clock: Clock) -> bool:
    return write(database, lambda conn: api_keys.revoke(conn, key.id, now=clock()))


def refusal_of(keys: KeyAuthenticator, key: WrittenKey) -> str:
    with pytest.raises(CredentialsInvalid) as caught:
        keys.principal_of(key.written())
    assert caught.value.subject == f"key:{key.id}"
    assert key.secret not in str(caught.value) + caught.value.refusal
    return caught.value.refusal


def test_a_key_tells_who_calls(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    key = make(database, clock, role="writer", everyone=False, users=("ada",), prefixes=("acme",))
    principal = keys.principal_of(key.written())
    assert (principal.subject, principal.role) == (f"key:{key.id}", Role.WRITER)
    assert principal.scope == UserScope(users=frozenset({"ada"}), prefixes=("acme",))
    assert keys.principal_of(make(database, clock).written()).scope == EVERYONE


def test_what_is_no_key_is_refused_alike(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    key = make(database, clock)
    assert refusal_of(keys, api_key.new_key()) == "unknown"
    assert refusal_of(keys, api_key.with_new_secret(key.id)) == "wrong secret"
    with pytest.raises(CredentialsInvalid, match="not valid"):
        keys.principal_of("msk_nonsense")
    keys.principal_of(key.written())
    assert refusal_of(keys, api_key.with_new_secret(key.id)) == "wrong secret"


def test_a_known_key_needs_no_database(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    key = make(database, clock)
    keys.principal_of(key.written())
    with patch.object(Database, "read", side_effect=AssertionError):
        assert keys.principal_of(key.written()).subject == f"key:{key.id}"


def test_a_wrong_key_sent_again_needs_none_either(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    unknown, wrong = api_key.new_key(), api_key.with_new_secret(make(database, clock).id)
    refusals = [refusal_of(keys, unknown), refusal_of(keys, wrong)]
    with patch.object(Database, "read", side_effect=AssertionError):
        assert [refusal_of(keys, unknown), refusal_of(keys, wrong)] == refusals


def test_a_revoked_key_ends_with_the_next_refresh(
    database: Database, directory: KeyDirectory, keys: KeyAuthenticator, clock: Clock
) -> None:
    key = make(database, clock)
    keys.principal_of(key.written())
    assert revoke(database, key, clock)
    directory.refresh()
    assert refusal_of(keys, key) == "revoked"
    first = stored(database, key).revoked_at
    clock.now += HOUR
    assert revoke(database, key, clock)
    assert stored(database, key).revoked_at == first
    assert not revoke(database, api_key.new_key(), clock)


def test_a_deleted_key_is_unknown(
    database: Database, directory: KeyDirectory, keys: KeyAuthenticator, clock: Clock
) -> None:
    key = make(database, clock)
    keys.principal_of(key.written())
    write(database, lambda conn: conn.execute("DELETE FROM api_keys WHERE id = %s", [key.id]))
    directory.refresh()
    assert refusal_of(keys, key) == "unknown"


def test_a_key_expires(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    key = make(database, clock, expires_at=clock() + HOUR)
    keys.principal_of(key.written())
    clock.now += HOUR
    assert refusal_of(keys, key) == "expired"


def test_a_rotated_key_has_two_secrets_for_a_while(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    key = make(database, clock)
    keys.principal_of(key.written())
    new = api_key.with_new_secret(key.id)
    until = clock() + HOUR
    assert write(
        database,
        lambda conn: api_keys.rotate(conn, key.id, api_key.digest_of(new), previous_valid_until=until, now=clock()),
    )
    # At once, although the key is known with its former secret only.
    assert keys.principal_of(new.written()) == keys.principal_of(key.written())
    clock.now = until
    assert refusal_of(keys, key) == "wrong secret"
    assert keys.principal_of(new.written()).subject == f"key:{key.id}"


def test_neither_revoked_nor_unknown_keys_are_rotated(database: Database, clock: Clock) -> None:
    key = make(database, clock)
    revoke(database, key, clock)
    for key_id in (key.id, api_key.new_key().id):
        secret = api_key.digest_of(api_key.with_new_secret(key_id))
        assert not write(
            database,
            lambda conn, key_id=key_id, secret=secret: api_keys.rotate(  # type: ignore[misc]  # cannot infer a lambda
                conn, key_id, secret, previous_valid_until=clock(), now=clock()
            ),
        )


def test_uses_are_written_later_and_once_a_minute(
    database: Database, directory: KeyDirectory, keys: KeyAuthenticator, clock: Clock
) -> None:
    key = make(database, clock)
    for _ in range(3):
        keys.principal_of(key.written())
    assert stored(database, key).last_used_at is None
    directory.refresh()
    first = stored(database, key).last_used_at
    assert first == clock()
    clock.now += timedelta(seconds=59)
    keys.principal_of(key.written())
    directory.refresh()
    assert stored(database, key).last_used_at == first
    clock.now += timedelta(seconds=1)
    keys.principal_of(key.written())
    directory.refresh()
    assert stored(database, key).last_used_at == clock()


def test_uses_that_could_not_be_written_are_kept(
    database: Database, directory: KeyDirectory, keys: KeyAuthenticator, clock: Clock
) -> None:
    key = make(database, clock)
    keys.principal_of(key.written())
    with patch.object(Database, "write", side_effect=DatabaseUnavailable), pytest.raises(DatabaseUnavailable):
        directory.refresh()
    directory.refresh()
    assert stored(database, key).last_used_at == clock()


def test_a_database_that_is_away_ends_trust_in_known_keys(
    database: Database, keys: KeyAuthenticator, clock: Clock
) -> None:
    key = make(database, clock)
    keys.principal_of(key.written())
    with patch.object(Database, "read", side_effect=DatabaseUnavailable):
        keys.principal_of(key.written())
        with (
            patch.object(key_directory, "MAX_AGE_S", -1.0),
            pytest.raises(DatabaseUnavailable),
        ):
            keys.principal_of(key.written())


def test_keys_that_nobody_uses_are_forgotten(database: Database, directory: KeyDirectory, clock: Clock) -> None:
    key = make(database, clock)
    directory.read(key.id)
    with patch.object(key_directory, "FORGET_AFTER_S", -1.0):
        directory.refresh()
    assert directory.known(key.id) is None


def test_known_keys_are_bounded(database: Database, directory: KeyDirectory, clock: Clock) -> None:
    keys = [make(database, clock) for _ in range(3)]
    with patch.object(key_directory, "MAX_KEYS", 2):
        for key in keys:
            directory.read(key.id)
    assert [directory.known(key.id) is not None for key in keys] == [False, True, True]


def test_a_flood_of_unknown_keys_takes_two_connections(directory: KeyDirectory) -> None:
    with patch.object(key_directory, "READ_TIMEOUT_S", 0.05):
        held = [directory._reads.acquire() for _ in range(key_directory.CONCURRENT_READS)]  # noqa: SLF001 - as calls do
        assert all(held)
        with pytest.raises(PoolExhausted):
            directory.read(api_key.new_key().id)
        directory._reads.release()  # noqa: SLF001 - likewise
        assert directory.read(api_key.new_key().id) is None


def test_suspects_have_one_connection_together_and_keep_nobody_else_waiting(
    database: Database, directory: KeyDirectory, clock: Clock
) -> None:
    key = make(database, clock)
    with patch.object(key_directory, "SUSPECT_WAIT_S", 0.05):
        assert directory._suspect_reads.acquire()  # noqa: SLF001 - as calls do
        with pytest.raises(PoolExhausted):
            directory.read(key.id, suspect=True)
        assert directory.read(key.id) is not None
        directory._suspect_reads.release()  # noqa: SLF001 - likewise
        assert directory.read(key.id, suspect=True) is not None


def test_a_suspect_is_let_in_with_a_good_key(database: Database, keys: KeyAuthenticator, clock: Clock) -> None:
    key = make(database, clock)
    asked: list[bool] = []

    def suspect() -> bool:
        asked.append(True)
        return True

    for _ in range(3):
        assert keys.principal_of(key.written(), is_suspect=suspect).subject == f"key:{key.id}"
    assert len(asked) == 1  # once it is known, nobody asks


def test_the_thread_refreshes_by_itself_and_writes_uses_at_the_end(database: Database, clock: Clock) -> None:
    with patch.object(key_directory, "REFRESH_S", 0.05):
        directory = KeyDirectory(database)
    directory.start()
    keys = KeyAuthenticator(directory, clock=clock)
    key, last = make(database, clock), make(database, clock)
    keys.principal_of(key.written())
    revoke(database, key, clock)
    deadline = time.monotonic() + 5
    while (known := directory.known(key.id)) is not None and known.key.revoked_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    keys.principal_of(last.written())
    directory.close()
    assert stored(database, last).last_used_at == clock()


def test_pages_are_newest_first_and_complete(new_database: Any, clock: Clock) -> None:
    with closing(Database(new_database(), PoolOptions(min_size=1, max_size=1))) as database:
        database.open()
        made = []
        for number in range(5):
            clock.now += timedelta(seconds=number % 2)  # some at the same instant
            made.append(make(database, clock))
        found: list[ApiKey] = []

        def next_page(conn: Connection) -> list[ApiKey]:
            return api_keys.read_page(conn, limit=2, after=found[-1] if found else None)

        while page := read(database, next_page):
            found += page
        assert [key.created_at for key in found] == sorted((key.created_at for key in found), reverse=True)
        assert {key.id for key in found} == {key.id for key in made}
        assert len(found) == 5
        assert all(key.secrets[0].digest.hex() not in repr(key) for key in found)


@pytest.mark.parametrize(
    "fields", [{"everyone": True, "users": ("ada",)}, {"everyone": False}, {"role": "owner"}], ids=str
)
def test_the_database_refuses_a_key_that_is_for_nobody_or_for_all_by_mistake(
    database: Database, clock: Clock, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidValue):
        make(database, clock, **fields)
