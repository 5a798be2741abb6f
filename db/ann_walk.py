"""How far a search walks an approximate index: settings of pgvector for one transaction."""

from psycopg.sql import SQL

from db.ann_registry import AnnIndex
from db.connection import Connection
from db.search_plan import SearchTuning


def set_depth(conn: Connection, index: AnnIndex, tuning: SearchTuning, *, limit: int, ef_search: int | None) -> None:
    """Sets, until the transaction ends, how far the index is walked for `limit` results.

    Relaxed order finds more than strict order, which drops what comes late; whoever walks sorts again.
    """
    if index.method == "hnsw":
        conn.execute(SQL("SET LOCAL hnsw.ef_search = {}").format(ef_search or tuning.ef(limit)))
        conn.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
    else:
        conn.execute(SQL("SET LOCAL ivfflat.probes = {}").format(tuning.probes(index.lists, ef_search)))
        conn.execute("SET LOCAL ivfflat.iterative_scan = relaxed_order")
