"""The settings of approximate indexes, as the rules that db/ann_policy.py applies."""

from db.ann_indexes import MAX_DIMENSIONS, IndexOptions
from db.ann_policy import AnnPolicy
from memory_service.config import Settings


def supports_ann(dimensions: int) -> bool:
    """Returns whether embeddings of these dimensions can have an approximate index at all."""
    return dimensions <= MAX_DIMENSIONS


def ann_policy(settings: Settings, dimensions: int) -> AnnPolicy:
    """Returns who gets an index, and how it is built, in a database whose embeddings have these dimensions."""
    possible = supports_ann(dimensions)
    return AnnPolicy(
        options=IndexOptions(
            method="hnsw" if settings.ann_index == "off" else settings.ann_index,
            hnsw_m=settings.hnsw_m,
            hnsw_ef_construction=settings.hnsw_ef_construction,
            ivfflat_lists=settings.ivfflat_lists,
        ),
        enabled=settings.ann_index != "off" and possible,
        min_rows=settings.ann_min_rows,
        drop_rows=settings.ann_drop_rows,
        max_indexes=settings.ann_max_indexes,
        global_index=settings.global_search and possible,
    )
