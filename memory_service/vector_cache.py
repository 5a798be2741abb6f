"""The cache of embeddings in front of a provider: what is found in it, and what is kept."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from db.wall import ACROSS_USERS

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
        self._asked_for = _AskedFor()

    def find(self, texts: Sequence[str], call: Call) -> Vectors:
        """Returns the vectors of those texts that are cached, each of shape (dimensions,)."""
        if not self._options.enabled:
            return {}
        keys = {self._key(text): text for text in texts}
        now = self._clock()
        expired = now - self._options.ttl
        found = self._database.read(
            call, lambda conn: embedding_cache.look_up(conn, list(keys), expired=expired), user_id=ACROSS_USERS
        )
        self._options.on_look_up(hits=len(found), misses=len(keys) - len(found))
        aged = now - self._options.ttl / _RENEWALS
        if old := [key for key, entry in found.items() if entry.used_at < aged]:
            self._write(call, lambda conn: embedding_cache.renew(conn, old, now=now))
        return {keys[key]: entry.vector for key, entry in found.items()}

    @contextmanager
    def asking(self, texts: Collection[str]) -> Iterator[None]:
        """Says that these texts, which are not cached, are being asked for: `remember` is called within.

        Of several callers that ask for a text at the same time one keeps its vector.
        """
        keys = [self._key(text) for text in texts]
        self._asked_for.begin(keys)
        try:
            yield
        finally:
            self._asked_for.end(keys)

    def remember(self, vectors: Mapping[str, NDArray[np.float32]], call: Call) -> None:
        """Keeps the vectors of these texts, but for those that another caller has kept meanwhile."""
        if not self._options.enabled or not vectors:
            return
        by_key = {self._key(text): vector for text, vector in vectors.items()}
        mine = {key: by_key[key] for key in self._asked_for.claim(by_key)}
        if not mine:
            return
        now = self._clock()
        expired = now - self._options.ttl
        if not self._write(call, lambda conn: embedding_cache.store(conn, mine, now=now, expired=expired)):
            self._asked_for.give_back(mine)

    def _key(self, text: str) -> Key:
        return embedding_cache.cache_key(self._model, self._dimensions, text)

    def _write(self, call: Call, change: Callable[[Connection], None]) -> bool:
        """Returns whether the change was made."""
        try:
            self._database.write(call, change, user_id=ACROSS_USERS)
        except DatabaseError as error:  # the caller has its embedding; the cache only saves the next call
            log.warning("embedding_cache_not_written", error=str(error))
            return False
        return True


class _AskedFor:
    """The texts that callers of this process ask for at the moment, and which of them one caller is keeping.

    Nothing is remembered of a text nobody asks for any more: it may be evicted, asked for again and kept again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: Counter[Key] = Counter()
        self._claimed: set[Key] = set()

    def begin(self, keys: Collection[Key]) -> None:
        with self._lock:
            self._callers.update(keys)

    def end(self, keys: Collection[Key]) -> None:
        with self._lock:
            self._callers.subtract(keys)
            for key in keys:
                if not self._callers[key]:
                    del self._callers[key]
                    self._claimed.discard(key)

    def claim(self, keys: Collection[Key]) -> list[Key]:
        """Returns those of the keys that nobody has claimed, which the caller has now."""
        with self._lock:
            free = [key for key in keys if key not in self._claimed]
            self._claimed.update(free)
        return free

    def give_back(self, keys: Collection[Key]) -> None:
        """Lets another caller claim these keys."""
        with self._lock:
            self._claimed.difference_update(keys)
