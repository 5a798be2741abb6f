"""How an attempt at a job of the embedding queue can end."""

from enum import Enum


class JobOutcome(Enum):
    """What became of an attempt at a job."""

    EMBEDDED = "embedded"
    OBSOLETE = "obsolete"
    """Its memory was erased, changed or embedded meanwhile."""
    REFUSED = "refused"
    """The model cannot embed the text; it is not tried again."""
    POSTPONED = "postponed"
    """The provider failed; it is tried again later."""
    GIVEN_UP = "given_up"
    """The provider failed too often; it is not tried again."""
    RELEASED = "released"
    """It was given back untried."""
