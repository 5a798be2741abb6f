"""Composed statements, kept for each shape of query that is asked for again and again, up to a number of bytes.

A number of statements is no bound: a filter's text is in its statement, and a caller may send one of 60 KB. With
`functools.lru_cache`, a thousand such filters filled 400 MB.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import update_wrapper
from typing import Generic, ParamSpec

P = ParamSpec("P")

# Of each function that composes statements. A search without conditions on metadata takes 2 to 5 KB.
MAX_BYTES = 4 << 20
# What an entry takes beside its texts.
ENTRY_BYTES = 1_024


class StatementCache(Generic[P]):
    """A function that composes a statement, as a decorator: equal arguments return the same object while it is kept.

    The arguments are hashable, and not much longer than the statement they make. Safe to use from many threads.
    """

    def __init__(self, compose: Callable[P, bytes], *, max_bytes: int = MAX_BYTES) -> None:
        update_wrapper(self, compose)
        self._compose = compose
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()  # the one left alone for the longest time is first
        self._bytes = 0

    @property
    def bytes_kept(self) -> int:
        """What the statements and their arguments take, about."""
        return self._bytes

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Returns the statement for these arguments."""
        key = (args, tuple(kwargs.items()))
        with self._lock:
            if (statement := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return statement
        return self._keep(key, self._compose(*args, **kwargs))

    def _keep(self, key: Hashable, statement: bytes) -> bytes:
        with self._lock:
            if (meanwhile := self._kept.get(key)) is not None:  # by another thread
                return meanwhile
            self._kept[key] = statement
            self._bytes += _size(statement)
            while self._bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _size(oldest)
        return statement


def _size(statement: bytes) -> int:
    # A filter's text is in the arguments as well.
    return 2 * len(statement) + ENTRY_BYTES
