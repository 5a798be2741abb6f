"""Reading how a search ranks what it finds: the blend of its sides, boosts, conversations and diversity."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from memory_service.messages.fields import FieldReader
from memory_service.ranking.options import Boosts, Clock, ConversationWeights, Convex, Diversity, Fusion, Mode, Rrf
from memory_service.ranking.presets import PRESETS
from memory_service.v1 import memory_pb2 as pb

PRESET_NAMES = {
    pb.RANKING_PRESET_UNSPECIFIED: "none",
    pb.RANKING_PRESET_NONE: "none",
    pb.RANKING_PRESET_BALANCED: "balanced",
    pb.RANKING_PRESET_GENERATIVE_AGENTS: "generative_agents",
    pb.RANKING_PRESET_RECENT: "recent",
}
CLOCKS = {
    pb.RECENCY_CLOCK_UNSPECIFIED: None,
    pb.RECENCY_CLOCK_CREATED: Clock.CREATED,
    pb.RECENCY_CLOCK_UPDATED: Clock.UPDATED,
    pb.RECENCY_CLOCK_ACCESSED: Clock.ACCESSED,
}
MAX_BOOST_WEIGHT = 0.5
MIN_HALF_LIFE, MAX_HALF_LIFE = timedelta(seconds=1), timedelta(days=36_525)
MIN_RRF_K, MAX_RRF_K = 1.0, 1_000.0
MAX_CONTEXT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingDefaults:
    """How searches are ranked that do not say so themselves."""

    preset: str = "none"
    """For LEXICAL and HYBRID; one of PRESETS."""
    dense_weight: float = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingDraft:
    """How to rank."""

    fusion: Fusion
    boosts: Boosts
    conversation: ConversationWeights
    diversity: Diversity
    as_of: datetime | None
    """None: the time of the call."""
    context: int = 0
    """How many memories around each result to return with it, before it and after it."""

    @property
    def is_neutral(self) -> bool:
        """Whether nothing but the nearness to the query counts."""
        return self.boosts.neutral and self.conversation.neutral and self.diversity.neutral


_PLAIN = RankingDraft(
    fusion=Convex(1.0),
    boosts=PRESETS["none"],
    conversation=ConversationWeights(),
    diversity=Diversity(),
    as_of=None,
)


def read(fields: FieldReader, request: pb.SearchSimilarRequest, mode: Mode, defaults: RankingDefaults) -> RankingDraft:
    """Reads the ranking of a search, noting violations.

    Most searches by meaning alone name no ranking, and must not pay for one: what is unset is not read.
    """
    if mode is Mode.DENSE and not _names_any_option(request):
        return _PLAIN
    ranking, conversation = request.ranking, request.conversation
    return RankingDraft(
        fusion=_fusion(fields, request.fusion, defaults),
        boosts=_boosts(fields, ranking)
        if request.HasField("ranking")
        else PRESETS["none" if mode is Mode.DENSE else defaults.preset],
        conversation=_conversation(fields, conversation),
        diversity=_diversity(fields, request.diversity),
        as_of=fields.time("ranking.as_of", ranking.as_of) if ranking.HasField("as_of") else None,
        context=fields.integer("conversation.context", conversation.context, minimum=0, maximum=MAX_CONTEXT),
    )


def _names_any_option(request: pb.SearchSimilarRequest) -> bool:
    has = request.HasField
    return has("ranking") or has("fusion") or has("conversation") or has("diversity")


def _fusion(fields: FieldReader, message: pb.Fusion, defaults: RankingDefaults) -> Fusion:
    match message.WhichOneof("method"):
        case "dense_weight":
            weight = fields.number("fusion.dense_weight", message.dense_weight, minimum=0.0, maximum=1.0)
            return Convex(weight)
        case "rrf_k":
            return Rrf(fields.number("fusion.rrf_k", message.rrf_k, minimum=MIN_RRF_K, maximum=MAX_RRF_K))
        case _:
            return Convex(defaults.dense_weight)


def _boosts(fields: FieldReader, message: pb.Ranking) -> Boosts:
    """Returns the preset with what the message sets in its place."""
    changes: dict[str, Any] = {
        name: fields.number(f"ranking.{name}", getattr(message, name), minimum=0.0, maximum=MAX_BOOST_WEIGHT)
        for name in ("recency_weight", "importance_weight", "access_weight")
        if message.HasField(name)
    }
    if message.HasField("half_life"):
        half_life = fields.duration(
            "ranking.half_life", message.half_life, minimum=MIN_HALF_LIFE, maximum=MAX_HALF_LIFE
        )
        changes["half_life_s"] = half_life.total_seconds()
    if (clock := fields.choice("ranking.clock", message.clock, CLOCKS)) is not None:
        changes["clock"] = clock
    return replace(PRESETS[fields.choice("ranking.preset", message.preset, PRESET_NAMES)], **changes)


def _conversation(fields: FieldReader, message: pb.ConversationOptions) -> ConversationWeights:
    return ConversationWeights(
        neighbour=_share(fields, "conversation.neighbour_weight", message.neighbour_weight),
        conversation=_share(fields, "conversation.conversation_weight", message.conversation_weight),
    )


def _share(fields: FieldReader, path: str, value: float) -> float:
    return fields.number(path, value, minimum=0.0, maximum=1.0)


def _diversity(fields: FieldReader, message: pb.Diversity) -> Diversity:
    return Diversity(
        mmr_lambda=_share(fields, "diversity.mmr_lambda", message.mmr_lambda)
        if message.HasField("mmr_lambda")
        else None,
        collapse_similarity=fields.positive_number(
            "diversity.collapse_similarity", message.collapse_similarity, maximum=1.0
        )
        if message.HasField("collapse_similarity")
        else None,
    )
