"""What embeds texts, how it is asked, and what is kept of its answers."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

Embedder = Literal["local", "openai", "none"]

# Model and dimensions where the settings leave them open.
DEFAULT_MODELS: dict[Embedder, tuple[str, int | None]] = {
    "local": ("wordllama-l2-supercat-256", 256),
    "openai": ("text-embedding-3-small", 1536),
    "none": ("caller", None),
}
KNOWN_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}

MAX_DIMENSIONS = 16_000  # pgvector's limit for a halfvec column


class EmbeddingSettings(BaseSettings):
    """The embedder, its provider, its cache and its queue."""

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
        2.0,
        gt=0,
        le=600,
        description="Seconds until one request tries a failing provider again; up to 4 times as long while that "
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

    @field_validator("openai_base_url")
    @classmethod
    def _base_url_is_http(cls, value: str | None) -> str | None:
        if value is not None and not _is_http_address(value):
            raise ValueError("is not an http:// or https:// address, for example http://127.0.0.1:11434/v1")
        return value


def _is_http_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not one, a broken IPv6 address
        return False
