"""Well-known settings of the boosts, by name; docs/ranking.md says where they come from."""

import math
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from memory_service.ranking.options import Boosts, Clock

# Park et al. 2023, Generative Agents (arXiv:2304.03442), section 4.1: recency decays by this every hour.
GENERATIVE_AGENTS_DECAY_PER_HOUR = 0.995
MAX_WEIGHT = 0.5


def half_life_s(decay_per_hour: float) -> float:
    """Returns the half-life, in seconds, of what shrinks to `decay_per_hour` (between 0 and 1) of itself each hour."""
    return timedelta(hours=1).total_seconds() * math.log(2) / -math.log(decay_per_hour)


PRESETS: Mapping[str, Boosts] = MappingProxyType(
    {
        "none": Boosts(),
        "balanced": Boosts(
            recency_weight=0.2,
            half_life_s=timedelta(days=30).total_seconds(),
            importance_weight=0.2,
            access_weight=0.1,
        ),
        "generative_agents": Boosts(
            recency_weight=MAX_WEIGHT,
            half_life_s=half_life_s(GENERATIVE_AGENTS_DECAY_PER_HOUR),
            clock=Clock.ACCESSED,
            importance_weight=MAX_WEIGHT,
        ),
        "recent": Boosts(recency_weight=0.4, half_life_s=timedelta(days=1).total_seconds()),
    }
)
"""The names are those of RankingPreset, in lower case and without its prefix."""
