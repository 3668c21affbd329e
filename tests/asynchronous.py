"""Tests that are coroutines: each runs in an event loop of its own."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Final, ParamSpec

__all__ = ["asynchronous", "until"]

WAIT_S: Final = 20.0
"""Longest wait for what must happen; it takes milliseconds on an idle machine."""

Arguments = ParamSpec("Arguments")


def asynchronous(
    test: Callable[Arguments, Coroutine[object, object, None]],
) -> Callable[Arguments, None]:
    """This makes a test function of a coroutine function; pytest sees the same arguments."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def until(condition: Callable[[], bool], *, within_s: float = WAIT_S) -> None:
    """Waits until something is so that sets no event, such as what another thread does."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)
