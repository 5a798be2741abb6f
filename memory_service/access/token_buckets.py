"""Token buckets, one for each name: how much of something each may use, in the long run and at once.

The generic cell rate algorithm (ITU-T I.371) keeps one number a bucket, the time at which it will be full again.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_BUCKETS = 100_000
# What adding and subtracting times may lose.
ROUNDING_S = 1e-6


class TokenBuckets:
    """Buckets that fill at one rate.

    At most `max_buckets` are remembered, 20 MB for names of 50 characters. The one left alone for the longest time
    is forgotten first; it is then full, so whoever can use that many names gains one burst for each.
    """

    def __init__(
        self,
        *,
        rate_per_s: float,
        burst_s: float,
        max_buckets: int = MAX_BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares buckets that hold what `burst_s` seconds let in, and at least 1; `clock` returns seconds."""
        self._seconds_each = 1.0 / rate_per_s
        self._capacity_s = max(burst_s, self._seconds_each)
        self._max_buckets = max_buckets
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, name: str, amount: float) -> float:
        """Takes `amount` out of a bucket and returns 0, or takes nothing and returns in how many seconds it can.

        What is more than a bucket holds is taken from a full one, which then stays empty accordingly longer: it would
        never be let through otherwise.
        """
        cost_s = amount * self._seconds_each
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(name, now), now)
            if wait_s := self._wait_s(full_at - now, cost_s):
                return wait_s
            self._full_at[name] = full_at + cost_s
            self._full_at.move_to_end(name)
            if len(self._full_at) > self._max_buckets:
                self._full_at.popitem(last=False)
        return 0.0

    def wait_s(self, name: str, amount: float) -> float:
        """Returns in how many seconds `take` would take as much, 0 for now; takes nothing."""
        now = self._clock()
        return self._wait_s(max(self._full_at.get(name, now) - now, 0.0), amount * self._seconds_each)

    def _wait_s(self, until_full_s: float, cost_s: float) -> float:
        wait_s = until_full_s + min(cost_s, self._capacity_s) - self._capacity_s
        return wait_s if wait_s > ROUNDING_S else 0.0

    def give_back(self, name: str, amount: float) -> None:
        """Puts back what was taken for something that did not happen."""
        with self._lock:
            if name in self._full_at:
                self._full_at[name] -= amount * self._seconds_each

    def __len__(self) -> int:
        """Returns how many buckets are remembered."""
        return len(self._full_at)
