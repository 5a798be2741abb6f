"""Fuzzing all RPCs in turn, a few dozen requests each time, from one seed."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutate
from tests.fuzz.population import Population, replenish
from tests.fuzz.requests import Requests
from tests.fuzz.services import Rpc, rpcs
from tests.fuzz.target import Target

MUTANTS = 9
"""Inputs made of each request, beside the request itself."""

# Beyond 16 MiB gRPC refuses a request by itself, before the service sees it.
MAX_BYTES = 8 << 20

# It takes away what all others are to find.
LAST = "ClearDatabase"


def run(
    target: Target,
    population: Population,
    *,
    numbers: Iterable[int],
    requests_each: int,
) -> Iterator[Rpc]:
    """Fuzzes each RPC with so many requests and their mutants, round by round; yields after each RPC.

    Args:
        target: What to fuzz.
        population: What is stored there.
        numbers: The seed of each round: the same one makes the same requests for the same population.
        requests_each: Requests for each RPC in a round.
    """
    makers = Requests(population)
    everything = [rpc for rpc in rpcs() if rpc.name != LAST]
    for number in numbers:
        # Administrators' requests take much away from the others.
        for _, of_service in groupby(enumerate(everything), key=lambda numbered: numbered[1].service):
            replenish(target.channel, population)
            for slice_number, rpc in of_service:
                count = requests_each if rpc.request.fields else 1
                fuzz(target, rpc, makers.of(rpc.request), number=hash((number, slice_number)), count=count)
                yield rpc
    for rpc in rpcs():
        if rpc.name == LAST:
            fuzz(target, rpc, makers.of(rpc.request), number=0, count=requests_each)
            yield rpc


def fuzz(target: Target, rpc: Rpc, requests: st.SearchStrategy[Any], *, number: int, count: int) -> None:
    """Sends requests of one RPC, each with its mutants."""

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests, st.integers(0, 2**64 - 1))
    def send(message: Any, mutation_seed: int) -> None:
        target.send(rpc, inputs_of(message, Random(mutation_seed)))  # noqa: S311 - repeatable, no secret

    send()


def inputs_of(message: Any, random: Random) -> Sequence[bytes]:
    """Returns the bytes of a request and of its mutants."""
    data = message.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        return []
    return [data, *(mutate(data, random) for _ in range(MUTANTS))]
