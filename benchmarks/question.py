"""One search as a caller asks it, the same for the floor and for the service."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 10
CONTENT = "A memory of about the length of a message in a chat, stored by itself."
"""The text of memories that are inserted one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """Attributes the memories must have; None does not restrict."""

    importance: int | None = None
    """About 10 % of the rows."""
    tenth: int | None = None
    """A value in the metadata; about 10 % of the rows."""
    hundredth: int | None = None
    """A value in the metadata; about 1 % of the rows."""
    conversation: int | None = None
    """About 1 % of the rows, near one another."""


NONE = Restriction()


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How hard the service is asked to look; None leaves it to the service."""

    exact: bool = False
    ef_search: int | None = None
    candidates: int | None = None


DEFAULT = Knobs()


@dataclass(frozen=True, slots=True)
class Question:
    """What is near `vector`, shape (dimensions,), among a user's memories?"""

    user: str
    vector: NDArray[np.float32]
    restriction: Restriction = NONE
    knobs: Knobs = DEFAULT


@dataclass(frozen=True, slots=True)
class Answer:
    """The ids found, nearest first, and the plan that found them where the service says so."""

    ids: list[str]
    plan: str = ""
