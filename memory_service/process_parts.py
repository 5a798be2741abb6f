"""What a process has whatever embedding space its database is in: given to each stack."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from db.access import AccessBuffer
from db.pool import Database
from db.search_tuning import TuningState
from memory_service.limits import Limits
from memory_service.messages.ranking_request import RankingDefaults
from memory_service.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessParts:
    """The parts that all stacks of a process share."""

    database: Database
    database_url: str
    accesses: AccessBuffer
    tuning: TuningState
    metrics: Metrics
    limits: Limits
    ranking: RankingDefaults
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""
