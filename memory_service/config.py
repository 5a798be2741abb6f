"""Settings: every tunable of the service, read from the environment once, checked all at once."""

import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Self

from pydantic import AliasChoices, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from memory_service.settings.address import MAX_PORT, split_address
from memory_service.settings.embedding import DEFAULT_MODELS, KNOWN_DIMENSIONS, Embedder, EmbeddingSettings
from memory_service.settings.identity import IdentitySettings
from memory_service.settings.indexing import IndexSettings
from memory_service.settings.keeping import KeepingSettings
from memory_service.settings.limiting import LimitSettings
from memory_service.settings.listening import ListeningSettings
from memory_service.settings.logging import LogSettings
from memory_service.settings.searching import SearchSettings
from memory_service.settings.storage import StorageSettings

PREFIX = "MEMORY_"

# All threads take turns at one interpreter, and so does the one that accepts calls: under five times too much load, 16
# threads answered no more calls than 4, and those too many heard so after 1.5 s in place of 10 ms (docs/adr/0006).
# Threads that wait for a provider want no turn.
READ_THREADS = 4
READ_THREADS_WITH_PROVIDER = 16


class ConfigurationError(Exception):
    """The environment holds values the service cannot run with; the message lists all of them."""


# pydantic lists the fields of the last base first.
class Settings(
    LogSettings,
    KeepingSettings,
    IndexSettings,
    SearchSettings,
    EmbeddingSettings,
    StorageSettings,
    IdentitySettings,
    LimitSettings,
    ListeningSettings,
):
    """The service's settings; each is read from the variable MEMORY_<NAME>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        problems = []
        if self.metrics_listen != "off" and split_address(self.metrics_listen)[1] + self.workers > MAX_PORT + 1:
            problems.append(f"MEMORY_METRICS_LISTEN leaves no ports for MEMORY_WORKERS={self.workers}")
        problems.extend(self._ann_problems())
        problems.extend(self.identity_problems())
        if self.reflection == "authenticated" and self.auth == "off" and self.tls_client_ca is None:
            problems.append("MEMORY_REFLECTION=authenticated is set without MEMORY_AUTH or MEMORY_TLS_CLIENT_CA")
        if self.pool_min_size > self.pool_max_size:
            problems.append(
                f"MEMORY_POOL_MIN_SIZE ({self.pool_min_size}) exceeds MEMORY_POOL_MAX_SIZE ({self.pool_max_size})"
            )
        problems.extend(self._embedder_problems())
        if self.direct_database_url is not None and self.database_url is None:
            problems.append("MEMORY_DIRECT_DATABASE_URL is set without MEMORY_DATABASE_URL")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _embedder_problems(self) -> Iterator[str]:
        if self.embedding_dimensions is None and self._default_dimensions() is None:
            yield f"MEMORY_EMBEDDING_DIMENSIONS is required with {self._dimensions_reason()}"
        if self.embedder == "local" and self.embedding_model not in {None, DEFAULT_MODELS["local"][0]}:
            yield f"MEMORY_EMBEDDING_MODEL: the local embedder has only {DEFAULT_MODELS['local'][0]!r}"
        if self.embedder == "local" and self.embedding_dimensions not in {None, DEFAULT_MODELS["local"][1]}:
            yield f"MEMORY_EMBEDDING_DIMENSIONS: the local embedder has {DEFAULT_MODELS['local'][1]}"
        if self.embedder == "openai" and self.openai_api_key is None and self.openai_base_url is None:
            yield "MEMORY_OPENAI_API_KEY (or OPENAI_API_KEY) is required with MEMORY_EMBEDDER=openai"

    def with_embedder(self, embedder: Embedder, model: str | None, dimensions: int | None) -> Self:
        """Returns these settings with another embedder, model and dimensions, None standing for the default.

        Raises:
            ConfigurationError: When they do not go together, or when these settings lack the embedder's credentials.
        """
        changed = self.model_copy(
            update={"embedder": embedder, "embedding_model": model, "embedding_dimensions": dimensions}
        )
        if problems := list(changed._embedder_problems()):  # noqa: SLF001 - of the same class
            raise ConfigurationError("\n".join(problems))
        return changed

    def _ann_problems(self) -> Iterator[str]:
        if self.ann_drop_rows > self.ann_min_rows:
            yield f"MEMORY_ANN_DROP_ROWS ({self.ann_drop_rows}) exceeds MEMORY_ANN_MIN_ROWS ({self.ann_min_rows})"
        if self.hnsw_ef_construction < 2 * self.hnsw_m:
            yield (
                f"MEMORY_HNSW_EF_CONSTRUCTION ({self.hnsw_ef_construction}) is below twice MEMORY_HNSW_M "
                f"({self.hnsw_m})"
            )

    def _default_dimensions(self) -> int | None:
        if self.embedding_model in KNOWN_DIMENSIONS:
            return KNOWN_DIMENSIONS[self.embedding_model]
        return DEFAULT_MODELS[self.embedder][1] if self.embedding_model is None or self.embedder == "local" else None

    def _dimensions_reason(self) -> str:
        return "MEMORY_EMBEDDER=none" if self.embedder == "none" else f"MEMORY_EMBEDDING_MODEL={self.embedding_model}"

    @property
    def model(self) -> str:
        """The embedding model in force."""
        return self.embedding_model or DEFAULT_MODELS[self.embedder][0]

    @property
    def dimensions(self) -> int:
        """The embedding dimensions in force."""
        dimensions = self.embedding_dimensions or self._default_dimensions()
        assert dimensions is not None  # noqa: S101 - _values_agree has checked it
        return dimensions

    @property
    def threads_for_reads(self) -> int:
        """`threads` as it is in force."""
        return self.threads or (READ_THREADS_WITH_PROVIDER if self.embedder == "openai" else READ_THREADS)

    @property
    def threads_for_writes(self) -> int:
        """`write_threads` as it is in force."""
        return self.write_threads or self.threads_for_reads

    @property
    def embedded(self) -> bool:
        """Whether the embedded PostgreSQL is used."""
        return self.database_url is None


def variables(name: str) -> list[str]:
    """Returns the environment variables that set field `name`, the preferred one first."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [PREFIX + name.upper()]


# Variables of the commands that are clients.
CLIENT_VARIABLES = frozenset({"MEMORY_API_KEY"})


@cache
def _known_variables() -> frozenset[str]:
    return CLIENT_VARIABLES | {variable for name in Settings.model_fields for variable in variables(name)}


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Returns a warning for each MEMORY_ variable that no setting reads, with the likeliest one meant."""
    warnings = []
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and variable not in _known_variables():
            known = [name.removeprefix(PREFIX) for name in sorted(_known_variables())]
            close = get_close_matches(variable.removeprefix(PREFIX), known, n=1)
            warnings.append(f"{variable} is not a setting" + (f"; did you mean {PREFIX}{close[0]}?" if close else ""))
    return warnings


def load(**overrides: Any) -> Settings:
    """Reads the settings from the environment, `overrides` (by field name) winning.

    Raises:
        ConfigurationError: With every bad value and the variable it came from, one a line.
    """
    given = {
        variables(name)[0] if _has_alias(name) else name: value
        for name, value in overrides.items()
        if value is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigurationError(_describe(error)) from None


def _has_alias(name: str) -> bool:
    return Settings.model_fields[name].validation_alias is not None


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # a check across fields names its variables itself
            lines.append(message)
            continue
        # pydantic names a field with aliases by its first alias, whichever variable the value came from.
        where = str(problem["loc"][0])
        names = next((variables(name) for name in Settings.model_fields if where in {name, *variables(name)}), [where])
        variable = next((name for name in names if os.environ.get(name)), names[0])
        lines.append(f"{variable}: {message[0].lower()}{message[1:]}")
    return "\n".join(lines)
