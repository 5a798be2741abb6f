"""Tests of what benchmark, evaluation and fault scenarios share: how parts are run, and their results kept."""
