"""Fuzzing the running service: requests made by Hypothesis, wire bytes made from these, and random interleavings.

The default run takes a few thousand of each; `make fuzz` (python -m tests.fuzz) takes as many as it is told to.
"""
