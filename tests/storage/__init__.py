"""Tests of the database layer, against a real PostgreSQL."""
