"""Makes property tests repeatable, and provides what reading a request takes."""

import pytest

from memory_service import config
from memory_service.limits import Limits, limits_of
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from tests import property_profile

property_profile.load()

DIMENSIONS = 4


@pytest.fixture
def limits() -> Limits:
    """The limits of a server with default settings."""
    return limits_of(config.load(embedder="none", embedding_dimensions=DIMENSIONS))


@pytest.fixture
def fields(limits: Limits) -> FieldReader:
    """Reads fields of a server with an embedder and 4 dimensions."""
    return FieldReader(limits, DIMENSIONS, can_embed=True, violations=Violations())


@pytest.fixture
def fields_without_embedder(limits: Limits) -> FieldReader:
    """Reads fields of a server whose callers send embeddings."""
    return FieldReader(limits, DIMENSIONS, can_embed=False, violations=Violations())
