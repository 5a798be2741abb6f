"""How far a search walks an approximate index: settings of pgvector for one transaction."""

from db.ann_registry import AnnIndex
from db.search_plan import SearchTuning
from db.wall import Settings


def depth(index: AnnIndex, tuning: SearchTuning, *, limit: int, ef_search: int | None) -> Settings:
    """Returns the settings by which the index is walked far enough for `limit` results.

    Relaxed order finds more than strict order, which drops what comes late; whoever walks sorts again.
    """
    if index.method == "hnsw":
        return {"hnsw.ef_search": str(ef_search or tuning.ef(limit)), "hnsw.iterative_scan": "relaxed_order"}
    return {"ivfflat.probes": str(tuning.probes(index.lists, ef_search)), "ivfflat.iterative_scan": "relaxed_order"}
