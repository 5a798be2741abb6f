"""Reading SearchSimilar's request: what to look for, how it is compared and ranked, and how much to return."""

import math
from dataclasses import dataclass

from db.filters import Filter
from db.lexical import Words
from db.memory import View
from db.search import Nearest
from db.search_statements import Metric
from db.vectors import Embedding
from memory_service.messages import query_request, ranking_request, requests
from memory_service.messages.fields import FieldReader
from memory_service.messages.query_request import Query
from memory_service.messages.ranking_request import RankingDefaults, RankingDraft
from memory_service.messages.wire_vectors import COMPONENT_BYTES, encoding_of
from memory_service.ranking.options import Mode
from memory_service.v1 import memory_pb2 as pb

METRICS = {
    pb.METRIC_UNSPECIFIED: Metric.COSINE,
    pb.METRIC_COSINE: Metric.COSINE,
    pb.METRIC_INNER_PRODUCT: Metric.INNER_PRODUCT,
    pb.METRIC_L2: Metric.L2,
}
MAX_K1 = 10.0
_DEFAULTS = RankingDefaults()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDraft:
    """A search, before its query is an embedding."""

    user_id: str
    query: Query
    mode: Mode
    words: Words | None
    """None in mode DENSE."""
    ranking: RankingDraft
    limit: int
    metric: Metric
    filter: Filter
    min_score: float | None
    view: View
    encoding: pb.VectorEncoding.ValueType
    exact: bool
    ef_search: int | None
    candidates: int | None
    records_access: bool
    explain: bool

    @property
    def text_to_embed(self) -> str:
        """The text that has to become an embedding; empty for none."""
        return self.query.text if self.query.embedding is None and self.mode is not Mode.LEXICAL else ""

    @property
    def is_plain(self) -> bool:
        """Whether the nearest embeddings are the answer, in one statement."""
        return self.mode is Mode.DENSE and self.ranking.is_neutral

    def nearest(self, embedding: Embedding, *, max_text_bytes: int) -> Nearest:
        """Returns the search for what is near `embedding`."""
        return Nearest(
            embedding=embedding,
            metric=self.metric,
            limit=self.limit,
            filter=self.filter,
            exclude=self.query.memory_id,
            min_score=self.min_score,
            view=self.view,
            max_text_bytes=max_text_bytes,
            exact=self.exact,
            ef_search=self.ef_search,
            candidates=self.candidates,
        )


def read(fields: FieldReader, request: pb.SearchSimilarRequest, defaults: RankingDefaults = _DEFAULTS) -> SearchDraft:
    """Reads the request, noting violations."""
    limits = fields.limits
    view = fields.choice("view", request.view, requests.VIEWS)
    encoding = requests.encoding(fields, request.embedding_encoding, default=encoding_of(request.embedding))
    limit = fields.size("limit", request.limit, default=limits.default_search_limit, maximum=limits.max_search_limit)
    query, mode = query_request.read(fields, request)
    ranking = ranking_request.read(fields, request, mode, defaults)
    # Options are checked also where the mode has no use for them.
    words = (
        _words(fields, query.text, request.lexical) if mode is not Mode.DENSE or request.HasField("lexical") else None
    )
    if view is View.FULL:
        check_embeddings_fit(fields, limit * (1 + 2 * max(0, ranking.context)), encoding)
    if math.isnan(request.min_score):
        fields.violations.add("min_score", "is NaN, expected a number")
    draft = SearchDraft(
        user_id=fields.user_id(request.user_id),
        query=query,
        mode=mode,
        words=None if mode is Mode.DENSE else words,
        ranking=ranking,
        limit=limit,
        metric=fields.choice("metric", request.metric, METRICS),
        filter=requests.memory_filter(fields, request.filter, show_deleted=request.show_deleted),
        min_score=request.min_score if request.HasField("min_score") else None,
        view=view,
        encoding=encoding,
        exact=request.exact,
        ef_search=fields.integer("ef_search", request.ef_search, minimum=1, maximum=limits.max_ef_search)
        if request.HasField("ef_search")
        else None,
        candidates=fields.integer("candidates", request.candidates, minimum=limit, maximum=limits.max_candidates)
        if request.HasField("candidates")
        else None,
        records_access=not request.skip_access_recording,
        explain=request.explain,
    )
    if not draft.is_plain:
        _check_only_plain(fields, draft)
    return draft


def _words(fields: FieldReader, text: str, message: pb.LexicalOptions) -> Words:
    changes: dict[str, float] = {}
    if message.HasField("k1"):
        changes["k1"] = fields.number("lexical.k1", message.k1, minimum=0.0, maximum=MAX_K1)
    if message.HasField("b"):
        changes["b"] = fields.number("lexical.b", message.b, minimum=0.0, maximum=1.0)
    language = fields.language("lexical.language", message.language)
    return Words(text=text, language=language, max_terms=fields.limits.max_query_terms, **changes)


def _check_only_plain(fields: FieldReader, draft: SearchDraft) -> None:
    """Notes what only makes sense where the nearest embeddings are the answer."""
    advice = "leave it out, or choose mode DENSE without ranking, conversation weights and diversity"
    if draft.metric is not Metric.COSINE:
        received = f"is not cosine, by which a ranked search in mode {draft.mode.name} compares"
        fields.violations.add("metric", f"{received}; {advice}")
    if draft.filter.show_deleted:
        received = f"is set, but a ranked search in mode {draft.mode.name} finds live memories only"
        fields.violations.add("show_deleted", f"{received}; {advice}")


def check_embeddings_fit(fields: FieldReader, limit: int, encoding: pb.VectorEncoding.ValueType) -> None:
    """Refuses at once what would fail as soon as the user has enough memories."""
    size = limit * fields.dimensions * COMPONENT_BYTES[encoding]
    if size > (allowed := fields.limits.max_reply_bytes):
        advice = "lower it, choose VECTOR_ENCODING_F16_LE, or leave embeddings out"
        fields.violations.add(
            "limit", f"asks for {limit} embeddings of {size} bytes together, at most {allowed} fit a reply: {advice}"
        )
