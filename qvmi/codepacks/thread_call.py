"""One synchronous call in a thread that cannot keep the program from ending."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar

__all__ = ["call_in_thread"]

Result = TypeVar("Result")


def call_in_thread(call: Callable[[], Result], *, name: str) -> "asyncio.Future[Result]":
    """This starts a call that must not raise, and returns the future of its result.

    The threads of asyncio's own executor are joined when the program ends; one that hangs would
    hang the program. This one is a daemon, and costs 0.1 ms to start.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def deliver(result: Result) -> None:
        if not future.done():
            future.set_result(result)

    def work() -> None:
        result = call()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result)

    Thread(target=work, name=name, daemon=True).start()
    return future
