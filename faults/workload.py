"""Callers in processes of their own: they neither share an interpreter with the driver nor die with a server."""

import multiprocessing
import signal
import threading
import time
import traceback
import uuid
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from faults.client import DEADLINE_S, Client, open_channel
from faults.journal import OK, Journal
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

POLL_S = 0.1
LONGEST_STREAK = 100
LEAVE_S = 4 * DEADLINE_S


class NoProgress(Exception):
    """Callers were not served again in time."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many callers there are."""

    processes: int = 2
    threads: int = 4
    users: int = 4
    """Of each caller."""

    @property
    def callers(self) -> int:
        """Of all processes."""
        return self.processes * self.threads


class Workload:
    """Callers at work from construction until `stop`."""

    def __init__(self, address: str, load: Load, *, texts: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        run = uuid.uuid4().hex[:8]
        self._pipes: list[Connection[Any, Any]] = []
        self._processes = []
        for number in range(load.processes):
            ours, theirs = context.Pipe()
            part = _Part(address, f"{run}-{number}", load, texts)
            process = context.Process(target=_work, args=(theirs, part), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def streaks(self, *, since: float) -> list[int]:
        """Returns how many answers in a row each caller has had up to now, after `since` (time.monotonic())."""
        for pipe in self._pipes:
            pipe.send(since)
        return [streak for pipe in self._pipes for streak in pipe.recv()]

    def wait_until_served(self, calls: int, *, since: float = 0.0, within_s: float) -> None:
        """Returns once every caller has had `calls` answers in a row after `since` (time.monotonic()).

        Raises:
            NoProgress: When that does not come true in time.
        """
        deadline = time.monotonic() + within_s
        while min(found := self.streaks(since=since)) < calls:
            if time.monotonic() > deadline:
                raise NoProgress(f"callers were not served within {within_s:.0f} s; answers in a row: {found}")
            time.sleep(POLL_S)

    def stop(self) -> list[Journal]:
        """Ends the callers and returns what they were told."""
        for pipe in self._pipes:
            pipe.send(None)
        journals = [journal for pipe in self._pipes for journal in pipe.recv()]
        self._end()
        return journals

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        ends_at = time.monotonic() + LEAVE_S
        for process in self._processes:
            process.join(max(0.0, ends_at - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes.clear()


@dataclass(frozen=True, slots=True)
class _Part:
    """The callers of one process."""

    address: str
    name: str
    load: Load
    texts: bool


def _work(pipe: "Connection[Any, Any]", part: _Part) -> None:
    """Runs in the callers' process until told to end, or until whoever tells it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, who then ends this process
    channels = [open_channel(part.address) for _ in range(part.load.threads)]
    clients = [
        Client(
            MemoryServiceStub(channel),
            [f"{part.name}-{number}-{user}" for user in range(part.load.users)],
            seed=number,
            texts=part.texts,
        )
        for number, channel in enumerate(channels)
    ]
    threads = [threading.Thread(target=_run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    with suppress(EOFError, BrokenPipeError):
        while (since := pipe.recv()) is not None:
            pipe.send([_streak_of(client, since) for client in clients])
    for client in clients:
        client.stop()
    for thread in threads:
        thread.join()
    with suppress(BrokenPipeError):
        pipe.send([client.journal for client in clients])
    for channel in channels:
        channel.close()


def _run(client: Client) -> None:
    try:
        client.run()
    except Exception:  # noqa: BLE001 - the driver raises it
        client.journal.defect = traceback.format_exc()


def _streak_of(client: Client, since: float) -> int:
    answered = takewhile(
        lambda attempt: attempt.refusal == OK and attempt.ended_at >= since, reversed(client.journal.attempts)
    )
    return sum(1 for _ in islice(answered, LONGEST_STREAK))
