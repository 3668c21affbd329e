"""A decorator for tests that are coroutines: each runs in an event loop of its own."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import ParamSpec

__all__ = ["asynchronous"]

Arguments = ParamSpec("Arguments")


def asynchronous(
    test: Callable[Arguments, Coroutine[object, object, None]],
) -> Callable[Arguments, None]:
    """This makes a test function of a coroutine function; pytest sees the same arguments."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
