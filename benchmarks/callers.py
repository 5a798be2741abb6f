"""Those who ask: processes apart from the driver and the server, with threads in them, each in a closed loop.

A caller asks, waits for the answer, notes the time it took, and asks again. Questions are made before the clock
starts; ids are turned into rows after it has stopped.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.process_group import ProcessGroup, Work
from benchmarks.question import Answer, Question


class Asker(Protocol):
    """One caller's connection to whatever answers."""

    def ask(self, question: Question) -> Answer:
        """Returns the answer."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


class Source(Protocol):
    """What can be asked. Crosses to the caller's process, so it holds addresses, not connections."""

    def connect(self) -> Asker:
        """Returns a new asker."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What each process is to ask: its questions in turn, once, or over and over for `seconds`."""

    questions: Sequence[Question]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a job. `latencies_s` and `answers` are parallel, in no particular order."""

    latencies_s: NDArray[np.float64]
    answers: list[Answer]
    asked: list[int]
    """The position of each answer's question in the job."""
    calls_per_s: float

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return float(np.median(self.latencies_s)) * 1e3

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency."""
        return float(np.percentile(self.latencies_s, 99)) * 1e3


class Callers(ProcessGroup):
    """`processes` times `threads` callers of one source, connected once and kept warm."""

    def __init__(self, source: Source, *, processes: int = 1, threads: int = 1) -> None:
        """Starts and connects them."""
        super().__init__([partial(_open_askers, source, threads)] * processes)

    def run(self, job: Job) -> Round:
        """Runs a job; its questions are dealt out to the processes, and within them to the threads."""
        count = self.size
        parts: list[Round] = self.work([Job(job.questions[start::count], job.seconds) for start in range(count)])
        return Round(
            np.concatenate([part.latencies_s for part in parts]),
            [answer for part in parts for answer in part.answers],
            [start + count * position for start, part in enumerate(parts) for position in part.asked],
            sum(part.calls_per_s for part in parts),
        )


def _open_askers(source: Source, threads: int, closing: ExitStack) -> Work:
    """Connects one process's callers, and returns what runs a job with them."""
    askers = [source.connect() for _ in range(threads)]
    for asker in askers:
        closing.callback(asker.close)
    return partial(_run, askers)


@dataclass(slots=True)
class _Caller:
    """One thread's share of a job."""

    asker: Asker
    questions: Sequence[Question]
    positions: Sequence[int]
    seconds: float | None
    round: Round | None = None
    error: Exception | None = None

    def run(self, start: threading.Barrier) -> None:
        try:
            start.wait()
            self.round = self._asked()
        except Exception as error:  # noqa: BLE001 - raised by whoever started the thread
            self.error = error

    def _asked(self) -> Round:
        latencies: list[float] = []
        answers: list[Answer] = []
        asked: list[int] = []
        count = len(self.questions)
        began = before = time.perf_counter()
        end_at = None if self.seconds is None else began + self.seconds
        done = 0
        while (done < count) if end_at is None else (before < end_at):
            answers.append(self.asker.ask(self.questions[done % count]))
            now = time.perf_counter()
            latencies.append(now - before)
            asked.append(self.positions[done % count])
            done += 1
            before = time.perf_counter()
        return Round(np.array(latencies), answers, asked, done / (before - began))


def _run(askers: Sequence[Asker], job: Job) -> Round:
    count = len(askers)
    positions = range(len(job.questions))
    callers = [
        _Caller(asker, job.questions[start::count], positions[start::count], job.seconds)
        for start, asker in enumerate(askers)
    ]
    if count == 1:  # no second thread to hand the interpreter to
        return callers[0]._asked()  # noqa: SLF001
    barrier = threading.Barrier(count)
    threads = [threading.Thread(target=caller.run, args=(barrier,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rounds = []
    for caller in callers:
        if caller.error is not None:
            raise caller.error
        if caller.round is not None:
            rounds.append(caller.round)
    return Round(
        np.concatenate([each.latencies_s for each in rounds]),
        [answer for each in rounds for answer in each.answers],
        [position for each in rounds for position in each.asked],
        sum(each.calls_per_s for each in rounds),
    )
