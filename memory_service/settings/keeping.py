"""How long things are kept, and how often the service tidies up."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class KeepingSettings(BaseSettings):
    """Retention and periodic work."""

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
    audit: Literal["off", "writes", "all"] = Field(
        "writes",
        description="What the audit log takes: `writes`, which includes administrators' calls and whatever was refused "
        "for want of permission, `all`, which adds reads, or nothing.",
    )
    audit_retention_days: float = Field(
        90.0,
        ge=1,
        le=36_500,
        description="Days that entries of the audit log are kept at least. They go a month at a time.",
    )
