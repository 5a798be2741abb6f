"""Which users get an approximate (ANN) index, and how it is built."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class IndexSettings(BaseSettings):
    """ANN indexes."""

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
