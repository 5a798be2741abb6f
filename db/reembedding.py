"""Moving a live database to another embedding model or number of dimensions, while it is read and written.

reembedding_state     which move is under way: one at most, kept in a table
reembedding_columns   the second, standby family of columns beside the live one, and how both change their names
reembedding_backfill  the memories that lack their standby embedding, found and stored batch by batch
reembedding_indexes   the counterparts of all indexes of embeddings, built before they are needed
reembedding_switch    the moment in which the standby embeddings become the live ones, or go back
reembedding_sessions  the sessions of servers, which a switch ends
reembedding_cleanup   the end of the move, and of the way back

`begin`, then rounds of `stale_batch` and `store_batch`, then `build_indexes`, one more round for what was written
meanwhile, `switch`, and when nobody wants to go back any more `clean_up`. Each step may be interrupted anywhere and run
again. docs/adr/0013-reembedding.md has the reasons.
"""

from db.reembedding_backfill import Progress, Reembedded, Stale, progress, stale_batch, store_batch
from db.reembedding_cleanup import clean_up
from db.reembedding_indexes import OnProgress, build_indexes
from db.reembedding_state import Phase, Reembedding, begin, read_reembedding
from db.reembedding_switch import SwitchOutcome, switch

__all__ = [
    "OnProgress",
    "Phase",
    "Progress",
    "Reembedded",
    "Reembedding",
    "Stale",
    "SwitchOutcome",
    "begin",
    "build_indexes",
    "clean_up",
    "progress",
    "read_reembedding",
    "stale_batch",
    "store_batch",
    "switch",
]
