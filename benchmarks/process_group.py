"""Processes of one's own that work on orders: started once, told what to do through pipes, ended together."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

LEAVE_S = 10.0

Work = Callable[[Any], Any]
"""Does what one order says, and returns what came of it."""

OpenWork = Callable[[ExitStack], Work]
"""Runs in a process before its first order, and crosses to it, so it holds addresses, not connections."""


class ProcessGroup:
    """One process for each of `openings`, connected once and kept warm."""

    def __init__(self, openings: Sequence[OpenWork]) -> None:
        """Starts them and waits until all are ready; raises what kept one from it."""
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection[Any, Any]] = []
        self._processes = []
        for open_work in openings:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, open_work), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            for pipe in self._pipes:
                _received(pipe)
        except BaseException:  # also a time limit: nobody else would end the processes
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self._pipes)

    def work(self, orders: Sequence[Any]) -> list[Any]:
        """Gives each process an order, and returns what came of them, in the same order; raises what went wrong."""
        for pipe, order in zip(self._pipes, orders, strict=True):
            pipe.send(order)
        return [_received(pipe) for pipe in self._pipes]

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            with suppress(OSError):  # a process that has died is told nothing
                pipe.send(None)
        ends_at = time.monotonic() + LEAVE_S
        for process in self._processes:
            process.join(max(0.0, ends_at - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _received(pipe: "Connection[Any, Any]") -> Any:
    result = pipe.recv()
    if isinstance(result, Exception):
        raise result
    return result


def _serve(pipe: "Connection[Any, Any]", open_work: OpenWork) -> None:
    """Runs in the process until told to end, or until whoever tells it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, who then ends this process
    with ExitStack() as closing:
        try:
            work = open_work(closing)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            pipe.send(_portable(error))
            return
        pipe.send("ready")
        while (order := _next_order(pipe)) is not None:
            try:
                pipe.send(work(order))
            except Exception as error:  # noqa: BLE001 - the driver raises it
                pipe.send(_portable(error))


def _next_order(pipe: "Connection[Any, Any]") -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None


def _portable(error: Exception) -> RuntimeError:
    return RuntimeError(f"{type(error).__name__}: {error}")
