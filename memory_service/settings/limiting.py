"""How much callers and users may ask for and store."""

from pydantic import Field
from pydantic_settings import BaseSettings


class LimitSettings(BaseSettings):
    """Rate limits and quotas; 0 sets none."""

    rate_limit_requests_per_key: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Requests a second of each API key or token subject; a chunk of an import is a request, a batch is "
        "one. 0: any number.",
    )
    rate_limit_requests_per_user: float = Field(
        0.0, ge=0, le=1e6, description="Requests a second that name the same user_id. 0: any number."
    )
    rate_limit_tokens_per_key: float = Field(
        0.0,
        ge=0,
        le=1e12,
        description="Tokens a minute that each API key or token subject may have embedded, four bytes of text counted "
        "as one. 0: any number.",
    )
    rate_limit_tokens_per_user: float = Field(
        0.0, ge=0, le=1e12, description="Tokens a minute that may be embedded for each user_id. 0: any number."
    )
    rate_limit_unauthenticated_per_peer: float = Field(
        10.0,
        ge=0,
        le=1e6,
        description="Calls a second from the same address (of IPv6, the same /64) that may be UNAUTHENTICATED; more "
        "are RESOURCE_EXHAUSTED. Good credentials are let in all the same. 0: any number.",
    )
    rate_limit_burst_s: float = Field(
        10.0, ge=0.1, le=3_600, description="Seconds' worth of each rate that may be used at once after a rest."
    )
    quota_memories: int = Field(
        0,
        ge=0,
        description="Memories of each user, soft-deleted ones included until they are purged. 0: any number.",
    )
    quota_bytes: int = Field(
        0, ge=0, description="Bytes of each user, as GetStats counts them in stored_bytes. 0: any number."
    )
