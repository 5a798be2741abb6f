"""How property tests run: the same examples every time, and few enough for every run."""

from hypothesis import HealthCheck, settings

MAX_EXAMPLES = 50


def load() -> None:
    """Makes this the profile of the tests that follow."""
    settings.register_profile(
        "repeatable",
        max_examples=MAX_EXAMPLES,
        # A shared machine's pauses are no failures.
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
    )
    settings.load_profile("repeatable")
