"""How much of everything a run measures: quick (under 6 minutes on 2 cores), full, and tiny for the tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The sizes of one run. Sizes of users and tables are in memories."""

    name: str
    dimensions: int
    """Of the synthetic embeddings; real text is embedded at the local model's own 256."""
    small_users: int
    """Half of them have 100 memories, half 250."""
    middle_user: int
    middle_users: int
    large_user: int
    user_ladder: tuple[int, ...]
    """User sizes along which the cost of a search is drawn; `large_user` is one of them."""
    table_ladder: tuple[int, ...]
    """Table sizes along which the cost of a search and of an insert are drawn, at a fixed user size: multiples of the
    first."""
    questions: int
    """Held-out queries of one recall figure."""
    rounds: int
    """Alternations of floor and service."""
    calls_per_round: int
    """Calls of one caller in one round."""
    seconds_per_round: float
    """Length of a round of several callers."""
    inserts: int
    """Single inserts at each table size."""
    imported: int
    """Memories of one import."""
    mixed_calls: int
    comparison_limit_s: float
    """After so long a comparison begins no further round."""
    part_limit_s: float
    """A part that takes longer, the making of its tables included, is given up."""


QUICK = Scale(
    name="quick",
    dimensions=1_536,
    small_users=140,
    middle_user=10_000,
    middle_users=1,
    large_user=25_000,
    user_ladder=(10, 100, 250, 1_000, 3_000, 10_000, 25_000),
    table_ladder=(5_000, 15_000, 30_000),
    questions=200,
    rounds=4,
    calls_per_round=250,
    seconds_per_round=1.5,
    inserts=200,
    imported=4_000,
    mixed_calls=10_000,
    comparison_limit_s=15.0,
    part_limit_s=150.0,
)

FULL = Scale(
    name="full",
    dimensions=1_536,
    small_users=480,
    middle_user=10_000,
    middle_users=3,
    large_user=100_000,
    user_ladder=(10, 30, 100, 250, 1_000, 3_000, 10_000, 30_000, 100_000, 200_000),
    table_ladder=(10_000, 50_000, 100_000, 200_000, 400_000),
    questions=500,
    rounds=7,
    calls_per_round=1_000,
    seconds_per_round=4.0,
    inserts=500,
    imported=20_000,
    mixed_calls=100_000,
    comparison_limit_s=100.0,
    part_limit_s=560.0,
)

TINY = Scale(
    name="tiny",
    dimensions=32,
    small_users=6,
    middle_user=400,
    middle_users=1,
    large_user=600,
    user_ladder=(10, 250, 600),
    table_ladder=(500, 1_000),
    questions=20,
    rounds=2,
    calls_per_round=30,
    seconds_per_round=0.2,
    inserts=20,
    imported=200,
    mixed_calls=200,
    comparison_limit_s=5.0,
    part_limit_s=120.0,
)

SCALES = {scale.name: scale for scale in (QUICK, FULL, TINY)}
