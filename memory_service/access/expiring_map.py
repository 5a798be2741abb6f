"""A map of bounded size whose entries end at a time of their own."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ExpiringMap(Generic[K, V]):
    """Keeps the `max_size` entries put in last. Safe to use from many threads."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, *, now: float) -> V | None:
        """Returns the value, None where there is none that lasts beyond `now`."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and now < entry[1] else None

    def put(self, key: K, value: V, *, until: float) -> None:
        """Keeps a value until then, or until so many others came after it that there is no room."""
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (value, until)
            if len(self._entries) > self._max_size:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
