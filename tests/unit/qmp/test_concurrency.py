"""Several commands at once: one error, and nothing left running."""

import asyncio

import pytest

from qvmi.errors import MachineGone, QmpTimeout
from qvmi.qmp.concurrency import concurrently
from tests.asynchronous import asynchronous


async def fail(error: Exception) -> None:
    raise error


async def together(*errors: Exception, block: Exception | None = None) -> None:
    async with concurrently() as group:
        for error in errors:
            group.create_task(fail(error))
        if block is not None:
            raise block


@asynchronous
async def test_the_first_of_several_errors_is_raised_itself() -> None:
    with pytest.raises(MachineGone, match="first"):
        await together(MachineGone("first"), QmpTimeout("second", 1.0))


@asynchronous
async def test_an_error_of_the_block_is_raised_itself() -> None:
    with pytest.raises(MachineGone, match="block"):
        await together(block=MachineGone("block"))


@asynchronous
async def test_a_mistake_in_the_program_is_told_whole() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await together(MachineGone("x"), ZeroDivisionError())
    assert caught.group_contains(ZeroDivisionError)


@asynchronous
async def test_the_others_are_cancelled() -> None:
    others: list[asyncio.Task[bool]] = []

    async def one_fails() -> None:
        async with concurrently() as group:
            others.append(group.create_task(asyncio.Event().wait()))
            group.create_task(fail(MachineGone("x")))

    with pytest.raises(MachineGone):
        await one_fails()
    assert others[0].cancelled()
