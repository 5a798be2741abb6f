"""Makes property tests repeatable."""

from tests import property_profile

property_profile.load()
