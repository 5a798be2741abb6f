"""Beginning a move: which model it leads to, whether it may begin, and the record that it has."""

from collections.abc import Callable
from datetime import UTC, datetime

from db import reembedding
from db.ann_session import AnnSession
from db.connection import Connection
from db.errors import Conflict, ReembeddingConflict
from db.reembedding import Reembedding
from db.schema import EmbeddingSpace
from memory_service.config import ConfigurationError, Settings
from memory_service.provisioning import embedding_space
from memory_service.reembedding.move import PAUSE_S
from memory_service.reembedding.patient_embedding import Stopped
from memory_service.reembedding.request import Request
from memory_service.signals import StopRequest
from memory_service.space_settings import adopting

ATTEMPTS = 10


def target_settings(settings: Settings, request: Request, under_way: Reembedding | None) -> Settings:
    """Returns the settings of the new model, which have to be those of the move under way if there is one.

    Raises:
        ReembeddingConflict: No model is named and no move is under way, or one to another model is.
        ConfigurationError: The model cannot be had with these settings.
    """
    if under_way is not None and not request.names_target:
        return adopting(settings, under_way.embedder, under_way.standby)
    if not request.names_target:
        raise ReembeddingConflict("no move is under way to go on with; name the model: --embedder, --model")
    kind = request.embedder or settings.embedder
    if kind == "none":
        raise ConfigurationError(
            "--embedder none: memories cannot be embedded anew without an embedder; callers would have to send all "
            "embeddings again, for which an import into a new database is the way"
        )
    target = settings.with_embedder(kind, request.model, request.dimensions)
    if under_way is not None and (target.embedder, embedding_space(target)) != (
        under_way.embedder,
        under_way.standby,
    ):
        raise ReembeddingConflict(f"a move to {under_way.standby} is under way: go on with it, or end it with --cancel")
    return target


def require_new(settings: Settings, target: Settings, *, live: EmbeddingSpace) -> None:
    """Returns when a move from `live` to `target` may begin, under the settings that the servers have.

    Raises:
        ReembeddingConflict: It would lead nowhere.
        ConfigurationError: The settings do not say what leads back.
    """
    if live == embedding_space(target):
        raise ReembeddingConflict(f"the embeddings are of {live} already: there is nothing to do")
    if live != embedding_space(settings):
        raise ConfigurationError(
            f"the embeddings are of {live}: while a move begins, MEMORY_EMBEDDER, MEMORY_EMBEDDING_MODEL and "
            "MEMORY_EMBEDDING_DIMENSIONS have to name these, so that it is known what leads back"
        )


def begin(
    target: Settings, *, live_embedder: str, direct_url: str, say: Callable[[str], None], stop: StopRequest
) -> None:
    """Writes down that a move has begun, trying again where transactions are in the way.

    Raises:
        Conflict: They were each time.
        Stopped: `stop` was set.
        DatabaseError: Something else is amiss.
    """

    def write_down(conn: Connection) -> Reembedding:
        space, now = embedding_space(target), datetime.now(UTC)
        return reembedding.begin(conn, target.embedder, space, live_embedder=live_embedder, now=now)

    with AnnSession(direct_url) as session:
        for _ in range(ATTEMPTS - 1):
            try:
                session.query(write_down)
            except Conflict as error:
                say(str(error))
                if stop.wait(PAUSE_S):
                    raise Stopped from None
            else:
                return
        session.query(write_down)
