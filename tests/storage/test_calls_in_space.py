"""Calls that say which embeddings they are about: what they get of a database that moves to others meanwhile."""

from collections.abc import Callable

import psycopg
import pytest

from db.connection import Connection
from db.errors import DatabaseUnavailable, EmbeddingSpaceChanged
from db.pool import Database
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS
from tests.fix_database import DIMENSIONS, MODEL

HERE, ELSEWHERE = EmbeddingSpace(MODEL, DIMENSIONS), EmbeddingSpace("another", DIMENSIONS)


@pytest.fixture
def database(database_url: str, open_database: Callable[..., Database]) -> Database:
    """A pool over a database of the space HERE."""
    return open_database(database_url, min_size=1, max_size=2)


@pytest.fixture(params=[None, False], ids=["sessions", "as behind a pooler"])
def here(request: pytest.FixtureRequest, database_url: str, open_database: Callable[..., Database]) -> Database:
    """A view of such a pool for calls of HERE."""
    return open_database(database_url, min_size=1, max_size=2, prepared_statements=request.param).in_space(HERE)


def losing_its_session(url: str, *, moves_to: EmbeddingSpace) -> Callable[[Connection], None]:
    """Returns a change whose session ends under way, and whose database is of another space then."""

    def change(conn: Connection) -> None:
        with psycopg.connect(url, autocommit=True) as operator:
            operator.execute("UPDATE embedding_space SET model = %s", [moves_to.model])
            operator.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        conn.execute("SELECT 1")

    return change


def test_views_of_one_pool_meet_their_own_space_alone(database: Database) -> None:
    here, elsewhere = database.in_space(HERE), database.in_space(ELSEWHERE)
    assert here.read(here.call(), lambda conn: conn.space, user_id=ACROSS_USERS) == HERE
    with pytest.raises(EmbeddingSpaceChanged, match="another"):
        elsewhere.read(elsewhere.call(), lambda conn: conn.space, user_id=ACROSS_USERS)
    assert database.read(database.call(), lambda conn: conn.space, user_id=ACROSS_USERS) == HERE
    assert here.statistics()["pool_size"] == elsewhere.statistics()["pool_size"]


def test_a_change_that_a_move_undid_says_so(here: Database, database_url: str) -> None:
    with pytest.raises(EmbeddingSpaceChanged):
        here.write(here.call(), losing_its_session(database_url, moves_to=ELSEWHERE), user_id=ACROSS_USERS)


def test_a_change_lost_otherwise_says_no_such_thing(here: Database, database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable):
        here.write(here.call(), losing_its_session(database_url, moves_to=HERE), user_id=ACROSS_USERS)
