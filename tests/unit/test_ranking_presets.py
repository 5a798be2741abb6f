"""Presets: the contract's numbers, and that a decay becomes the half-life that is the same curve."""

from datetime import timedelta
from typing import Any

import pytest

from memory_service.ranking.boosts import boosts_of
from memory_service.ranking.options import Boosts, Clock
from memory_service.ranking.presets import PRESETS, half_life_s
from memory_service.v1 import memory_pb2 as pb
from tests.unit.sample_candidates import NOW, candidate

DAY_S = 86_400.0
HOUR = timedelta(hours=1)


def test_every_preset_of_the_contract_has_its_boosts() -> None:
    named = {name.removeprefix("RANKING_PRESET_").lower() for name in pb.RankingPreset.keys()}  # noqa: SIM118 - no mapping
    assert set(PRESETS) == named - {"unspecified"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", Boosts()),
        (
            "balanced",
            Boosts(recency_weight=0.2, half_life_s=30 * DAY_S, importance_weight=0.2, access_weight=0.1),
        ),
        ("recent", Boosts(recency_weight=0.4, half_life_s=DAY_S)),
    ],
)
def test_presets_are_what_the_contract_says(name: str, expected: Boosts) -> None:
    assert PRESETS[name] == expected


def test_generative_agents_decay_by_0_995_an_hour_since_the_last_access() -> None:
    preset = PRESETS["generative_agents"]
    assert (preset.recency_weight, preset.importance_weight, preset.access_weight) == (0.5, 0.5, 0.0)
    assert preset.clock is Clock.ACCESSED
    assert preset.half_life_s / 3_600 == pytest.approx(138.28, abs=0.01)


@pytest.mark.parametrize("decay_per_hour", [0.5, 0.995])
@pytest.mark.parametrize("hours", [1, 24, 1_000])
def test_a_half_life_is_the_decay_it_was_made_of(decay_per_hour: float, hours: int) -> None:
    boosts = Boosts(recency_weight=0.1, half_life_s=half_life_s(decay_per_hour))
    [recency] = boosts_of([candidate(created_at=NOW - hours * HOUR)], boosts, as_of=NOW)
    assert recency.values[0] == pytest.approx(decay_per_hour**hours, rel=1e-9, abs=0.0)


def test_presets_cannot_be_changed() -> None:
    presets: Any = PRESETS
    with pytest.raises(TypeError):
        presets["none"] = Boosts(recency_weight=0.5)
