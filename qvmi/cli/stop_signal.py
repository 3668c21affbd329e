"""How a command that would run for ever ends well."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["stop_signal", "until_stopped"]


@contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """This turns the first Ctrl-C or SIGTERM into an event: it is how it ends well.

    A second one works as ever, for those who cannot wait.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heard() -> None:
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            # asyncio would put Python's own in its place, which tears the event loop apart.
            if loop.remove_signal_handler(number):
                signal.signal(number, handler or signal.SIG_DFL)

    for number in before:
        loop.add_signal_handler(number, heard)
    try:
        yield stop
    finally:
        restore()


async def until_stopped(
    work: Coroutine[Any, Any, object], stop: asyncio.Event, limit_s: float | None = None
) -> None:
    """This works until that is done, which may raise, until the signal comes, or until the time is up."""
    working = asyncio.create_task(work, name="qvmi-work")
    stopping = asyncio.create_task(stop.wait(), name="qvmi-stop")
    try:
        await asyncio.wait(
            {working, stopping}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        if working.done():
            working.result()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})
