"""Reading SearchSimilar's request: what to look for, how near it is measured, and how much to return."""

import math
from dataclasses import dataclass
from uuid import UUID

from db.filters import Filter
from db.memory import View
from db.search import Nearest
from db.search_statements import Metric
from db.vectors import Embedding
from memory_service import requests
from memory_service.fields import FieldReader
from memory_service.v1 import memory_pb2 as pb
from memory_service.wire_vectors import COMPONENT_BYTES, encoding_of

METRICS = {
    pb.METRIC_UNSPECIFIED: Metric.COSINE,
    pb.METRIC_COSINE: Metric.COSINE,
    pb.METRIC_INNER_PRODUCT: Metric.INNER_PRODUCT,
    pb.METRIC_L2: Metric.L2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for: exactly one of the three."""

    embedding: Embedding | None = None
    text: str = ""
    memory_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchDraft:
    """A search, before its query is an embedding."""

    user_id: str
    query: Query
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


def read(fields: FieldReader, request: pb.SearchSimilarRequest) -> SearchDraft:
    """Reads the request, noting violations."""
    limits = fields.limits
    view = fields.choice("view", request.view, requests.VIEWS)
    encoding = requests.encoding(fields, request.embedding_encoding, default=encoding_of(request.embedding))
    limit = fields.size("limit", request.limit, default=limits.default_search_limit, maximum=limits.max_search_limit)
    if view is View.FULL:
        check_embeddings_fit(fields, limit, encoding)
    if math.isnan(request.min_score):
        fields.violations.add("min_score", "is NaN, expected a number")
    return SearchDraft(
        user_id=fields.user_id(request.user_id),
        query=_query(fields, request),
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
    )


def _query(fields: FieldReader, request: pb.SearchSimilarRequest) -> Query:
    given = [
        name
        for name, is_set in (
            ("embedding", request.HasField("embedding")),
            ("text", bool(request.text)),
            ("memory_id", bool(request.memory_id)),
        )
        if is_set
    ]
    if len(given) != 1:
        received = " and ".join(given) or "none of them"
        fields.violations.add(
            given[-1] if given else "text",
            f"expected exactly one of embedding, text and memory_id, received {received}",
        )
        return Query()
    match given[0]:
        case "embedding":
            return Query(embedding=fields.embedding("embedding", request.embedding))
        case "text":
            return Query(text=fields.text_to_embed("text", request.text))
        case _:
            return Query(memory_id=fields.uuid("memory_id", request.memory_id))


def check_embeddings_fit(fields: FieldReader, limit: int, encoding: pb.VectorEncoding.ValueType) -> None:
    """Refuses at once what would fail as soon as the user has enough memories."""
    size = limit * fields.dimensions * COMPONENT_BYTES[encoding]
    if size > (allowed := fields.limits.max_reply_bytes):
        advice = "lower it, choose VECTOR_ENCODING_F16_LE, or leave embeddings out"
        fields.violations.add(
            "limit", f"asks for {limit} embeddings of {size} bytes together, at most {allowed} fit a reply: {advice}"
        )
