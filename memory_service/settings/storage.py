"""Which database there is, and how its connections are used."""

from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


def _user_data_dir() -> Path:
    try:
        return Path(platformdirs.user_data_dir("memory-service"))
    except RuntimeError:  # neither HOME nor an entry in the password file
        return Path("/var/lib/memory-service")


class StorageSettings(BaseSettings):
    """The database and its connection pool."""

    data_dir: Path = Field(
        default_factory=_user_data_dir,
        description="Where the embedded PostgreSQL keeps its data. Unset: the platform's user data folder.",
    )
    database_url: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("MEMORY_DATABASE_URL", "DATABASE_URL"))
    ] = Field(None, description="PostgreSQL to use in place of the embedded one, as a URL or libpq keywords.")
    direct_database_url: SecretStr | None = Field(
        None,
        description="The same database without a transaction pooler in between, for migrations and index builds. "
        "Unset: `database_url`.",
    )
    prepared_statements: bool | None = Field(
        None,
        description="Whether PostgreSQL keeps statements prepared. Unset: unless there is a transaction pooler in "
        "between, which may know of none.",
    )
    row_level_security: bool = Field(
        default=True,
        description="Let PostgreSQL confine each transaction to the rows of its user. Off: statements alone do.",
    )
    pool_min_size: int = Field(4, ge=1, le=1_000, description="Database connections each process keeps open.")
    pool_max_size: int = Field(16, ge=1, le=1_000, description="Most database connections of each process.")
    pool_timeout_s: float = Field(1.0, gt=0, le=60, description="Longest wait for a database connection.")
    statement_timeout_s: float = Field(
        10.0, gt=0, le=600, description="Longest a statement may run, whatever the caller's deadline."
    )
    slow_query_ms: float = Field(100.0, ge=0, description="Statements slower than this are logged with their name.")

    @field_validator("database_url", "direct_database_url")
    @classmethod
    def _url_can_be_parsed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            import psycopg  # noqa: PLC0415 - only settings that name a database need it

            try:
                psycopg.conninfo.conninfo_to_dict(value.get_secret_value())
            except psycopg.ProgrammingError:
                # libpq says what it stumbled over, which may be a part of the password.
                raise ValueError(
                    "is neither a postgresql:// URL nor libpq keywords; parameters have to be libpq's own, and special "
                    "characters of a password percent-encoded"
                ) from None
        return value
