"""Whether what several clients saw can be explained by some order of their operations (Wing and Gong 1993).

An operation that ended before another began comes before it in that order; those that overlap may come in any. The
order is looked for operation by operation, and no position that led nowhere is tried twice (Lowe 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.model import Operation, Outcome, State


@dataclass(frozen=True, slots=True)
class Event:
    """An operation that was done, and what came of it."""

    client: int
    begun_at: float
    ended_at: float
    operation: Operation
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.begun_at:.6f}-{self.ended_at:.6f} client {self.client}: {self.operation} -> {self.outcome}"


class NotLinearizable(AssertionError):
    """No order explains what was seen."""


def explain(events: Sequence[Event], before: State) -> list[Event]:
    """Returns an order of the events that explains every outcome, beginning in a state.

    Raises:
        NotLinearizable: There is none; the message shows where the longest attempt came to an end.
    """
    clients = sorted({event.client for event in events})
    histories = [
        sorted((event for event in events if event.client == client), key=lambda event: event.begun_at)
        for client in clients
    ]
    path: list[Event] = []
    longest: list[Event] = []
    tried: set[tuple[tuple[int, ...], frozenset[object]]] = set()
    # Each level: positions in the histories, the state there, and the events that may come next.
    start = (0,) * len(histories)
    levels = [(start, before, _next(histories, start))]
    while levels:
        places, state, candidates = levels[-1]
        if len(path) == len(events):
            return path
        if not candidates:
            levels.pop()
            if path and levels:
                path.pop()
            continue
        client = candidates.pop()
        event = histories[client][places[client]]
        after = event.operation.after(state, event.outcome)
        if after is None:
            continue
        moved = (*places[:client], places[client] + 1, *places[client + 1 :])
        key = (moved, frozenset(after.items()))
        if key in tried:
            continue
        tried.add(key)
        path.append(event)
        if len(path) > len(longest):
            longest = list(path)
        levels.append((moved, after, _next(histories, moved)))
    left = [event for event in events if event not in longest]
    shown = "\n".join(map(str, [*longest[-8:], "--- not explained:", *left[:8]]))
    raise NotLinearizable(f"{len(longest)} of {len(events)} operations can be put in order:\n{shown}")


def _next(histories: Sequence[Sequence[Event]], places: Sequence[int]) -> list[int]:
    """Returns whose event may come next: those begun before any of the others ended. Last the one that began first."""
    heads = [
        (history[place], client)
        for client, (history, place) in enumerate(zip(histories, places, strict=True))
        if place < len(history)
    ]
    if not heads:
        return []
    first_end = min(event.ended_at for event, _ in heads)
    may = [(event.begun_at, client) for event, client in heads if event.begun_at <= first_end]
    return [client for _, client in sorted(may, reverse=True)]
