"""The cache of embeddings in front of a provider: what is found in it, and what is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from db import embedding_cache
from db.cancellation import Call
from db.connection import Connection
from db.embedding_cache import Key
from db.errors import DatabaseError
from db.pool import Database

log = structlog.get_logger(__name__)

Vectors = dict[str, NDArray[np.float32]]

# An entry's use is noted at most once in this share of its time: once a day where it lives for 30.
_RENEWALS = 30


class LookedUp(Protocol):
    """Is told how a look-up went."""

    def __call__(self, *, hits: int, misses: int) -> object:
        """Takes the numbers of texts."""
        ...


def _ignore(*, hits: int, misses: int) -> None:
    del hits, misses


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """How long embeddings are kept."""

    enabled: bool = True
    ttl: timedelta = timedelta(days=30)
    """How long an entry lives without being used."""
    on_look_up: LookedUp = _ignore


class VectorCache:
    """One model's embeddings, by text."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        options: CacheOptions,
        *,
        model: str,
        dimensions: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._options = options
        self._model = model
        self._dimensions = dimensions

    def find(self, texts: Sequence[str], call: Call) -> Vectors:
        """Returns the vectors of those texts that are cached, each of shape (dimensions,)."""
        if not self._options.enabled:
            return {}
        keys = {self._key(text): text for text in texts}
        now = self._clock()
        expired = now - self._options.ttl
        found = self._database.read(call, lambda conn: embedding_cache.look_up(conn, list(keys), expired=expired))
        self._options.on_look_up(hits=len(found), misses=len(keys) - len(found))
        aged = now - self._options.ttl / _RENEWALS
        if old := [key for key, entry in found.items() if entry.used_at < aged]:
            self._write(call, lambda conn: embedding_cache.renew(conn, old, now=now))
        return {keys[key]: entry.vector for key, entry in found.items()}

    def remember(self, vectors: Mapping[str, NDArray[np.float32]], call: Call) -> None:
        """Keeps the vectors of these texts."""
        if not self._options.enabled or not vectors:
            return
        embeddings = {self._key(text): vector for text, vector in vectors.items()}
        now = self._clock()
        expired = now - self._options.ttl
        self._write(call, lambda conn: embedding_cache.store(conn, embeddings, now=now, expired=expired))

    def _key(self, text: str) -> Key:
        return embedding_cache.cache_key(self._model, self._dimensions, text)

    def _write(self, call: Call, change: Callable[[Connection], None]) -> None:
        try:
            self._database.write(call, change)
        except DatabaseError as error:  # the caller has its embedding; the cache only saves the next call
            log.warning("embedding_cache_not_written", error=str(error))
