"""SIGTERM and SIGINT: the first asks to drain, the second ends the process at once."""

import os
import signal
import threading

import structlog

log = structlog.get_logger(__name__)


class StopRequest(threading.Event):
    """Set once the process has been asked to stop."""

    signal_number: int | None = None
    """By which signal; None as long as it was not."""


def stop_on_signal() -> StopRequest:
    """Takes over both signals and returns the event that the first of them sets. To be called by the main thread.

    The interpreter's own handler only writes the signal's number to a pipe, from where a thread takes it. So nothing
    runs between two instructions of the main thread, which may hold the event's lock, and the second signal works
    even when the main thread is stuck.
    """
    stop = StopRequest()
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)
    signal.set_wakeup_fd(sending)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    threading.Thread(target=_receive, args=(receiving, stop), name="signals", daemon=True).start()
    return stop


def _receive(receiving: int, stop: StopRequest) -> None:
    while True:
        for number in os.read(receiving, 16):
            if stop.is_set():
                log.warning("exiting_at_once", signal=signal.Signals(number).name)
                os._exit(128 + number)
            log.info("stopping", signal=signal.Signals(number).name)
            stop.signal_number = number
            stop.set()
