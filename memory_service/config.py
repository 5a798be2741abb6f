"""Settings: every tunable of the service, read from the environment once, checked all at once."""

import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from db.languages import DEFAULT_LANGUAGE, LANGUAGES

PREFIX = "MEMORY_"

Embedder = Literal["local", "openai", "none"]
RankingPreset = Literal["none", "balanced", "generative_agents", "recent"]

# Model and dimensions where the settings leave them open.
DEFAULT_MODELS: dict[Embedder, tuple[str, int | None]] = {
    "local": ("wordllama-l2-supercat-256", 256),
    "openai": ("text-embedding-3-small", 1536),
    "none": ("caller", None),
}
KNOWN_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}

MAX_DIMENSIONS = 16_000  # pgvector's limit for a halfvec column


MAX_PORT = 65_535


class ConfigurationError(Exception):
    """The environment holds values the service cannot run with; the message lists all of them."""


def _user_data_dir() -> Path:
    try:
        return Path(platformdirs.user_data_dir("memory-service"))
    except RuntimeError:  # neither HOME nor an entry in the password file
        return Path("/var/lib/memory-service")


class Settings(BaseSettings):
    """The service's settings; each is read from the variable MEMORY_<NAME>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    listen: str = Field("127.0.0.1:50051", description="Address and port of the gRPC service; port 0 takes a free one.")
    ops_listen: str = Field(
        "127.0.0.1:50052",
        description="Second address, for health checks only: it answers when the first is saturated. `off`: none.",
    )
    metrics_listen: str = Field(
        "off",
        description="Address that answers Prometheus over HTTP, for example 127.0.0.1:9464. Several `workers` take a "
        "port each, this one and those above it. Tells what the service does, nothing that is stored in it.",
    )
    insecure: bool = Field(
        default=False,
        description="Allow a `listen` address that other machines can reach although calls are neither encrypted "
        "nor authenticated.",
    )
    workers: int = Field(1, ge=1, le=64, description="Server processes sharing the port.")
    threads: int = Field(24, ge=1, le=512, description="Calls one process works on at the same time.")
    max_concurrent_calls: int = Field(
        96, ge=1, le=10_000, description="Calls one process accepts, working or queued; more get RESOURCE_EXHAUSTED."
    )
    import_streams: int = Field(
        4,
        ge=1,
        le=64,
        description="Imports one process works on at the same time, on threads of their own; more get "
        "RESOURCE_EXHAUSTED.",
    )
    reflection: bool = Field(default=True, description="Serve gRPC reflection, for grpcurl and buf curl.")
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=300,
        description="Seconds between reporting NOT_SERVING on SIGTERM and closing the port; give load balancers ~5.",
    )
    drain_grace_s: float = Field(
        20.0, ge=0, le=600, description="Seconds that calls under way have to finish on SIGTERM."
    )

    data_dir: Path = Field(
        default_factory=_user_data_dir,
        description="Where the embedded PostgreSQL keeps its data. Unset: the platform's user data folder.",
    )
    database_url: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("MEMORY_DATABASE_URL", "DATABASE_URL"))
    ] = Field(None, description="PostgreSQL to use in place of the embedded one, as a URL or libpq keywords.")
    direct_database_url: SecretStr | None = Field(
        None,
        description="The same database without a transaction pooler in between, for migrations. Unset: `database_url`.",
    )
    prepared_statements: bool = Field(
        default=True, description="Turn off behind a transaction pooler that does not support prepared statements."
    )
    pool_min_size: int = Field(4, ge=1, le=1_000, description="Database connections each process keeps open.")
    pool_max_size: int = Field(16, ge=1, le=1_000, description="Most database connections of each process.")
    pool_timeout_s: float = Field(1.0, gt=0, le=60, description="Longest wait for a database connection.")
    statement_timeout_s: float = Field(
        10.0, gt=0, le=600, description="Longest a statement may run, whatever the caller's deadline."
    )
    slow_query_ms: float = Field(100.0, ge=0, description="Statements slower than this are logged with their name.")

    embedder: Embedder = Field("local", description="What embeds text. `none`: callers send embeddings.")
    embedding_model: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Unset: the embedder's default (openai: text-embedding-3-small).",
    )
    embedding_dimensions: int | None = Field(
        None, ge=1, le=MAX_DIMENSIONS, description="Unset: the model's own. Required for `none` and for unknown models."
    )
    openai_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("MEMORY_OPENAI_API_KEY", "OPENAI_API_KEY"))
    ] = Field(None, description="API key for `openai`. May stay unset where `openai_base_url` needs none.")
    openai_base_url: Annotated[
        str | None, Field(validation_alias=AliasChoices("MEMORY_OPENAI_BASE_URL", "OPENAI_BASE_URL"))
    ] = Field(None, description="Endpoint that speaks OpenAI's protocol. Unset: OpenAI itself.")
    openai_batch_size: int = Field(256, ge=1, le=2_048, description="Most texts in one request to the provider.")
    embedding_timeout_s: float = Field(10.0, gt=0, le=600, description="Longest wait for one request to the provider.")
    embedding_retries: int = Field(3, ge=0, le=10, description="Retries, with back-off, of a failed provider request.")
    embedding_concurrent_requests: int = Field(
        4,
        ge=1,
        le=256,
        description="Requests to the provider that one process has under way at the same time. The texts of further "
        "calls share the next ones.",
    )
    embedding_breaker_failures: int = Field(
        5,
        ge=1,
        le=1_000,
        description="Failed provider requests in a row, each with its retries, after which calls fail at once for "
        "`embedding_breaker_cool_down_s`.",
    )
    embedding_breaker_cool_down_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Seconds until one request tries a failing provider again; up to 6 times as long while that "
        "fails, longer where the provider asks for it.",
    )
    embedding_cache_max_rows: int = Field(
        1_000_000,
        ge=0,
        le=1_000_000_000,
        description="Most embeddings of a provider kept in the database; those not used for the longest time go "
        "first. 0: none, and none is looked up.",
    )
    embedding_cache_ttl_s: float = Field(
        2_592_000.0,
        ge=60,
        le=3_153_600_000,
        description="Seconds, here 30 days, after which a cached embedding that nobody used is forgotten.",
    )

    embedding_queue_threads: int = Field(
        1,
        ge=0,
        le=16,
        description="Threads of each process that embed what was stored with embed_async. 0: other processes do.",
    )
    embedding_queue_poll_s: float = Field(
        2.0,
        gt=0,
        le=3_600,
        description="Seconds between looks at the queue for what other processes stored or what is to be tried again.",
    )
    embedding_queue_batch: int = Field(64, ge=1, le=2_048, description="Most memories of the queue embedded together.")
    embedding_queue_lease_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="Seconds a process has to embed what it took from the queue, before others may take it: how long "
        "memories wait for their embedding at most when a process is killed.",
    )
    embedding_queue_attempts: int = Field(
        50,
        ge=1,
        le=10_000,
        description="How often the embedding of a memory is tried before it is given up; 50 take some five hours.",
    )
    embedding_queue_delay_s: float = Field(
        1.0,
        gt=0,
        le=600,
        description="Seconds before the second attempt; they double with each further one, up to 10 minutes.",
    )

    language: str = Field(
        DEFAULT_LANGUAGE,
        description="Language of memories and queries that name none, to stem their words in. `simple` takes words as "
        "they are.",
    )
    ranking: RankingPreset = Field(
        "none", description="Ranking of searches by words or by both words and meaning that bring none of their own."
    )
    dense_weight: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Weight of meaning against words in searches by both that bring no weight of their own.",
    )

    ann_index: Literal["hnsw", "ivfflat", "off"] = Field(
        "hnsw", description="The kind of approximate (ANN) index that large users get of their own. `off`: none."
    )
    ann_min_rows: int = Field(
        20_000, ge=1, le=500_000, description="Live memories that earn a user an ANN index, once they are searched."
    )
    ann_drop_rows: int = Field(
        10_000, ge=1, le=500_000, description="Live memories below which a user's ANN index is dropped again."
    )
    ann_max_indexes: int = Field(
        100,
        ge=0,
        le=1_000,
        description="Most users with an ANN index, the largest ones. Every statement on memories plans with all of "
        "them, and takes a lock on each.",
    )
    ann_maintenance_interval_s: float = Field(
        30.0, gt=0, le=86_400, description="Seconds between rounds of building, repairing and dropping ANN indexes."
    )
    ann_build_memory_mb: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="maintenance_work_mem of ANN builds, in MB. An HNSW graph that does not fit takes several times as "
        "long: 700 bytes a memory plus 2 bytes a dimension. Unset: what PostgreSQL is set to.",
    )
    hnsw_m: int = Field(
        16, ge=2, le=100, description="Neighbours of a memory in an HNSW index, for indexes built from then on."
    )
    hnsw_ef_construction: int = Field(
        200, ge=4, le=1_000, description="How far building an HNSW index looks for neighbours, at least 2 `hnsw_m`."
    )
    ivfflat_lists: int = Field(
        0, ge=0, le=32_768, description="Lists of an IVFFlat index. 0: one for every 1,000 memories."
    )
    ef_search: int = Field(
        64,
        ge=1,
        le=1_000,
        description="How far a search looks in an ANN index, unless the call says otherwise. In an IVFFlat index it "
        "reads this many of every 160 lists.",
    )
    candidates_factor: int = Field(
        20,
        ge=1,
        le=1_000,
        description="How many memories a quantized search compares precisely for each result: this many for users of "
        "1,000 to 10,000 memories, a quarter for smaller ones, twice as many for larger ones.",
    )
    recall_probe_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the approximate searches that is repeated exactly in the background, to measure recall; "
        "for at most 1 % of the time. 0: none.",
    )
    recall_target: float = Field(
        0.98,
        ge=0,
        le=1,
        description="Approximate searches look further, up to 8 times as far, while their measured recall is below.",
    )
    global_search: bool = Field(
        default=False,
        description="`on`: serve SearchAllUsers, and keep an ANN index across users for it.",
    )

    deleted_retention_days: float = Field(
        30.0, ge=0, le=36_500, description="Days a soft-deleted memory can be restored before it is purged."
    )
    request_id_retention_hours: float = Field(
        24.0, gt=0, le=8_760, description="Hours a request_id is remembered to recognize repeated calls."
    )
    purge_interval_s: float = Field(
        300.0, gt=0, le=86_400, description="Seconds between purges of expired deletions and request ids."
    )
    access_flush_interval_s: float = Field(
        1.0, gt=0, le=60, description="Seconds that recorded accesses are gathered before they are written."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal, JSON otherwise."
    )

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("ops_listen", "metrics_listen")
    @classmethod
    def _is_an_address_or_off(cls, value: str) -> str:
        if value != "off":
            split_address(value)
        return value

    @field_validator("database_url", "direct_database_url")
    @classmethod
    def _url_can_be_parsed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            import psycopg  # noqa: PLC0415 - only settings that name a database need it

            try:
                psycopg.conninfo.conninfo_to_dict(value.get_secret_value())
            except psycopg.ProgrammingError:
                raise ValueError("is neither a postgresql:// URL nor libpq keywords") from None
        return value

    @field_validator("language")
    @classmethod
    def _language_is_known(cls, value: str) -> str:
        if value not in LANGUAGES:
            raise ValueError(f"is none of {', '.join(LANGUAGES)}")
        return value

    @field_validator("openai_base_url")
    @classmethod
    def _base_url_is_http(cls, value: str | None) -> str | None:
        if value is not None and not _is_http_address(value):
            raise ValueError("is not an http:// or https:// address, for example http://127.0.0.1:11434/v1")
        return value

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        problems = []
        if self.metrics_listen != "off" and split_address(self.metrics_listen)[1] + self.workers > MAX_PORT + 1:
            problems.append(f"MEMORY_METRICS_LISTEN leaves no ports for MEMORY_WORKERS={self.workers}")
        problems.extend(self._ann_problems())
        if self.pool_min_size > self.pool_max_size:
            problems.append(
                f"MEMORY_POOL_MIN_SIZE ({self.pool_min_size}) exceeds MEMORY_POOL_MAX_SIZE ({self.pool_max_size})"
            )
        if self.embedding_dimensions is None and self._default_dimensions() is None:
            problems.append(f"MEMORY_EMBEDDING_DIMENSIONS is required with {self._dimensions_reason()}")
        if self.embedder == "local" and self.embedding_model not in {None, DEFAULT_MODELS["local"][0]}:
            problems.append(f"MEMORY_EMBEDDING_MODEL: the local embedder has only {DEFAULT_MODELS['local'][0]!r}")
        if self.embedder == "local" and self.embedding_dimensions not in {None, DEFAULT_MODELS["local"][1]}:
            problems.append(f"MEMORY_EMBEDDING_DIMENSIONS: the local embedder has {DEFAULT_MODELS['local'][1]}")
        if self.embedder == "openai" and self.openai_api_key is None and self.openai_base_url is None:
            problems.append("MEMORY_OPENAI_API_KEY (or OPENAI_API_KEY) is required with MEMORY_EMBEDDER=openai")
        if self.direct_database_url is not None and self.database_url is None:
            problems.append("MEMORY_DIRECT_DATABASE_URL is set without MEMORY_DATABASE_URL")
        if problems:
            raise ValueError("\n".join(problems))
        return self

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
    def embedded(self) -> bool:
        """Whether the embedded PostgreSQL is used."""
        return self.database_url is None


def _is_http_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not one, a broken IPv6 address
        return False


def split_address(address: str) -> tuple[str, int]:
    """Splits "host:port" or "[::1]:port"; raises ValueError for anything else."""
    host, separator, port = address.rpartition(":")
    if not separator or not host.strip("[]") or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise ValueError(f"{address!r} is not HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{address!r}: put an IPv6 host in brackets, for example [::1]:50051")
    return host.strip("[]"), int(port)


def variables(name: str) -> list[str]:
    """Returns the environment variables that set field `name`, the preferred one first."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [PREFIX + name.upper()]


@cache
def _known_variables() -> frozenset[str]:
    return frozenset(variable for name in Settings.model_fields for variable in variables(name))


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
