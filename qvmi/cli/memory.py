"""The commands that look at single addresses: ``read`` and ``translate``."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from qvmi.addr import Pa, Va
from qvmi.arch.paging import Geometry, Permissions, Step, Translation, steps
from qvmi.cli.exit_code import ExitCode, exit_code_of
from qvmi.cli.hexdump import hexdump
from qvmi.cli.output import Output
from qvmi.cli.table import Column, table_of
from qvmi.cli.values import Place, Space
from qvmi.errors import GuestError, TranslationFault, UsageError
from qvmi.machine.machine import Machine
from qvmi.memory.address_space import AddressSpace
from qvmi.symbols.layout import address

__all__ = ["MAX_DOCUMENT", "read", "translate"]

MAX_DOCUMENT: Final = 64 << 20
"""Most bytes in one JSON document, which is made whole in memory; the other forms have no bound."""

_CHUNK: Final = 1 << 20
"""Bytes read at once, a whole number of lines; between two of them Ctrl-C is heard."""

_END_OF_ADDRESSES: Final = 1 << 64
_KIB: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class _Region:
    """This is what is to be read.

    Args:
        start: its first address.
        size: in bytes.
        read_at: reads so many bytes at an address of the space that was asked for.
    """

    start: int
    size: int
    read_at: Callable[[int, int], bytes]

    def __post_init__(self) -> None:
        if self.start + self.size > _END_OF_ADDRESSES:
            raise UsageError(f"{self.size} bytes at {self.start:#x} reach beyond the last address")

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """This yields address and bytes, piece by piece, until one cannot be read."""
        end = self.start + self.size
        for start in range(self.start, end, _CHUNK):
            yield start, self.read_at(start, min(_CHUNK, end - start))


async def read(
    machine: Machine, output: Output, *, place: Place, size: int, space: Space, form: str
) -> ExitCode:
    """This reads bytes, and prints them in the form that was asked for.

    Raises:
        UsageError: what was asked for contradicts itself.
        GuestError, SymbolsError, MemoryFault: there is no such place, or it cannot be read.
    """
    _require_sense(output, place, space, size=size, form=form)
    region = _Region(_address(machine, place), size, _reader(machine, space))
    if output.json:
        output.document(_document(machine, region, space))
        return ExitCode.FINE
    for start, data in region.chunks():
        _PRINTERS[form](output, data, start)
        await asyncio.sleep(0)  # the event loop is heard, and Ctrl-C with it
    if form == "hex":
        output.line()
    return ExitCode.FINE


def _require_sense(output: Output, place: Place, space: Space, *, size: int, form: str) -> None:
    if place.symbol and space.kind == "physical":
        raise UsageError(f"{place} is a virtual address: leave --physical out")
    if output.json and form != "dump":
        raise UsageError(f"--json has a form of its own: leave --{form} out")
    if output.json and size > MAX_DOCUMENT:
        raise UsageError(f"{size} bytes are too many for one JSON document: take --raw")
    if form == "raw" and output.is_terminal:
        raise UsageError("raw bytes would disturb the terminal: send them to a file or a pipe")


def _address(machine: Machine, place: Place) -> int:
    return place.offset + (address(machine.symbols, place.symbol) if place.symbol else 0)


def _reader(machine: Machine, space: Space) -> Callable[[int, int], bytes]:
    if space.kind == "physical":
        return lambda start, size: machine.memory.read(Pa(start), size)
    virtual = _virtual(machine, space)
    return lambda start, size: virtual.read(Va(start), size)


def _virtual(machine: Machine, space: Space) -> AddressSpace:
    if space.pid is None:
        return machine.kernel_space
    processes = machine.guest.processes()
    process = next((one for one in processes if one.pid == space.pid), None)
    if process is None:
        raise GuestError(f"no process of this guest has the pid {space.pid}")
    return machine.user_space(process)


def _document(machine: Machine, region: _Region, space: Space) -> dict[str, object]:
    return {
        "space": space.kind,
        "pid": space.pid,
        "address": region.start,
        "size": region.size,
        "data": b"".join(data for _, data in region.chunks()).hex(),
        "provenance": machine.view.provenance,
    }


def _print_dump(output: Output, data: bytes, start: int) -> None:
    for line in hexdump(data, start):
        output.line(line)


def _print_hex(output: Output, data: bytes, _: int) -> None:
    output.part_of_line(data.hex())


def _print_raw(output: Output, data: bytes, _: int) -> None:
    output.raw(data)


_PRINTERS: Final = {"dump": _print_dump, "hex": _print_hex, "raw": _print_raw}


async def translate(machine: Machine, output: Output, *, place: Place, space: Space) -> ExitCode:
    """This shows how the page tables translate an address, or the way to where they do not.

    Raises:
        GuestError, SymbolsError: there is no such process, or no such symbol.
        TranslationFault: the guest unmapped the address just now.
    """
    virtual = _virtual(machine, space)
    va = Va(_address(machine, place))
    asked = {"pid": space.pid, "provenance": machine.view.provenance}
    way, fault = _way_to(virtual, va)
    if fault is not None:
        _show_way(output, virtual.geometry, way, _nowhere(va, way, fault) | asked)
        output.flush()
        output.message(str(fault))
        return exit_code_of(fault)
    found = virtual.walk(va)
    _show_way(output, virtual.geometry, found.steps, msgspec.to_builtins(found) | asked)
    if not output.json:
        output.line(_in_words(found))
    return ExitCode.FINE


def _show_way(
    output: Output, geometry: Geometry, way: Sequence[Step], document: dict[str, object]
) -> None:
    if output.json:
        output.document(document)
    elif way:
        output.table(table_of(_step_columns(geometry), way))


def _way_to(space: AddressSpace, va: Va) -> tuple[Sequence[Step], TranslationFault | None]:
    """This walks as far as there is a way: the entries on it, and what stopped the walk if it was."""
    way: list[Step] = []
    try:
        for step in steps(space.memory.read, space.root, space.geometry, va):
            way.append(step)  # noqa: PERF402 - what was read before the fault counts
    except TranslationFault as fault:
        return way, fault
    return way, None


def _nowhere(va: Va, way: Sequence[Step], fault: TranslationFault) -> dict[str, object]:
    """This is the document of an address that is not mapped, with the fields of one that is."""
    unknown = dict.fromkeys(("pa", "page_size", "permissions"))
    return {"va": va, **unknown, "steps": way, "problem": str(fault)}


def _step_columns(geometry: Geometry) -> Sequence[Column[Step]]:
    return (
        Column("LEVEL", lambda step: step.level),
        Column("AT", lambda step: f"{step.address:#x}", right=True),
        Column("ENTRY", lambda step: f"{step.entry:#018x}"),
        Column("ALLOWS", lambda step: _allowed(geometry, step)),
    )


def _allowed(geometry: Geometry, step: Step) -> str:
    allowed = geometry.permissions(step.level, step.entry)
    return "nothing: not present" if allowed is None else _rights(allowed)


def _rights(allowed: Permissions) -> str:
    write = "w" if allowed.writable else "-"
    execute = "x" if allowed.executable else "-"
    return f"r{write}{execute} {'user' if allowed.user else 'kernel'}"


def _in_words(found: Translation) -> str:
    page = f"{found.page_size // _KIB} KiB page"
    return f"{found.va:#x} is {found.pa:#x} ({page}, {_rights(found.permissions)})"
