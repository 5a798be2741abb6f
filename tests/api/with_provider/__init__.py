"""Tests of a service that embeds text through a provider."""
