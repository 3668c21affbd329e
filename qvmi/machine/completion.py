"""Steps that are done to their end, whoever is cancelled meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["ended", "to_the_end"]

Result = TypeVar("Result")


async def ended(step: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """This waits for the end of a step; that its caller was cancelled meanwhile is told, not raised.

    Each step is a few commands to QEMU, which have their own time limits.
    """
    cancelled: asyncio.CancelledError | None = None
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def to_the_end(step: Coroutine[Any, Any, Result]) -> Result:
    """This does a step to its end; a cancel counts only then."""
    task = asyncio.ensure_future(step)
    cancelled = await ended(task)
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
