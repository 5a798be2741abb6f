"""Which threads work on a method: gRPC reads it from an attribute of the method's behaviour."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_on(
    executor: ThreadPoolExecutor, method: Callable[..., Any], *, non_blocking: bool = False
) -> Callable[..., Any]:
    """Returns a behaviour that calls `method` on `executor` in place of the server's own threads.

    A `non_blocking` method streams its replies through a callback, a third argument, and so frees its thread.
    """

    def behaviour(*arguments: Any) -> Any:
        return method(*arguments)

    # A function of its own for each server: attributes set on the method would be shared by all instances.
    for name, value in (
        ("experimental_thread_pool", executor),
        ("experimental_non_blocking", non_blocking),
    ):
        setattr(behaviour, name, value)
    return behaviour
