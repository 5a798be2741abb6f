"""What PostgreSQL's and psycopg's errors become, and that none of their text gets through."""

import psycopg
import pytest

from db import errors, sqlstate

QUOTED = 'relation "hush" postgresql://me:hush@host SELECT content'


def refusal(state: str) -> psycopg.Error:
    """Returns the error that psycopg raises for a SQLSTATE."""
    try:
        kind = psycopg.errors.lookup(state)
    except KeyError:
        kind = psycopg.DatabaseError
    error = kind(QUOTED)
    error.sqlstate = state
    return error


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08000", errors.DatabaseUnavailable),
        ("08006", errors.DatabaseUnavailable),
        ("22003", errors.InvalidValue),
        ("22021", errors.InvalidValue),
        ("22P05", errors.InvalidValue),
        ("23503", errors.Conflict),
        ("23514", errors.InvalidValue),
        ("25006", errors.DatabaseUnavailable),
        ("25P03", errors.DatabaseUnavailable),
        ("40001", errors.Conflict),
        ("40P01", errors.Conflict),
        ("42P01", errors.SchemaMismatch),
        ("42703", errors.SchemaMismatch),
        ("53000", errors.PoolExhausted),
        ("53100", errors.StorageFull),
        ("53200", errors.PoolExhausted),
        ("53300", errors.PoolExhausted),
        ("54000", errors.InvalidValue),
        ("55P03", errors.Conflict),
        ("57014", errors.StatementTimeout),
        ("57P01", errors.DatabaseUnavailable),
        ("57P02", errors.DatabaseUnavailable),
        ("57P03", errors.DatabaseUnavailable),
    ],
)
def test_states_have_a_meaning(state: str, expected: type[errors.DatabaseError]) -> None:
    translated = sqlstate.translate(refusal(state))
    assert type(translated) is expected
    assert not set(QUOTED.split()) & set(str(translated).split())


@pytest.mark.parametrize("state", ["42601", "42804", "42501", "23502", "23505", "XX000", "P0001", "0A000"])
def test_defects_have_none(state: str) -> None:
    assert sqlstate.translate(refusal(state)) is None


def test_errors_without_a_state() -> None:
    assert type(sqlstate.translate(psycopg.OperationalError(QUOTED))) is errors.DatabaseUnavailable
    assert type(sqlstate.translate(psycopg.DataError(QUOTED))) is errors.InvalidValue
    assert sqlstate.translate(psycopg.ProgrammingError(QUOTED)) is None
    assert sqlstate.translate(psycopg.InterfaceError(QUOTED)) is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (refusal("08006"), True),
        (refusal("57P01"), True),
        (refusal("25006"), True),
        (psycopg.OperationalError(), True),
        (refusal("57014"), False),
        (refusal("53300"), False),
        (refusal("40001"), False),
        (refusal("25001"), False),
        (psycopg.DataError(), False),
        (psycopg.ProgrammingError(), False),
    ],
    ids=repr,
)
def test_which_connections_are_given_up(error: psycopg.Error, *, lost: bool) -> None:
    assert sqlstate.lost_connection(error) is lost


@pytest.mark.parametrize(("state", "again"), [("40001", True), ("40P01", True), ("40003", False), ("55P03", False)])
def test_which_transactions_run_again(state: str, *, again: bool) -> None:
    assert sqlstate.retryable(refusal(state)) is again
