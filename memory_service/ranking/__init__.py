"""Ranking: from candidates and what is known of them to ordered, explained results; numpy alone, no I/O."""
