"""`python -m tests.fuzz`: fuzzes a service of its own for as long as it is told, or sends inputs that failed again."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fix_database import DIMENSIONS, MEMORY_DISK, MODEL
from tests.fix_server import DEFAULTS, ServerProcess, open_channel, start_process
from tests.fuzz import campaign
from tests.fuzz.footprint import footprint_of
from tests.fuzz.growth import Rounds
from tests.fuzz.interleaving import Interleaving
from tests.fuzz.linearizability import NotLinearizable
from tests.fuzz.population import populate
from tests.fuzz.services import rpcs
from tests.fuzz.target import Target, load

FOLDER = Path(".fuzz")
SAY_EVERY_S = 10.0
START_LIMIT_S = 180.0  # on a busy machine too
REQUESTS_EACH = 20
CLIENTS = 4
OPERATIONS = 25


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=50_000, help="how many requests to send (%(default)s)")
    parser.add_argument("--rounds", type=int, default=150, help="how many interleavings to run (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1_500, help="when to begin nothing new any more (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="to repeat a run")  # noqa: S311
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="sends these inputs instead")
    options = parser.parse_args(arguments)
    if options.replay:
        with service() as server:
            return replay(server, options.replay)
    print(f"seed {options.seed}", flush=True)  # noqa: T201 - the command talks to its user
    ends_at = time.monotonic() + options.seconds
    with service() as server:
        found = fuzz(server, options.inputs, options.seed, ends_at=ends_at)
    with service(embedder="none", embedding_model=MODEL, embedding_dimensions=DIMENSIONS) as server:
        found += interleave(server, options.rounds, options.seed, ends_at=ends_at)
    return min(found, 1)


@contextmanager
def service(**changes: Any) -> Iterator[ServerProcess]:
    """Yields a service with an embedder, all that is off by default, and a PostgreSQL of its own."""
    place = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        Path(folder).chmod(0o755)
        settings = {**DEFAULTS, "embedder": "local", "global_search": "on", "environment": "development", **changes}
        server = ServerProcess(start_process("serve", **settings, data_dir=f"{folder}/data"))
        try:
            server.log.wait_for("serving", timeout_s=START_LIMIT_S)
            yield server
        finally:
            server.stop()


def say(text: str) -> None:
    """Tells the user, at once."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command talks to its user


class Progress:
    """Tells how far it is, every so often."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._done = 0
        self._started_at = self._said_at = time.monotonic()

    def update(self, done: int, more: Callable[[], object] = lambda: "") -> None:
        """Tells it, if it is time."""
        now = time.monotonic()
        just_done = done >= self._total > self._done
        self._done = done
        if now - self._said_at >= SAY_EVERY_S or just_done:
            self._said_at = now
            rate = done / (now - self._started_at)
            say(f"{done:,} of {self._total:,} {self._what}, {rate:,.0f}/s {more()}")


def fuzz(server: ServerProcess, inputs: int, number: int, *, ends_at: float) -> int:
    """Sends inputs; returns how many faults it found, saved and told."""
    target = Target(server.channel)
    population = populate(server.channel)
    progress = Progress(inputs, "inputs")
    rounds = Rounds(server, target)
    numbers = rounds.numbers(number, inputs=inputs, ends_at=ends_at)
    told = 0
    for _ in campaign.run(target, population, numbers=numbers, requests_each=REQUESTS_EACH):
        progress.update(target.inputs, lambda: footprint_of(server.process.pid))
        for finding in target.findings[told:]:
            say(f"FOUND {finding.rpc}: {finding.what}; saved as {finding.save(FOLDER)}")
        told = len(target.findings)
    for rpc, answers in sorted(target.answers.items()):
        say(f"  {rpc}: {', '.join(f'{count:,} {name}' for name, count in answers.most_common())}")
    say(f"{target.inputs:,} inputs")
    return told + _aftermath(server, rounds)


def _aftermath(server: ServerProcess, rounds: Rounds) -> int:
    """Returns how many faults show in the process and its log; tells them."""
    found = 0
    if server.process.poll() is not None:
        say(f"FOUND the service ended with {server.process.returncode}:\n{server.log.text[-5_000:]}")
        return 1
    for event in server.log.events():
        if event.get("level") in {"error", "critical"}:
            found += 1
            say(f"FOUND in the log: {event}")
    for what, (footprints, grew) in rounds.growth().items():
        say(f"after each round of {what}: {'; '.join(map(str, footprints))}")
        if grew:
            found += 1
            say("FOUND growth")
    return found


def interleave(server: ServerProcess, rounds: int, number: int, *, ends_at: float) -> int:
    """Lets clients work at the same time; returns how many rounds no order explains, and tells which."""
    progress, found = Progress(rounds, "interleavings"), 0
    with ExitStack() as closing:
        channels = [closing.enter_context(open_channel(server.address)) for _ in range(CLIENTS)]
        stubs = [MemoryServiceStub(channel) for channel in channels]
        for round_number in range(rounds):
            if time.monotonic() >= ends_at:
                say(f"out of time after {round_number:,} interleavings")
                break
            try:
                Interleaving(stubs=stubs, seed=number + round_number, operations=OPERATIONS).run()
            except NotLinearizable as error:
                found += 1
                say(f"FOUND by seed {number + round_number}: {error}")
            progress.update(round_number + 1)
    return found


def replay(server: ServerProcess, files: Sequence[Path]) -> int:
    """Sends saved inputs; returns 1 when any of them still fails."""
    target = Target(server.channel)
    populate(server.channel)
    by_path = {rpc.path: rpc for rpc in rpcs()}
    for path in files:
        rpc, data = load(path)
        target.send(by_path[rpc], [data])
    for finding in target.findings:
        say(f"FOUND {finding.rpc}: {finding.what}")
    say(f"{len(files)} inputs, {len(target.findings)} of them fail")
    return min(len(target.findings), 1)


if __name__ == "__main__":
    sys.exit(main())
