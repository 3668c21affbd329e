"""What a write does by way of the gdbstub: look, log, change, read back, and undo where that differs.

References: QEMU ``gdbstub.c`` (``handle_write_mem``, ``handle_set_reg``), 7.2; ``accel/kvm/kvm-all.c``
(``kvm_insert_breakpoint``: a software breakpoint under KVM is a byte in the guest's memory).
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch.x86_64 import stub_name
from qvmi.errors import MachineGone, QvmiError, UsageError, WriteFailed
from qvmi.gdbstub.client import GdbClient
from qvmi.gdbstub.packets import BreakpointKind, ThreadId

__all__ = ["Piece", "change_memory", "change_registers"]

Content = TypeVar("Content", bytes, Mapping[str, int])
"""What is written: bytes of memory, or values of registers by name."""

_BREAKPOINT_SIZE: Final = 4
"""Bytes that a breakpoint may replace: BRK of aarch64; INT3 of x86 has one."""

_audit = logging.getLogger("qvmi.audit")


@dataclass(frozen=True, slots=True)
class Piece:
    """This is a part of a write: a run of physical memory, and what it is to hold."""

    pa: Pa
    data: bytes


@asynccontextmanager
async def _without_breakpoints(client: GdbClient, pieces: Sequence[Piece]) -> AsyncIterator[None]:
    """This lifts the software breakpoints that may lie in what is written.

    Under KVM each is a byte in the guest's memory: it would be taken for the guest's own, and would be
    put back over what is written. Where it lies is known as a virtual address alone, of which the
    place in its page is that of the physical one.
    """
    lifted = [
        one
        for one in client.breakpoints
        if one.kind is BreakpointKind.SOFTWARE and any(_may_hold(p, one.address) for p in pieces)
    ]
    for one in lifted:
        await client.remove(one)
    try:
        yield
    finally:
        if not client.ended:
            for one in lifted:
                await client.insert(one)


def _may_hold(piece: Piece, va: Va) -> bool:
    before, behind = (piece.pa - va) % PAGE_SIZE, (va - piece.pa) % PAGE_SIZE
    return before < _BREAKPOINT_SIZE or behind < len(piece.data)


async def _read(client: GdbClient, pieces: Sequence[Piece]) -> bytes:
    return b"".join([await client.read_physical(one.pa, len(one.data)) for one in pieces])


async def change_memory(client: GdbClient, what: str, pieces: Sequence[Piece]) -> bytes:
    """This writes pieces of memory, and gives what was there before.

    Args:
        client: the session; the guest stands still.
        what: the action, for the log and for errors.
        pieces: in the order of what was to be written.

    Raises:
        WriteFailed: something else is read back.
    """
    async with _without_breakpoints(client, pieces):
        return await _changed(client, what, pieces)


async def _changed(client: GdbClient, what: str, pieces: Sequence[Piece]) -> bytes:
    """This writes, and gives what was there before.

    Raises:
        WriteFailed: something else is read back.
    """
    wanted = b"".join(piece.data for piece in pieces)
    old = await _read(client, pieces)
    # Before anything is changed: the log has it, whatever becomes of this process.
    _audit.info("%s: old %s new %s", what, old.hex(), wanted.hex())

    async def write(data: bytes) -> bytes:
        at = 0
        for piece in pieces:
            await client.write_physical(piece.pa, data[at : at + len(piece.data)])
            at += len(piece.data)
        return await _read(client, pieces)

    await _verified(what, old, wanted, write)
    return old


async def change_registers(
    client: GdbClient, what: str, thread: ThreadId, wanted: Mapping[str, int]
) -> Mapping[str, int]:
    """This sets registers, and gives what was in them before.

    Args:
        client: the session; the guest stands still.
        what: the action, for the log and for errors.
        thread: the vCPU.
        wanted: the values by name.

    Raises:
        UsageError: there is no such register, it cannot be read, or a value does not fit it.
        WriteFailed: something else is read back.
    """
    names = {stub_name(name): name for name in wanted}

    async def read() -> Mapping[str, int]:
        found = await client.registers.read_named(thread, names)
        return {names[name]: value for name, value in found.items()}

    async def write(values: Mapping[str, int]) -> Mapping[str, int]:
        for name, value in values.items():
            await client.registers.write(thread, stub_name(name), value)
        return await read()

    old = await read()
    if missing := wanted.keys() - old.keys():
        raise UsageError(f"{what}: the vCPU does not tell {', '.join(sorted(missing))}")
    description = await client.registers.description()
    for name, value in wanted.items():
        bits = description.by_name[stub_name(name)].bits
        if not 0 <= value < 1 << bits:
            raise UsageError(f"{what}: {value:#x} does not fit the {bits} bits of {name}")
    _audit.info("%s: old %s new %s", what, _hex(old), _hex(wanted))
    await _verified(what, old, wanted, write)
    return old


async def _verified(
    what: str, old: Content, wanted: Content, write: Callable[[Content], Awaitable[Content]]
) -> None:
    """This writes, and puts back what was there before where something else is read back.

    Raises:
        WriteFailed: with both, and whether that could be done.
        MachineGone: QEMU has ended.
    """
    found: Content | None = None
    cause: QvmiError | None = None
    try:
        found = await write(wanted)
    except MachineGone:
        _audit.warning("%s: QEMU has ended meanwhile", what)
        raise
    except QvmiError as error:
        cause = error
    if found == wanted:
        return
    failure = WriteFailed(what, wanted, found, restored=await _is_restored(old, write))
    _audit.warning("%s", failure)
    raise failure from cause


async def _is_restored(old: Content, write: Callable[[Content], Awaitable[Content]]) -> bool:
    try:
        return await write(old) == old
    except QvmiError:
        return False


def _hex(values: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value:#x}" for name, value in values.items())
