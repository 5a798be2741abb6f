"""Database fixtures: one embedded PostgreSQL per test run, and databases cloned from migrated templates.

What to ask for:

* `database_url`: a migrated database of this test alone, 8 dimensions, model "test-model"; dropped afterwards.
* `module_database_url`: the same, shared by the tests of one module.
* `empty_database_url`: a database of this test alone without any schema.
* `new_database`: a function making as many as a test needs: `new_database(dimensions=256)`,
  `new_database(dimensions=None)` for an empty one. It returns the URL.
* `template_url`: a function returning the URL of the migrated template for some dimensions. Do not stay connected
  to it: PostgreSQL refuses to clone a template in use.
* `postgres`: the EmbeddedPostgres of the run. All workers of pytest-xdist share it, so never stop or kill it; a
  test that kills PostgreSQL starts its own with `EmbeddedPostgres.start(data_dir, settings=FAST)`.
* `data_dir`: a data directory for such a PostgreSQL, initialized (which takes longer than all the rest) and not
  running; stopped and removed afterwards, however the test ended. `empty_data_dir` is the same without the data. Do
  not use `tmp_path`: pytest closes its folders to PostgreSQL's account.

The server is started by the first worker that needs it and stopped by the last one that used it.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from db import migrate
from db.embedded import EmbeddedPostgres, postmaster
from db.schema import EmbeddingSpace

MODEL = "test-model"
DIMENSIONS = 8

# Nothing a test stores has to survive a power cut; it does survive kill -9, which is why commits stay synchronous.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "1GB",
}

# A cluster in memory is made five times faster than on a slow disk.
MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - folders in it are made by mkdtemp
MEMORY_DISK_BYTES = 2 << 30

NewDatabase = Callable[..., str]
"""`new_database(dimensions: int | None = 8) -> url`; None makes an empty database."""


class Databases:
    """Makes and drops databases in the PostgreSQL of the test run."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres

    def template_url(self, dimensions: int) -> str:
        """Returns the URL of the template for `dimensions`, migrated by whichever worker asks first."""
        name = f"template_{dimensions}"
        with self._connect() as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [dimensions])
            # IS_TEMPLATE is set last: a template without it was left half made by a killed run.
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s AND datistemplate", [name])
            if not found.rowcount:
                identifier = sql.Identifier(name)
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(identifier))
                connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
                migrate.upgrade(self._postgres.database_url(name), EmbeddingSpace(MODEL, dimensions))
                connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(identifier))
        return self._postgres.database_url(name)

    def create(self, dimensions: int | None = DIMENSIONS) -> str:
        """Returns the URL of a new database: migrated for `dimensions`, or empty for None."""
        template = "template1"
        if dimensions is not None:
            self.template_url(dimensions)
            template = f"template_{dimensions}"
        name = f"test_{uuid.uuid4().hex[:12]}"
        command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with self._connect() as connection:
            connection.execute(command.format(sql.Identifier(name), sql.Identifier(template)))
        return self._postgres.database_url(name)

    def drop(self, url: str) -> None:
        """Drops the database of `url`, cutting off whoever is still connected."""
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(name))))

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._postgres.database_url("postgres"), autocommit=True)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The PostgreSQL of this test run, shared by its workers. Never stop or kill it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base
    with _exclusive(shared / "postgres.lock"):
        data_dir = _data_dir(shared / "postgres.path")
        server = EmbeddedPostgres.start(data_dir, settings=FAST)
    yield server
    with _exclusive(shared / "postgres.lock"):
        server.close()
        if not server.is_running():
            shutil.rmtree(data_dir)


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres) -> Databases:
    """Makes and drops databases; most tests want `database_url` or `new_database`, which clean up."""
    return Databases(postgres)


@pytest.fixture(scope="session")
def template_url(databases: Databases) -> Callable[[int], str]:
    """A function returning the URL of the migrated template for some dimensions."""
    return databases.template_url


@pytest.fixture
def new_database(databases: Databases) -> Iterator[NewDatabase]:
    """A function making databases, `new_database(dimensions=8)`, that are dropped after the test."""
    with _dropping(databases) as create:
        yield create


@pytest.fixture
def database_url(new_database: NewDatabase) -> str:
    """A migrated database (8 dimensions, "test-model") of this test alone."""
    return new_database()


@pytest.fixture
def empty_database_url(new_database: NewDatabase) -> str:
    """A database of this test alone without any schema."""
    return new_database(dimensions=None)


@pytest.fixture(scope="module")
def module_database_url(databases: Databases) -> Iterator[str]:
    """A migrated database (8 dimensions, "test-model") shared by the tests of one module."""
    with _dropping(databases) as create:
        yield create()


@pytest.fixture
def empty_data_dir() -> Iterator[Path]:
    """An empty folder for a PostgreSQL of this test alone, which is stopped afterwards if it still runs."""
    with _removing(_make_folder()) as folder:
        yield folder


@pytest.fixture
def data_dir(empty_data_dir: Path, initialized_data_dir: Path) -> Path:
    """A data directory for a PostgreSQL of this test alone, with its database "memory" made, not running."""
    # cp keeps the owner, which is another account when the tests run as root.
    subprocess.run(["cp", "-a", initialized_data_dir / "postgres", empty_data_dir], check=True)  # noqa: S607
    empty_data_dir.chmod(0o711)
    return empty_data_dir


@pytest.fixture(scope="session")
def initialized_data_dir() -> Iterator[Path]:
    """The data directory that `data_dir` copies."""
    with _removing(_make_folder()) as folder:
        EmbeddedPostgres.start(folder, settings=FAST).close()
        yield folder


@contextmanager
def _removing(folder: Path) -> Iterator[Path]:
    yield folder
    server = postmaster.find(folder / "postgres")
    if server is not None and server.pid is not None:
        os.kill(server.pid, signal.SIGQUIT)  # unlike SIGKILL it leaves no shared memory behind
    if (folder / "postgres").exists():
        postmaster.clear_remains(folder / "postgres", folder / "postgres")
    shutil.rmtree(folder)


@contextmanager
def _dropping(databases: Databases) -> Iterator[NewDatabase]:
    urls: list[str] = []

    def create(dimensions: int | None = DIMENSIONS) -> str:
        urls.append(databases.create(dimensions))
        return urls[-1]

    try:
        yield create
    finally:
        for url in urls:
            databases.drop(url)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds the file lock `path`; the kernel frees it when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _data_dir(note: Path) -> Path:
    """Returns the data directory named in `note`, making both first where they are missing.

    It lies outside pytest's own folders: those are closed to other accounts whenever a run starts, and for root
    PostgreSQL runs under another account.
    """
    if not note.exists():
        note.write_text(str(_make_folder()))
    return Path(note.read_text())


def _make_folder() -> Path:
    roomy = MEMORY_DISK.is_dir() and shutil.disk_usage(MEMORY_DISK).free >= MEMORY_DISK_BYTES
    return Path(tempfile.mkdtemp(prefix="memory-service-test-", dir=MEMORY_DISK if roomy else None))
