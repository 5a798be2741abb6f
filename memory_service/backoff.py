"""How long to wait before the next attempt at what has failed: longer each time, and not all at the same time."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off with "equal jitter": half of the delay is certain, half is drawn.

    See "Exponential Backoff And Jitter" (M. Brooker, AWS Architecture Blog, 2015).
    """

    first_s: float
    longest_s: float
    draw: Callable[[], float] = random.random
    """Returns a number from 0 to 1."""

    def delay_s(self, attempts: int) -> float:
        """Returns the seconds to wait after so many attempts, 1 or more, have failed."""
        doublings = min(attempts - 1, 64)  # a float overflows after a thousand
        delay_s = min(self.longest_s, self.first_s * 2.0**doublings)
        return delay_s * (0.5 + self.draw() / 2)
