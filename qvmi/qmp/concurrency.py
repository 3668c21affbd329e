"""Several commands under way at once, with one error of ours when some of them fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qvmi.errors import QvmiError

__all__ = ["concurrently"]


@asynccontextmanager
async def concurrently() -> AsyncIterator[asyncio.TaskGroup]:
    """This is a task group that raises the first QvmiError itself, not a group of errors.

    ::

        async with concurrently() as group:
            status = group.create_task(commands.run_state(monitor))
            text = group.create_task(monitor.hmp("info registers -a"))
        print(status.result(), text.result())

    Raises:
        QvmiError: a task failed, or the block did; the other tasks were cancelled.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        # A group with anything else in it is a mistake in the program, and told whole.
        if all(isinstance(failure, QvmiError) for failure in failures.exceptions):
            raise first from first.__cause__
        raise
