"""How long to wait before another try, and when to give up."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from memory_service.bulk.call_failure import CallFailure
from memory_service.bulk.errors import TransferError

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
MAX_ATTEMPTS = 10


@dataclass(slots=True, kw_only=True)
class Retrying:
    """Counts tries that achieved nothing."""

    say: Callable[[str], None]
    sleep: Callable[[float], None]
    _failed: int = 0

    def progressed(self) -> None:
        """Starts to count anew: the last try achieved something."""
        self._failed = 0

    def wait(self, failure: CallFailure) -> None:
        """Waits before the next try, longer each time.

        Raises:
            TransferError: When another try would not help, or enough of them did not.
        """
        self._failed += 1
        if not failure.may_pass:
            raise TransferError(str(failure))
        if self._failed == MAX_ATTEMPTS:
            raise TransferError(f"{failure}; gave up after {MAX_ATTEMPTS} tries")
        backoff_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (self._failed - 1))
        # Spread out, so that clients cut off together do not come back together.
        delay_s = max(failure.retry_after_s, backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        self.say(f"{failure}; trying again in {delay_s:.1f} s")
        self.sleep(delay_s)
