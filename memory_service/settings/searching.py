"""How searches compare, rank and approximate, where a call does not say."""

from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from db.languages import DEFAULT_LANGUAGE, LANGUAGES

RankingPreset = Literal["none", "balanced", "generative_agents", "recent"]


class SearchSettings(BaseSettings):
    """Language, ranking and how far approximate plans look."""

    language: str = Field(
        DEFAULT_LANGUAGE,
        description="Language of memories and queries that name none, to stem their words in. `simple` takes words as "
        "they are.",
    )
    ranking: RankingPreset = Field(
        "none", description="Ranking of searches by words or by both words and meaning that bring none of their own."
    )
    dense_weight: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Weight of meaning against words in searches by both that bring no weight of their own.",
    )

    ef_search: int = Field(
        64,
        ge=1,
        le=1_000,
        description="How far a search looks in an ANN index, unless the call says otherwise. In an IVFFlat index it "
        "reads this many of every 160 lists.",
    )
    candidates_factor: int = Field(
        20,
        ge=1,
        le=1_000,
        description="How many memories a quantized search compares precisely for each result: this many for users of "
        "1,000 to 10,000 memories, a quarter for smaller ones, twice as many for larger ones.",
    )
    recall_probe_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the approximate searches that is repeated exactly in the background, to measure recall; "
        "for at most 1 % of the time. 0: none.",
    )
    recall_target: float = Field(
        0.98,
        ge=0,
        le=1,
        description="Approximate searches look further, up to 8 times as far, while their measured recall is below.",
    )
    global_search: bool = Field(
        default=False,
        description="`on`: serve SearchAllUsers, and keep an ANN index across users for it.",
    )

    @field_validator("language")
    @classmethod
    def _language_is_known(cls, value: str) -> str:
        if value not in LANGUAGES:
            raise ValueError(f"is none of {', '.join(LANGUAGES)}")
        return value
