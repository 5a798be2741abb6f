"""Clocks that tests set: of the time, and of seconds that pass."""

from datetime import datetime, timedelta


class Clock:
    """Tells the time that a test has set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Returns the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += timedelta(seconds=seconds)


class SecondsClock:
    """Tells the seconds that a test has set, as time.monotonic does."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """Returns the seconds."""
        return self.now
