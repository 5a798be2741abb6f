"""The evaluation: its scores, its sets, and a run of it."""
