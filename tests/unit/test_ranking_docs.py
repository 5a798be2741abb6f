"""docs/ranking.md is right: its worked example is computed anew, and its presets are those of the code."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memory_service.ranking.options import Convex, Mode
from memory_service.ranking.presets import PRESETS
from memory_service.ranking.rank import Ranked, rank
from tests.unit.sample_candidates import candidate, options

TEXT = (Path(__file__).parents[2] / "docs" / "ranking.md").read_text(encoding="utf-8")
AS_OF = datetime(2026, 3, 31, 12, tzinfo=UTC)
UNITS_S = {"day": 86_400.0, "days": 86_400.0, "hours": 3_600.0}


def rows_below(heading: str) -> list[list[str]]:
    """Returns the cells of the table with this first column."""
    [table] = re.findall(rf"^\| {heading} \|.*\n\|[ |-]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def results() -> dict[str, Ranked]:
    """Returns what comes of the example, best first, by name."""
    names, pool = {}, []
    for number, (name, cosine, bm25, importance, accesses, created) in enumerate(rows_below("memory"), start=1):
        one = candidate(
            number,
            cosine=float(cosine),
            bm25=float(bm25),
            importance=int(importance),
            access_count=int(accesses),
            created_at=datetime.fromisoformat(created).replace(tzinfo=UTC),
        )
        names[one.id] = name
        pool.append(one)
    chosen = options(mode=Mode.HYBRID, fusion=Convex(0.6), boosts=PRESETS["balanced"], as_of=AS_OF)
    return {names[ranked.candidate.id]: ranked for ranked in rank(pool, chosen)}


def test_the_worked_example_comes_out_as_written() -> None:
    found = [
        [
            name,
            *(
                f"{number:.4f}"
                for number in (
                    one.dense or 0.0,
                    one.lexical or 0.0,
                    one.relevance,
                    *(boost.factor for boost in one.boosts),
                    one.score,
                )
            ),
        ]
        for name, one in results().items()
    ]
    assert found == rows_below("result")


def test_the_example_shows_what_the_text_says_of_it() -> None:
    found = results()
    assert found["cabin"].relevance > found["boats"].relevance
    assert found["cabin"].score < found["boats"].score
    assert list(found)[-1] == "knee"
    factors = {name: [boost.factor for boost in one.boosts] for name, one in found.items()}
    assert factors["knee"] == [max(each) for each in zip(*factors.values(), strict=True)]


def test_presets_are_those_of_the_code() -> None:
    rows = rows_below("preset")
    assert {row[0].strip("`").lower() for row in rows} == set(PRESETS)
    for name, recency, half_life, clock, importance, access, _ in rows:
        preset = PRESETS[name.strip("`").lower()]
        assert (preset.recency_weight, preset.importance_weight, preset.access_weight) == (
            float(recency),
            float(importance),
            float(access),
        )
        if preset.recency_weight:
            number, unit = half_life.split()
            assert preset.half_life_s == pytest.approx(float(number) * UNITS_S[unit], rel=1e-4)
            assert preset.clock.name.lower() == clock
