"""A thread that runs an asyncio event loop, for callers that are not asynchronous themselves."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

from memory_service.embedding.cancellation import Cancellation

T = TypeVar("T")


class LoopClosed(Exception):
    """The loop was closed before the coroutine had finished."""


class Stopped(Exception):
    """Whoever waited for the coroutine gave up."""


class LoopThread:
    """Runs coroutines on an event loop in a daemon thread of its own, from construction to `close`."""

    def __init__(self, name: str, *, on_close: Callable[[], Awaitable[None]]) -> None:
        """Starts the thread `name`; `on_close` is awaited as the last thing on the loop."""
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closed = False
        started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]
        started = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), name=name, daemon=True)
        self._thread.start()
        self._loop, self._closing = started.result()

    def run(self, coroutine: Coroutine[Any, Any, T], cancellation: Cancellation | None = None) -> T:
        """Runs `coroutine` on the loop and returns its result, or raises what it raised.

        Raises:
            LoopClosed: `close` was called before or meanwhile.
            Stopped: `cancellation` came first; the coroutine is cancelled.
        """
        with self._lock:
            if self._closed:
                coroutine.close()
                raise LoopClosed
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            with cancellation.stopping(future.cancel) if cancellation is not None else nullcontext():
                return future.result()
        except concurrent.futures.CancelledError:
            # `close` cancels, too.
            raise (LoopClosed if self._closing.is_set() else Stopped) from None

    def close(self) -> None:
        """Cancels what is running, awaits `on_close` and ends the thread; does nothing the second time."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _main(self, started: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        closing = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), closing))
        await closing.wait()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._on_close()
