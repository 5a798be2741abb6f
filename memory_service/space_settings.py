"""Which settings serve the embedding space that the database is in: the configured ones, or those of a re-embedding."""

from dataclasses import dataclass

import structlog
from pydantic import TypeAdapter

from db.reembedding_state import Reembedding
from db.schema import EmbeddingSpace
from memory_service.config import ConfigurationError, Settings
from memory_service.embedding import Embedder, create_embedder
from memory_service.embedding.absent import AbsentEmbedder
from memory_service.provisioning import embedding_space
from memory_service.settings.embedding import Embedder as EmbedderKind

log = structlog.get_logger(__name__)

EMBEDDER: TypeAdapter[EmbedderKind] = TypeAdapter(EmbedderKind)


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """Settings whose model and dimensions are the database's."""

    settings: Settings
    adopted: bool = False
    """Whether they are not the configured ones; an embedder for them may then be out of reach."""

    @property
    def space(self) -> EmbeddingSpace:
        """The space they are for."""
        return embedding_space(self.settings)

    def create_embedder(self) -> Embedder | None:
        """Returns the embedder; None where callers embed. One that cannot be adopted refuses every text.

        Raises:
            ConfigurationError: The embedder that is configured cannot be made.
        """
        if not self.adopted:
            return create_embedder(self.settings)
        kind, space = self.settings.embedder, self.space
        try:
            embedder = create_embedder(adopting(self.settings, kind, space))
        except ConfigurationError as error:
            reason, to_set = " ".join(str(error).split()), what_to_set(kind, space)
            log.error("embedder_not_adopted", database=str(space), reason=reason, set=to_set)  # noqa: TRY400 - no defect
            return AbsentEmbedder(
                space, f"this server is not configured to embed for its database, which is of {space}"
            )
        log.warning("settings_out_of_date", database=str(space), set=what_to_set(kind, space))
        return embedder


def choose(configured: Settings, actual: EmbeddingSpace | None, move: Reembedding | None) -> SpaceSettings:
    """Returns the settings for a database whose embeddings are of `actual`.

    They are the configured ones, unless the re-embedding `move` put the database into another space. Where none did,
    the configuration or the database is the wrong one: their spaces differ, see `db.schema.require_space`.
    """
    if actual is None or move is None or actual != move.live or actual == embedding_space(configured):
        return SpaceSettings(configured)
    changes = {
        "embedder": move.live_embedder,
        "embedding_model": actual.model,
        "embedding_dimensions": actual.dimensions,
    }
    return SpaceSettings(configured.model_copy(update=changes), adopted=True)


def adopting(configured: Settings, kind: str, space: EmbeddingSpace) -> Settings:
    """Returns the configured settings with an embedder of this kind for this space.

    Raises:
        ConfigurationError: When they lack what it needs.
    """
    return configured.with_embedder(EMBEDDER.validate_python(kind), space.model, space.dimensions)


def what_to_set(kind: str, space: EmbeddingSpace) -> dict[str, str]:
    """Returns the variables that configure an embedder of this kind for this space."""
    return {
        "MEMORY_EMBEDDER": kind,
        "MEMORY_EMBEDDING_MODEL": space.model,
        "MEMORY_EMBEDDING_DIMENSIONS": str(space.dimensions),
    }
